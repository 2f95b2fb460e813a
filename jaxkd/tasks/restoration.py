"""Super-resolution: a network from a small image to a large one, trained on aligned patches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkd import losses, metrics, models
from jaxkd.errors import ConfigError, check_choice
from jaxkd.parallel import on_each_device
from jaxkd.train.task import Batch, Inputs, Metrics, Task
from jaxkd.weights.network import Network

PyTree = Any
PIXEL_LOSSES = {"l1": losses.l1, "charbonnier": losses.charbonnier}


class RestorationTask(Task):
    """Trains `student` to make the HR patch from the LR patch.

    Args:
      student: a super-resolution network; its variables, if any, are the start.
      pixel: name of the loss between pixels, of `PIXEL_LOSSES`.
      fft_weight: weight of `losses.fft_l1` beside it; 0 leaves it out.
      frozen: tree of bool like the parameters, or None.
      mesh: devices over which a batch is split, each of which then transforms its own images.
    """

    def __init__(
        self,
        student: Network,
        *,
        pixel: str = "l1",
        fft_weight: float = 0.0,
        frozen: PyTree | None = None,
        mesh: Mesh | None = None,
    ):
        check_choice("restoration.loss", pixel, PIXEL_LOSSES)
        if student.spec.task != "restoration":
            raise ConfigError(
                f'student.name="{student.spec.name}" {student.spec.purpose}, and task="restoration" trains a network '
                'from image to image. Choose one such as "mdbn_x4" or "edsr_x4".'
            )
        self.student, self.frozen, self.constants = student, frozen, {}
        self._pixel, self._fft_weight = pixel, fft_weight
        self._transform = None if mesh is None else on_each_device(mesh)

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Random parameters, or the given ones; no mutable collections."""
        if self.student.variables is not None:
            params = self.student.variables["params"]
        else:
            params = models.init_variables(self.student.model, key, (1, 8, 8, 3))["params"]
        return {"student": params, "projectors": {}}, {}

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """LR and HR patches as fp32 in [0, 1]."""
        small, large = (batch[k].astype(jnp.float32) / 255.0 for k in ("lr", "hr"))
        return Inputs(small, {"hr": large, "mask": batch["mask"]}, None)

    def compare(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        output: tuple[jax.Array, Any],
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """Mean over the patches that could be read."""
        large, where = inputs.batch["hr"], inputs.batch["mask"]
        count = jnp.maximum(jnp.sum(where), 1)
        terms = {self._pixel: jnp.sum(PIXEL_LOSSES[self._pixel](output[0], large, where=where)) / count}
        if self._fft_weight:
            with losses.transforms_applied_by(self._transform):
                terms["fft_l1"] = jnp.sum(losses.fft_l1(output[0], large, where=where)) / count
        loss = terms[self._pixel] + self._fft_weight * terms.get("fft_l1", 0.0)
        return loss, terms, mutable

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """Loss terms of patches; `experiment.restoration` scores whole images, whose sizes differ."""
        _, (terms, _) = self.loss(params, mutable, batch, jax.random.key(0), jnp.zeros((), jnp.int32), constants)
        count = jnp.sum(batch["mask"])
        return {name: metrics.Average(total=value * count, count=count) for name, value in terms.items()}
