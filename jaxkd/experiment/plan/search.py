"""The largest batch whose step fits, from few compilations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxkd.experiment.plan.program import Compiled, TooLarge

MOST_COMPILATIONS = 6
FINE = 64  # steps are no finer than this fraction of the batch
# Shares of the room: of the second point of the line, of the batch that it is followed to, and what is full enough.
# Closer to the limit, and beyond it, a TPU's compiler looks for ways to save memory for many minutes.
SECOND, AIM, FULL = 0.45, 0.92, 0.88


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
      batch_size: the largest that was compiled and fits; None where not even the smallest does.
      full_at: the batch at which the line through the two largest that fit fills the room; None without two.
      tried: every compilation, with its batch size, bytes of a chip and seconds.
    """

    batch_size: int | None
    full_at: int | None
    tried: list[dict[str, Any]]


def largest_batch(
    attempt: Callable[[int], Compiled | TooLarge],
    first: tuple[int, Compiled | TooLarge],
    *,
    unit: int,
    room: float,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Follows the line through the two compilations nearest to `room`, until the next batch to try is known.

    Memory is nearly linear in the batch: a second compilation at half of the room gives the line, a third at the batch
    that it predicts is the answer as a rule. The answer was compiled, not predicted, and fills `FULL` of the room or
    more unless the compilations are used up.

    Args:
      attempt: compiles the step at a batch size.
      first: a batch size and what came of it.
      unit: the batch must be a multiple of it.
      room: bytes of a chip.
      say: gets a line before each compilation.
    """
    known: dict[int, Compiled | TooLarge] = dict([first])
    while len(known) < MOST_COMPILATIONS:
        fits = [size for size, one in known.items() if _peak(one, room) <= room]
        fails = [size for size in known if size not in fits]
        if fits and _peak(known[max(fits)], room) >= FULL * room:
            break
        size = _next(known, max(fits, default=0), min(fails, default=0), unit, room)
        if size is None:
            break
        say(f"search, compilation {len(known) + 1} of at most {MOST_COMPILATIONS}: batch {size:,}")
        known[size] = attempt(size)
    fits = sorted(size for size, one in known.items() if _peak(one, room) <= room)
    tried = [
        {
            "batch_size": size,
            "peak_bytes": one.peak if isinstance(one, Compiled) else one.needed,
            "fits": size in fits,
            "seconds": round(one.seconds, 1),
        }
        for size, one in known.items()
    ]
    full_at = None
    if len(fits) > 1:
        line = _line(*((size, _peak(known[size], room)) for size in fits[-2:]))
        full_at = line and int(line(room)) // unit * unit
    return Found(max(fits, default=None), full_at, tried)


def _peak(one: Compiled | TooLarge, room: float) -> float:
    """Bytes of a chip; a little above `room` where the compiler refused without a number."""
    return one.peak if isinstance(one, Compiled) else max(one.needed, room * 1.0001)


def _line(one: tuple[int, float], other: tuple[int, float]) -> Callable[[float], float] | None:
    """Bytes -> batch, by two (batch, bytes); None where both need as much."""
    (a, at_a), (b, at_b) = one, other
    return None if at_a == at_b else lambda size: a + (size - at_a) * (b - a) / (at_b - at_a)


def _second(size: int, one: Compiled | TooLarge, unit: int, room: float) -> float:
    """The batch of the second compilation, far enough from the first for a line and well within the room."""
    if isinstance(one, TooLarge):
        return size * SECOND * room / one.needed if one.needed else size / 4
    # What is not temporary does not depend on the batch, or hardly.
    guess = size * (SECOND * room - (one.peak - one.temporary)) / max(one.temporary, 1)
    if guess > 1.5 * size:
        return guess
    return size / 2 if size // 2 >= unit else 2 * size


def _next(known: dict[int, Compiled | TooLarge], low: int, high: int, unit: int, room: float) -> int | None:
    """The next batch size to compile; None where the largest is known.

    Args:
      known: what was compiled.
      low, high: the largest that fits and the smallest that does not, 0 for none.
      unit, room: of `largest_batch`.
    """
    if len(known) == 1:
        size = max(unit, int(_second(*next(iter(known.items())), unit, room)) // unit * unit)
        return None if size in known else size
    aim = AIM * room
    points = sorted((abs(_peak(one, room) - aim), size, _peak(one, room)) for size, one in known.items())
    exact = [(size, peak) for _, size, peak in points if isinstance(known[size], Compiled) or known[size].needed]
    line = _line(*exact[:2]) if len(exact) >= 2 else None
    guess = line(aim) if line else 0.0
    step = max(unit, int(max(low, guess) / FINE) // unit * unit)
    if high and high - low <= step:
        return None
    size = int(guess) // step * step
    if size <= low:
        size = low + step if line or not high else (low + high) // 2 // unit * unit
    elif high and size >= high:
        size = (low + high) // 2 // unit * unit
    if not low and not line:
        size = high // 4 // unit * unit
    size = max(unit, size)
    return None if size in known or (high and not low < size < high) else size
