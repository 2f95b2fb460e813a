"""What the runner needs to know of a training problem, whatever it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jaxkd import train


@dataclass
class Problem:
    """One training problem, opened and checked; `classifying` and `restoring` make them.

    Attributes:
      config: resolved, as config.json will hold it.
      task: the pure functions.
      pipeline: endless, resumable training batches.
      dynamics: statistics of layers during training, or None.
      best_metric: the evaluation's metric (higher is better) that decides which checkpoint is the best.
      train_images: how many.
      val_images: how many.
      about: lines for people: what is minimised, on which data.
      evaluator: metric writer -> function from a state to {metric: mean}.
      keep: writes what else belongs to the work directory, once it is claimed.
    """

    config: ConfigDict
    task: Any
    pipeline: Any
    dynamics: Any
    best_metric: str
    train_images: int
    val_images: int
    about: tuple[str, ...]
    evaluator: Callable[[train.MetricWriter], Callable[[train.TrainState], dict[str, float]]]
    keep: Callable[[], None]
