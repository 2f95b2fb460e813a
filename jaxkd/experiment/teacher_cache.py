"""Logits of the teacher that are computed once and kept in a folder, so that the steps of students run no teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, distill, parallel, tasks, train, weights
from jaxkd.config.fields import data_seed, flatten
from jaxkd.config.paths import user_path
from jaxkd.config.validate import mixes
from jaxkd.distill.stored_logits import LOG_PROBS
from jaxkd.distill.terms import TERMS
from jaxkd.errors import ConfigError, NonFiniteLossError, TopologyError
from jaxkd.train.progress import Progress

FIELD = "teacher.cache.path"


def logit_format(
    config: ConfigDict, teacher: weights.Network, objective: distill.Objective
) -> distill.LogitFormat | None:
    """The form in which `config.teacher.cache` keeps logits; None without a cache.

    Raises:
      ConfigError: a term that reads more than logits, or more kept classes than there are.
      TopologyError: several hosts.
    """
    cache = config.teacher.cache
    if not cache.path:
        return None
    if jax.process_count() > 1:
        raise TopologyError(
            f'{FIELD}="{cache.path}" is set, but this run has {jax.process_count()} hosts, and a cache is written and '
            f"read by one. Leave {FIELD} empty, or start the run on one host."
        )
    if objective.teacher_taps:
        names = [term.name for term in objective.terms if term.pairs] or ["of the objective"]
        fitting = [name for name, kind in TERMS.items() if "pairs" not in kind.arguments]
        raise ConfigError(
            f'{FIELD}="{cache.path}" keeps the logits of the teacher, but the term {", ".join(names)} reads its '
            f"features ({', '.join(objective.teacher_taps[:3])}). Leave {FIELD} empty, or choose among the terms "
            f"{', '.join(fitting)}."
        )
    return distill.LogitFormat(teacher.num_classes, cache.top_k, cache.dtype)


def with_logits(config: ConfigDict, task: Any, pipeline: data.TrainPipeline, records: int) -> Any:
    """`pipeline` with the stored logits in its batches, where `task` reads them; else as it is.

    Args:
      config: resolved.
      task: of one student.
      pipeline: of the training batches.
      records: how many images it draws from.
    """
    stored = getattr(task, "stored", None)
    if stored is None:
        return pipeline
    store = data.BatchStore(
        user_path(config.teacher.cache.path, FIELD),
        lambda: identity(config, task, records),
        stored.arrays,
        batch_size=config.train.batch_size,
        steps_per_epoch=pipeline.steps_per_epoch,
        field=FIELD,
    )
    return data.StoredBatches(pipeline, store, views=config.data.views, mixed=mixes(config))


def identity(config: ConfigDict, task: tasks.DistillationTask, records: int) -> dict[str, Any]:
    """All that decides the stored logits, besides the images themselves, by the names of fields where there are any."""
    student, fields = task.student, flatten(config)
    augment = {k: v for k, v in fields.items() if k.startswith("data.augment.") and k != "data.augment.region_decode"}
    erases = config.data.erase.probability > 0
    on_device = {k: v for k, v in fields.items() if k.startswith("data.erase.") and erases}
    on_device |= {k: v for k, v in fields.items() if k.startswith("data.mix.") and mixes(config)}
    args = {name: value for name, value in fields.items() if name.startswith("teacher.args.") and value is not None}
    return {
        "teacher.name": config.teacher.name,
        "teacher_fingerprint": task.metadata()["teacher_fingerprint"],
        **args,
        "teacher_constants": [task.teacher.spec.mean, task.teacher.spec.std],
        "precision.compute": config.precision.compute,
        "image_size": student.image_size,
        "student_constants": [student.spec.mean, student.spec.std],
        "records": records,
        "data.seed": data_seed(config),
        "train.batch_size": config.train.batch_size,
        "data.repeats": config.data.repeats,
        **augment,
        **on_device,
        # Erasing and mixing draw by the place in a micro-batch.
        "optimizer.accumulate": config.optimizer.accumulate if on_device else 1,
        "teacher.cache.top_k": 0 if task.stored.keeps_all else task.stored.top_k,
        "teacher.cache.dtype": task.stored.dtype,
    }


class _Stopped(Exception):
    """A stop was requested."""


def fill(
    task: Any,
    batches: Any,
    *,
    steps: int,
    key: jax.Array | train.Keys,
    mesh: Mesh,
    accumulate: int,
    console: Console | None,
    stop: train.StopRequest,
) -> None:
    """Computes and writes the logits that a run reads and that are not there yet; does nothing without a cache.

    Args:
      task: of the run.
      batches: its pipeline, which has the same position afterwards.
      steps: optimiser steps of the whole run.
      key: of the run.
      mesh: devices.
      accumulate: micro-batches of a step.
      console: for progress; None is silent.
      stop: asks to end early; what is in whole files stays.

    Raises:
      DataError: the folder belongs to another run, is damaged or in use.
      NonFiniteLossError: logits that are not finite.
    """
    if not isinstance(batches, data.StoredBatches):
        return
    store, pipeline = batches.store, batches.pipeline
    steps = min(steps, batches.repeat_after or steps)
    if not store.missing(steps):
        return
    task = getattr(task, "task", task)  # that of one member of a population
    compute = train.compile_batch_map(task.logits_to_store, mesh, accumulate=accumulate)
    variables, key = parallel.put_on_mesh(task.teacher_variables, mesh), train.data_key(key)

    def logits(position: int, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        arrays = compute(parallel.put_batch(batch, mesh), key, np.int32(position), variables)
        return arrays | {data.IMAGES: data.image_checksums(batch["image"])}

    with store.claimed(), Progress(console) as progress:
        parts, state, done = store.missing(steps), pipeline.get_state(), 0
        total = sum(part.count for part in parts)
        progress.say(
            f"{store.folder} lacks the teacher's logits of {total:,} batches, {store.megabytes(total):,.1f} MB."
        )

        def report(new: int) -> None:
            if stop.requested:
                raise _Stopped
            progress.show("teacher's logits, batch", done + new, total)

        try:
            for neighbours in _neighbours(parts):
                pipeline.set_state(state | {"position": neighbours[0].start})
                with contextlib.closing(data.Prefetcher(pipeline)) as prefetched:
                    for part in neighbours:
                        store.write(part, _part(part, prefetched, logits, report))
                        done += part.count
        except _Stopped:
            progress.say(f"{stop.requested}: {done:,} of {total:,} batches are stored; the same command continues.")
        finally:
            pipeline.set_state(state)


def _neighbours(parts: Sequence[data.Part]) -> Iterator[list[data.Part]]:
    """`parts` in groups whose batches follow one another."""
    group: list[data.Part] = []
    for part in parts:
        if group and group[-1].start + group[-1].count != part.start:
            yield group
            group = []
        group.append(part)
    yield group


def _part(
    part: data.Part, batches: Iterator[dict[str, np.ndarray]], logits: Any, report: Callable[[int], None]
) -> list[dict[str, np.ndarray]]:
    """The arrays to write for each batch of `part`."""
    found: list[dict[str, Any]] = []
    for position in range(part.start, part.start + part.count):
        report(len(found))
        arrays = logits(position, next(batches))
        if found:  # of the batch before, while this one is computed
            found[-1] = jax.device_get(found[-1])
        found.append(arrays)
    found = jax.device_get(found)
    for position, arrays in enumerate(found, start=part.start):
        if not np.isfinite(arrays[LOG_PROBS]).all():
            raise NonFiniteLossError(
                f"The teacher's logits are not finite for the batch after step {position}, so they are not stored in "
                f"{FIELD}. Check teacher.weights, or set precision.compute=float32."
            )
    return found
