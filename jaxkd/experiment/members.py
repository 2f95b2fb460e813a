"""Results of the members of a population: their best weights, their rows in result.json, a work directory for each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxkd import parallel, train
from jaxkd.data import subset_facts
from jaxkd.data.files import write_atomic
from jaxkd.experiment.build import Experiment
from jaxkd.experiment.workdir import save_subset
from jaxkd.train.diverged import NEVER, POPULATION

PyTree = Any
FOLDER = train.MEMBERS


def remember_best(experiment: Experiment) -> Callable[[train.TrainState, dict[str, Any]], train.TrainState] | None:
    """(state, scores) -> the state with the weights of each member's best evaluation so far, the newest of equals.

    None for an ordinary run, and with checkpoint.keep_best=0.
    """
    if not experiment.members or "best" not in experiment.abstract_state.mutable[POPULATION]:
        return None

    def choose(best: PyTree, weights: PyTree, score: jax.Array, step: jax.Array) -> PyTree:
        better = ~jnp.isnan(score) & ((best["step"] == NEVER) | (score >= best["score"]))
        now = {**weights, "score": score, "step": jnp.full_like(best["step"], step)}
        return jax.tree.map(
            lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            now,
            best,
        )

    shardings = experiment.shardings.mutable[POPULATION]["best"]
    compiled = jax.jit(choose, donate_argnums=0, out_shardings=shardings)

    def remember(state: train.TrainState, scores: dict[str, Any]) -> train.TrainState:
        population = state.mutable[POPULATION]
        weights = {"params": state.params["student"]}
        if state.ema is not None:
            weights["ema"] = state.ema["student"]
        score = np.asarray(scores[experiment.best_metric], np.float32)
        best = compiled(population["best"], weights, score, state.step)
        return state.replace(mutable={**state.mutable, POPULATION: {**population, "best": best}})

    return remember


def member_results(
    experiment: Experiment, workdir: Path, state: train.TrainState, scores: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row for each member, as result.json holds them; numbers of members that diverged are None."""
    metric, population = experiment.best_metric, on_host(state.mutable[POPULATION], but="best")
    rows = {row["step"]: row for row in train.read_metrics(workdir, "eval")}
    steps = on_host(state.mutable[POPULATION].get("best", {}).get("step"))
    updates, images = _updates(state), experiment.member_images
    results = []
    for index, member in enumerate(experiment.members):
        diverged = int(population["diverged_at"][index])
        result = {
            "name": member.name,
            "group": member.group,
            "seed": member.config.seed,
            "changes": json.loads(json.dumps(member.changes, default=str)),
            metric: _number(scores[metric][index]) if metric in scores else None,
            "diverged_at_step": None if diverged == NEVER else diverged,
            "updates": None if updates is None else int(updates[index]),
            "train_images": images[index] if images else experiment.train_images,
            "metrics": {name: _number(value[index]) for name, value in scores.items()},
        }
        best = _best(rows, metric, index) if steps is None else int(steps[index])
        if best in rows:
            result |= {f"best_{metric}": _number(rows[best][metric][index]), "best_step": best}
        results.append(result)
    return results


def _updates(state: train.TrainState) -> np.ndarray | None:
    """(S,) optimiser updates of each member: fewer than steps where a batch had none of its images.

    None where the optimiser does not count them, as SGD of a constant rate.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    counts = [leaf for path, leaf in leaves if getattr(path[-1], "name", "") == "count"]
    return on_host(counts[0]) if counts else None  # every part of an optimiser counts the same updates


def _best(rows: dict[int, dict[str, Any]], metric: str, index: int) -> int:
    """The step of a member's best evaluation; -1 without any."""
    scored = {s: _number(row[metric][index]) for s, row in rows.items()}
    scored = {s: v for s, v in scored.items() if v is not None}
    return max(scored, key=lambda s: (scored[s], s)) if scored else -1


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def write_members(
    experiment: Experiment, workdir: Path, state: train.TrainState, results: list[dict[str, Any]], meta: dict[str, Any]
) -> None:
    """`workdir/members/<name>` for each member, which commands accept as the work directory of a single run.

    Each holds the config of that run, the list of its images where it learns from some only, the last weights and
    those of its best evaluation, raw and moving average; it has no optimiser, so that no training continues from it.
    """
    metric, step = experiment.best_metric, int(state.step)
    rows = {row["step"]: row for row in train.read_metrics(workdir, "eval")}
    last = {"params": state.params["student"]} | ({} if state.ema is None else {"ema": state.ema["student"]})
    best = {k: v for k, v in state.mutable[POPULATION].get("best", {}).items() if k in ("params", "ema")}
    last, best = on_host(last), on_host(best)
    position = experiment.pipeline.get_state()
    for index, (member, result) in enumerate(zip(experiment.members, results, strict=True)):
        diverged = result["diverged_at_step"]
        saved = {step if diverged is None else diverged - 1: (last, result["metrics"])}
        if best and "best_step" in result:
            at = result["best_step"]
            # It may be the last state too, whose own metrics are empty for a member that has diverged since.
            saved |= {at: (best, {k: _number(v[index]) for k, v in rows[at].items() if isinstance(v, list)})}
        states = {
            number: (_student_state(weights, index, number), {k: v for k, v in scores.items() if v is not None})
            for number, (weights, scores) in saved.items()
        }
        folder, config = workdir / FOLDER / member.name, json.loads(json.dumps(member.config.to_dict(), default=str))
        source = experiment.member_source(index)
        facts = subset_facts(source)
        own_meta = {k: v for k, v in meta.items() if k != "subset"} | {"config": config}
        own_meta |= {} if facts is None else {"subset": facts}
        if parallel.is_main_host():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "config.json", json.dumps(config, indent=2))
            save_subset(source, folder)
            origin = {"population": str(workdir), "population_members": len(results), "batches": _batches(experiment)}
            write_atomic(folder / "result.json", json.dumps(result | origin, indent=2))
        checkpoints = train.Checkpoints(folder, keep_last=len(states), best_metric=metric)
        try:
            for _, (one, scores) in sorted(states.items()):
                checkpoints.save(one, data=position, meta=own_meta, metrics=scores)
        finally:
            checkpoints.close()


def _batches(experiment: Experiment) -> str:
    """A sentence for people: whether the single run of a member's config sees the same batches."""
    if not experiment.member_images:
        return "Shared by all members; the single run of config.json has the same."
    return (
        f"Shared by all members: each step had the member's own images among {experiment.settings.batch_size} of "
        f"{experiment.train_images} images. The single run of config.json has full batches of its own images, and "
        "other numbers."
    )


def _student_state(weights: dict[str, PyTree], index: int, step: int) -> train.TrainState:
    """The student of one member without projectors and optimiser, from "params" and perhaps "ema" of all."""
    own = {k: {"student": jax.tree.map(lambda x: x[index], v), "projectors": {}} for k, v in weights.items()}
    return train.TrainState(np.int32(step), own["params"], {}, {}, own.get("ema"))


def on_host(tree: PyTree, *, but: str = "") -> PyTree:
    """Arrays of NumPy, on every host, also of what is split over hosts."""
    tree = {k: v for k, v in tree.items() if k != but} if but else tree
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
