"""Checks that training is still finite, and what the error says where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxkd.errors import NonFiniteLossError
from jaxkd.train.members import Value, bad_members
from jaxkd.train.state import TrainState, non_finite_paths


def check_finite(metrics: dict[str, Value], step: int, kept: Callable[[], list[int]]) -> None:
    """Raises NonFiniteLossError that names the first bad term; the single terms come before their sum.

    Args:
      metrics: of `step`; a gradient that is not finite shows in "grad_norm".
      step: optimiser step that they belong to.
      kept: gives the steps whose checkpoints exist.
    """
    name = _cause(metrics)
    if not name:
        return
    bad = {name: bad_members(metrics[name])}
    values, which = np.atleast_1d(metrics[name]), bad[name]
    of_member = ""
    if np.ndim(metrics[name]):
        words = "member" if len(which) == 1 else "members"
        of_member = f" of {words} {', '.join(map(str, which))} (of {values.size}, from 0)"
    raise NonFiniteLossError(
        f'The term "{name}"{of_member} became {values[which[0]]} at step {step}. {_advice(kept())}'
    )


def _cause(metrics: Mapping[str, Value]) -> str:
    """The first metric that is not finite; "" if all are."""
    bad = [name for name, value in metrics.items() if bad_members(value)]
    causes = [k for k in bad if k not in ("loss", "grad_norm") and not k.endswith("_weighted")]
    return (causes or [k for k in bad if k != "grad_norm"] or bad or [""])[0]


def drop_diverged(
    metrics: dict[str, Value],
    diverged_at: np.ndarray,
    step: int,
    names: Sequence[str],
    say: Callable[[str], None],
    kept: Callable[[], list[int]],
) -> dict[str, Value]:
    """Metrics of a population, with NaN for its members that have diverged; says which ones did in this step.

    Args:
      metrics: of `step`; arrays are (S,).
      diverged_at: (S,) steps, below 0 for members that have not diverged.
      step: optimiser step that they belong to.
      names: of the members.
      say: prints a line.
      kept: see `check_finite`.

    Raises:
      NonFiniteLossError: no member is left.
    """
    lost = diverged_at >= 0
    reasons = []
    for member in np.flatnonzero(diverged_at == step):
        own = {name: float(value[member]) for name, value in metrics.items() if np.ndim(value)}
        cause = _cause(own)
        reason = f'"{cause}" became {own[cause]}' if cause else "its weights became NaN or infinite"
        reasons.append(f'member "{names[member]}" diverged at step {step}: {reason}')
    if lost.all():
        all_of = f"All {lost.size} members of the population have diverged"
        raise NonFiniteLossError(f"{all_of} ({'; '.join(reasons) or 'see the log'}). {_advice(kept())}")
    for reason in reasons:
        say(f"{reason}. It stays as it was before; {int((~lost).sum())} of {lost.size} members go on.")
    return {name: np.where(lost, np.nan, value) if np.ndim(value) else value for name, value in metrics.items()}


def check_state(state: TrainState, mesh: Mesh, step: int, kept: Callable[[], list[int]]) -> None:
    """Raises NonFiniteLossError if `state` after `step` is not fit to be saved; see `check_finite`.

    The loss and the gradient of a step are those of the parameters before it: an update that overflows shows in
    neither.
    """
    bad = non_finite_paths(state, mesh)
    if bad:
        more = f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""
        raise NonFiniteLossError(f'"{bad[0]}"{more} held NaN or infinity after step {step}. {_advice(kept())}')


def _advice(kept: list[int]) -> str:
    good = f"the last good checkpoint, of step {kept[-1]}, was kept" if kept else "no checkpoint was written"
    start = "; student.weights=<this work directory> starts from the kept weights" if kept else ""
    return (
        f"The run stopped and {good}. Lower optimizer.learning_rate, set optimizer.clip_norm=1.0, or compute in "
        f"float32 (precision.compute), in a new --workdir{start}."
    )
