"""Checks that training is still finite, and what the error says where it is not."""

from __future__ import annotations

from collections.abc import Callable

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
    bad = {name: members for name, value in metrics.items() if (members := bad_members(value))}
    if not bad:
        return
    causes = [k for k in bad if k not in ("loss", "grad_norm") and not k.endswith("_weighted")]
    name = (causes or [k for k in bad if k != "grad_norm"] or list(bad))[0]
    values, which = np.atleast_1d(metrics[name]), bad[name]
    of_member = ""
    if np.ndim(metrics[name]):
        words = "member" if len(which) == 1 else "members"
        of_member = f" of {words} {', '.join(map(str, which))} (of {values.size}, from 0)"
    raise NonFiniteLossError(
        f'The term "{name}"{of_member} became {values[which[0]]} at step {step}. {_advice(kept())}'
    )


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
