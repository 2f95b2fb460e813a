"""The largest batch whose step fits, from few compilations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxkd.experiment.plan.program import Compiled, TooLarge

MOST_COMPILATIONS = 6
FINE = 64  # steps are no finer than this fraction of the batch
# Shares of the room: what is aimed at, and what is full enough. Close to the limit a TPU's compiler looks for ways to
# save memory for many minutes.
AIM, FULL = 0.96, 0.93


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
      batch_size: the largest that was compiled and fits; None where not even the smallest does.
      tried: every compilation, with its batch size and bytes of a chip.
    """

    batch_size: int | None
    tried: list[dict[str, Any]]


def largest_batch(
    attempt: Callable[[int], Compiled | TooLarge], first: tuple[int, Compiled | TooLarge], *, unit: int, room: float
) -> Found:
    """Follows the line through the two compilations nearest to `room`, until the next batch to try is known.

    Memory is nearly linear in the batch, so three or four compilations suffice; the answer was compiled, not predicted,
    and fills `FULL` of the room or more unless the compilations are used up.

    Args:
      attempt: compiles the step at a batch size.
      first: a batch size and what came of it.
      unit: the batch must be a multiple of it.
      room: bytes of a chip.
    """
    known: dict[int, Compiled | TooLarge] = dict([first])
    while len(known) < MOST_COMPILATIONS:
        fits = [size for size, one in known.items() if _peak(one, room) <= room]
        fails = [size for size in known if size not in fits]
        if fits and _peak(known[max(fits)], room) >= FULL * room:
            break
        size = _next(known, max(fits, default=0), min(fails, default=0), unit, AIM * room)
        if size is None:
            break
        known[size] = attempt(size)
    fits = [size for size, one in known.items() if _peak(one, room) <= room]
    tried = [
        {"batch_size": size, "peak_bytes": one.peak if isinstance(one, Compiled) else one.needed, "fits": size in fits}
        for size, one in known.items()
    ]
    return Found(max(fits, default=None), tried)


def _peak(one: Compiled | TooLarge, room: float) -> float:
    """Bytes of a chip; a little above `room` where the compiler refused without a number."""
    return one.peak if isinstance(one, Compiled) else max(one.needed, room * 1.0001)


def _next(known: dict[int, Compiled | TooLarge], low: int, high: int, unit: int, room: float) -> int | None:
    """The next batch size to compile; None where the largest is known.

    Args:
      known: what was compiled.
      low, high: the largest that fits and the smallest that does not, 0 for none.
      unit: of `largest_batch`.
      room: bytes of a chip to aim at.
    """
    points = sorted((abs(_peak(one, room) - room), size, _peak(one, room)) for size, one in known.items())
    exact = [(size, peak) for _, size, peak in points if isinstance(known[size], Compiled) or known[size].needed]
    guess = 0.0
    if len(exact) >= 2 and exact[0][1] != exact[1][1]:
        (a, at_a), (b, at_b) = exact[:2]
        guess = a + (room - at_a) * (b - a) / (at_b - at_a)
    elif exact and isinstance(one := known[exact[0][0]], Compiled):
        # What is not temporary does not depend on the batch, or hardly.
        size = exact[0][0]
        guess = size * (room - (one.peak - one.temporary)) / max(one.temporary, 1)
    step = max(unit, int(max(low, guess) / FINE) // unit * unit)
    if high and high - low <= step:
        return None
    size = int(guess) // step * step
    if high and not low < size < high:
        below = unit if not low and len(exact) >= 2 else (low + high) // 2 // unit * unit  # two points tell enough
        size = below if size <= low else high - step
    elif not high and size <= low:
        size = low + step
    size = max(unit, size)
    return None if size in known or (high and not low < size < high) else size
