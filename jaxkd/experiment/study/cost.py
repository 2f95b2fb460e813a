"""Cost of a study: floating-point operations of its runs, and the time that they will take by what was measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd import data, models, weights
from jaxkd.config.fields import plain
from jaxkd.experiment.build import loop_settings
from jaxkd.experiment.study.grid import Run
from jaxkd.models.flops import multiply_adds

MARGIN = 1.15  # on the time of a unit that is unlike all that were measured


@dataclass(frozen=True)
class Cost:
    """Size of a unit of work: optimiser steps and floating-point operations."""

    steps: int
    images: int  # of a member
    flop: float  # 3 forward passes of each student and one of the teacher for every image; two for each multiply-add
    kind: str  # units of the same kind take the same time a step
    students: int = 1  # that are trained, scored and exported


def unit_cost(runs: Sequence[Run], *, together: bool) -> Cost:
    """Cost of runs that train in one program (`together`: they share the teacher's pass), or of a single run."""
    config = runs[0].config
    cost = run_cost(config)
    teachers = [run.config for run in runs if run.config.teacher.name]
    shared = forward_flop(teachers[0], "teacher") if teachers else 0.0
    students = 3 * forward_flop(config, "student") * len(runs)
    flop = cost.images * (students + shared * (1 if together else len(teachers)))
    kind = json.dumps([cost.kind, len(runs), bool(teachers)])
    return Cost(cost.steps, cost.images, flop, kind, len(runs))


def run_cost(config: ConfigDict) -> Cost:
    """Cost of one run, such as a shared stage."""
    per_epoch = max(train_images(config) // config.train.batch_size, 1)
    steps = loop_settings(config, per_epoch).total_steps
    images = steps * config.train.batch_size
    teacher = forward_flop(config, "teacher") if config.teacher.name else 0.0
    kind = json.dumps([config.student.name, plain(config.student.args), config.train.batch_size], default=str)
    return Cost(steps, images, images * (3 * forward_flop(config, "student") + teacher), kind)


def train_images(config: ConfigDict) -> int:
    """Training images of a run."""
    whole, classes = _source_size(config.data.source, config.data.class_order)
    return config.data.per_class * classes or whole


@functools.lru_cache(maxsize=8)
def _source_size(spec: str, class_order: str) -> tuple[int, int]:
    source = data.open_source(spec, "train", class_order=class_order)
    return len(source), len(source.class_names)


def forward_flop(config: ConfigDict, side: str) -> float:
    """Floating-point operations of one image's pass through the student or the teacher: twice the multiply-adds."""
    classes = _source_size(config.data.source, config.data.class_order)[1]
    args = {"num_classes": classes} | {k: plain(v) for k, v in config[side].args.items() if v is not None}
    if side == "teacher" and "img_size" in models.arguments(config.teacher.name):
        args.setdefault("img_size", config.student.args.get("img_size"))
    return _forward(config[side].name, json.dumps(args, sort_keys=True, default=list))


@functools.lru_cache(maxsize=64)
def _forward(name: str, args: str) -> float:
    network = weights.build_network(name, json.loads(args))
    shape = (1, *network.image_size, 3)
    variables = models.abstract_variables(network.model, shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: network.model.apply(v, x, train=False)[0])(variables, images)
    return 2.0 * multiply_adds(traced.jaxpr)


def predict_seconds(cost: Cost, times: Sequence[dict[str, Any]], tflops: float = 0.0) -> float | None:
    """Seconds that a unit will take, with compilation and evaluation; None where nothing is known.

    Args:
      cost: of the unit.
      times: measured units of this study. The last one of the same kind is scaled by its steps. Else the mean rate of
        floating-point operations and the mean time beside the steps count, with 15 % on top: of the units with as many
        students, or of all, whose time beside the steps is then a line in the number of students.
      tflops: rate to assume where nothing was measured, in 10^12 operations a second; 0 for none.
    """
    alike = [t for t in times if t["kind"] == cost.kind]
    if alike:
        last = alike[-1]
        return last["wall"] - last["seconds"] + last["seconds"] * cost.steps / max(last["steps"], 1)
    if times:
        similar = [t for t in times if _students(t) == cost.students] or times
        rate = sum(t["flop"] for t in similar) / max(sum(t["seconds"] for t in similar), 1e-9)
        return MARGIN * (_seconds_beside(cost.students, similar) + cost.flop / rate)
    return cost.flop / (tflops * 1e12) if tflops else None


def _seconds_beside(students: int, times: Sequence[dict[str, Any]]) -> float:
    """Time beside the steps: what a program needs once, compilation above all, and what each student adds."""
    counts = np.array([_students(t) for t in times], np.float64)
    beside = np.array([t["wall"] - t["seconds"] for t in times])
    if np.ptp(counts) > 0:
        slope = max(np.cov(counts, beside)[0, 1] / np.var(counts, ddof=1), 0.0)
    else:  # half of it by students for fewer of them; more of them are compiled as one program too
        slope = beside.mean() / 2 / counts[0] if students < counts[0] else 0.0
    return max(float(beside.mean() + slope * (students - counts.mean())), 0.0)


def _students(measured: dict[str, Any]) -> int:
    return measured.get("students", 1)
