"""The frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from jaxkd import models
from jaxkd.errors import ShapeError
from jaxkd.parallel import batch_devices, batch_spec

PyTree = Any
PerChannel = tuple[float, ...]


@dataclass(frozen=True)
class Teacher:
    """A frozen network with its own normalisation of images.

    Its variables are an argument of every call, so that they are neither a constant of the compiled step nor part of
    the optimiser or the checkpoint.

    Attributes:
      model: the linen module.
      mean: per channel, of images in [0, 1], that the teacher was trained with.
      std: likewise.
      student_mean: per channel, that the images given to it were normalised with.
      student_std: likewise.
      mesh: devices over which the images are split; None: whatever jit makes of it.
    """

    model: nn.Module
    mean: PerChannel
    std: PerChannel
    student_mean: PerChannel
    student_std: PerChannel
    mesh: Mesh | None = None

    def __call__(
        self, variables: PyTree, images: jax.Array, taps: tuple[str, ...] = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The teacher's output for the student's images.

        Args:
          variables: `{"params": ...}` of the teacher.
          images: (B, H, W, 3) as the student sees them, normalised with the student's constants.
          taps: features to return.

        Returns:
          (output, features) in evaluation mode, without gradient to the variables or the images. A teacher with a
          distillation token returns the mean of its heads.

        Raises:
          ShapeError: images with another number of channels than the constants.
        """
        images = self.renormalise(images)
        if not self._has_kernels:
            out: Any = self.model.apply(variables, images, train=False, taps=tuple(taps))
            return jax.lax.stop_gradient(out)

        def forward(variables: PyTree, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            out: Any = self.model.clone(fused_attention=True).apply(variables, images, train=False, taps=tuple(taps))
            return out

        # XLA does not split a kernel over devices; each takes its own images.
        batch = batch_spec()
        forward = jax.shard_map(
            forward, mesh=self.mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, check_vma=False
        )
        return jax.lax.stop_gradient(forward(variables, images))

    @property
    def _has_kernels(self) -> bool:
        """Whether the forward pass uses the network's own kernels: on TPUs, each of which holds all weights."""
        if self.mesh is None or not hasattr(self.model, "fused_attention"):
            return False
        return models.target_platform() == "tpu" and self.mesh.size == batch_devices(self.mesh)

    def renormalise(self, images: jax.Array) -> jax.Array:
        """From the student's normalisation to the teacher's; the same array where they agree."""
        constants = [np.asarray(v, np.float64) for v in (self.mean, self.std, self.student_mean, self.student_std)]
        mean, std, student_mean, student_std = constants
        if any(v.shape != (images.shape[-1],) for v in constants):
            raise ShapeError(
                f"The images have shape {images.shape}, but the constants of teacher and student are for "
                f"{sorted({v.size for v in constants})} channels. Pass NHWC images and one value per channel."
            )
        if np.array_equal(mean, student_mean) and np.array_equal(std, student_std):
            return images
        # (x s' + m' - m) / s as one multiplication and one addition, with constants rounded once.
        scale, shift = student_std / std, (student_mean - mean) / std
        return images * jnp.asarray(scale, images.dtype) + jnp.asarray(shift, images.dtype)
