"""The parts of an experiment that depend on its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import data, train
from jaxkd.report.run_curves import draw_run

Evaluator = Callable[[train.TrainState], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Components:
    """Parts that the builder of a task makes of a config; see `registry.register_task`."""

    config: ConfigDict  # resolved, as config.json will hold it
    task: Any  # the pure functions
    best_metric: str  # the evaluation's metric (higher is better) that decides which checkpoint is the best
    summary: tuple[str, ...]  # lines for people: what is minimised, on which data
    # name -> shape and type of the arrays of a global batch; empty where the task does not say them
    abstract_batch: Mapping[str, jax.ShapeDtypeStruct] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()  # label -> name, kept in checkpoints; () where images have no labels
    pipeline: Any = None  # infinite, resumable training batches; None where no data set was opened
    train_images: int = 0  # how many; 0 without a data set
    member_images: tuple[int, ...] = ()  # of each member of a population whose members have images of their own
    # number of a member of a population -> the training images that it learns from, or None
    member_source: Callable[[int], data.Source | None] = lambda index: None
    subset: dict[str, Any] | None = None  # facts of the training subset, kept in checkpoints; None for all images
    val_images: int = 0  # how many; 0 without a data set
    # metric writer -> function from a state to {metric: mean}; None without a data set
    make_evaluator: Callable[[train.MetricWriter], Evaluator] | None = None
    statistics: Any = None  # of the layers during training, or None
    # writes what else belongs to the work directory, once it is claimed
    save_inputs: Callable[[Path], None] = lambda workdir: None
    # (work directory, result of the run) -> a figure of it, or None; of a run that failed the result is incomplete
    draw_result: Callable[[Path, dict[str, Any]], Path | None] = draw_run
