"""Networks of a run: the trained one from its work directory, and others trained alike on changed data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxkd import parallel, tasks
from jaxkd.config.fields import change
from jaxkd.experiment.build import assemble
from jaxkd.experiment.eeg.components import components_of
from jaxkd.experiment.eeg.data import EegData
from jaxkd.experiment.eeg.scoring import Decoded, Embed, compile_embed, decode_readings

PyTree = Any


@dataclass(frozen=True)
class Fitted:
    """A network with its parameters, and the data that it reads.

    Attributes:
      task: of the network.
      params: {"student": ..., "projectors": ...}.
      embed: `compile_embed(task)`.
      mesh: devices.
      batch_size: sentences at once.
      max_words: that a sentence has room for.
    """

    task: tasks.ContrastiveTask
    params: PyTree
    embed: Embed
    mesh: Mesh
    batch_size: int
    max_words: int

    def decode(self, eeg_data: EegData, readings: np.ndarray) -> Decoded:
        """Outputs for readings of `eeg_data`."""
        return decode_readings(
            self.embed,
            self.params,
            self.task.constants,
            eeg_data,
            readings,
            self.mesh,
            batch_size=self.batch_size,
            max_words=self.max_words,
        )


class Trainer:
    """Trains the network of `config` on changed data, without checkpoints; equal shapes share a compiled step.

    Args:
      config: resolved, of the run that is controlled.
      mesh: devices.
      on_step: called with (name, steps done, steps) now and then.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, on_step: Callable[[str, int, int], None] | None = None):
        self.config, self.mesh, self._on_step = config, mesh, on_step
        self._compiled: dict[int, tuple[Any, Embed]] = {}

    def fit(self, eeg_data: EegData, name: str) -> Fitted:
        """A network from random weights, trained as long as the run."""
        config = change(self.config, {"student.args.in_features": eeg_data.width, "student.weights": ""}).lock()
        experiment = assemble(components_of(config, eeg_data, self.mesh), self.mesh)
        if eeg_data.width not in self._compiled:
            self._compiled[eeg_data.width] = experiment.compile_step(), compile_embed(experiment.task)
        step, embed = self._compiled[eeg_data.width]
        state, total = experiment.init_state(), experiment.settings.total_steps
        for done in range(total):
            batch = {k: v for k, v in next(experiment.pipeline).items() if k in experiment.abstract_batch}
            state, _ = step(state, parallel.put_batch(batch, self.mesh), experiment.key, experiment.constants)
            if self._on_step is not None and (done + 1 == total or (done + 1) % 20 == 0):
                jax.block_until_ready(state.step)
                self._on_step(name, done + 1, total)
        return Fitted(experiment.task, state.params, embed, self.mesh, config.train.batch_size, config.eeg.max_words)
