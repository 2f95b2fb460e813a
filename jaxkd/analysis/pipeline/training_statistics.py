"""Statistics of a student's layers while it trains: computed inside the compiled step, on images of its own batch.

Names and definitions are those of `jaxkd.analysis`, so that a curve over the steps continues into the analysis of the
finished network. Three things differ from an analysis. The images are augmented, erased and mixed as the step trains
on them, and dropout and stochastic depth are on, with the masks of the step. The parameters are those before the
update. The gradient is that of the training loss, the teacher's terms included.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxkd import models, parallel
from jaxkd.analysis.activation import gradient_magnitude
from jaxkd.analysis.layer_statistics import as_tokens, energy_statistics, layer_ranges, layer_statistics
from jaxkd.analysis.lowrank import image_energies
from jaxkd.errors import ConfigError, TapError, did_you_mean, in_words
from jaxkd.train.task import Batch, Keys, data_key, student_key

PyTree = Any


class Dynamics:
    """`(params, mutable, batch, key, step, constants) -> {name: (L,) fp32}`, traced as part of the train step.

    Each value is a mean over images, one per layer. Names: intensity, entropy (range common to all layers: minimum and
    maximum over these images, as published), entropy_own_range (each layer's own), activation_mean, activation_max,
    kurtosis, massive_share; gradient, the mean |dL_i/dA| of layer A, with L_i the loss of image i alone: the gradient
    of the mean loss times the number of images, so that it does not depend on the batch size; rank_99 ... rank_80,
    participation_ratio and stable_rank, over the first `rank_images` images, NaN for a layer without tokens.

    The first `images` images of the batch are used, spread over the devices; those that could not be read (`mask`) do
    not count. With JAX's default generator the masks of dropout are the step's own. Nothing that the step computes
    depends on any of this. A layer with a feature that is not finite has NaN.

    The energies behind the ranks are eigenvalues of the smaller Gram matrix, see `image_energies`. Several BLAS threads
    that wait for one another made them tens of times slower where other processes wanted the same cores
    (benchmarks/dynamics.py), so the runner allows one.

    A patch token behind the last block does not reach the loss of a network that reads its
    class token, so the gradient there is 0 unless a feature term reads that layer.

    Args:
      task: the task whose student and loss are observed.
      mesh: where the batch is split.
      layers: taps of the student; () takes all `block_i` and `stage_i`.
      images: how many of a batch (published analyses: 32); a smaller (micro-)batch gives all of its own.
      gradients: whether to compute `gradient`, which costs a backward pass of these images.
      ranks: whether to compute ranks, the participation ratio and the stable rank.
      rank_images: how many images these are averaged over; decompositions are the expensive part.
    """

    def __init__(
        self,
        task: Any,
        mesh: Mesh,
        *,
        layers: tuple[str, ...] = (),
        images: int = 32,
        gradients: bool = True,
        ranks: bool = True,
        rank_images: int = 8,
    ):
        self._task, self._mesh = task, mesh
        self.layers = resolve_layers(layers, models.tap_names(task.student.model))
        self._images, self._gradients, self._ranks, self._rank_images = images, gradients, ranks, rank_images

    def __call__(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: jax.Array | Keys, step: jax.Array, constants: PyTree
    ) -> dict[str, jax.Array]:
        """See the class."""
        task = self._task
        inputs = task.inputs(batch, data_key(key), constants)
        size = inputs.x.shape[0]
        there = inputs.batch.get("mask", jnp.ones(size, bool))
        wanted = min(self._images, size)
        given = self._even(wanted)
        if given < size:
            inputs, there = jax.tree.map(lambda x: self._spread(x[:given]), (inputs, there))
        valid = there & (jnp.arange(given) < wanted)
        if "mask" in inputs.batch or wanted < given:
            inputs = inputs._replace(batch={**inputs.batch, "mask": valid})

        # Features are a tuple from here on: JAX would sort a dict by its keys, and block_10 comes before block_2.
        def loss(offsets: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            named = dict(zip(self.layers, offsets, strict=True)) if offsets else None
            value, (_, _, features) = task.student_loss(
                params, mutable, inputs, student_key(key), step, taps=self.layers, offsets=named
            )
            return value, tuple(features[name] for name in self.layers)

        slopes = None
        if self._gradients:
            shapes = jax.eval_shape(lambda: loss(())[1])
            zeros = tuple(jnp.zeros(shape.shape, jnp.float32) for shape in shapes)
            slopes, features = jax.grad(loss, has_aux=True)(zeros)
            slopes = tuple(slope * jnp.sum(valid) for slope in slopes)
        else:
            features = loss(())[1]
        features = tuple(value.astype(jnp.float32) for value in features)
        out = _means(self._per_image(_statistics, features, layer_ranges(features, valid), slopes), valid)
        if self._ranks:
            wanted = min(self._rank_images, given)
            few = self._even(wanted)
            energies = self._per_image(_ranks, tuple(value[:few] for value in features))
            out |= _means(energies, valid[:few] & (jnp.arange(few) < wanted))
        return out

    def _even(self, count: int) -> int:
        """The next multiple of the devices; a batch is one, so that it has as many images."""
        devices = parallel.batch_devices(self._mesh)
        return -(-count // devices) * devices

    def _spread(self, x: jax.Array) -> jax.Array:
        """Spreads the first images of a batch, which lie on the first devices, over all devices."""
        return jax.lax.with_sharding_constraint(x, parallel.batch_sharding(self._mesh))

    def _per_image(self, function: Any, features: Any, ranges: Any = None, slopes: Any = None) -> dict[str, jax.Array]:
        """Applies `function` to the images of each device; without shard_map XLA may gather batches for FFT or eigh."""
        split, whole = parallel.batch_spec(), PartitionSpec()
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=(split, whole, split), out_specs=split, check_vma=False
        )(features, ranges, slopes)


def resolve_layers(layers: tuple[str, ...], existing: tuple[str, ...]) -> tuple[str, ...]:
    """The taps to watch; () is every `block_i` and `stage_i` of a student with the taps `existing`."""
    if isinstance(layers, str):
        raise ConfigError(
            f'dynamics.layers="{layers}" is one string, but layers are a tuple of names. Write ("{layers}",).'
        )
    for name in layers:
        if name not in existing:
            raise TapError(
                f'dynamics.layers names "{name}", which the student does not have.{did_you_mean(name, existing)} '
                f"Choose among {in_words(existing)}, or leave dynamics.layers out for all blocks or stages."
            )
    if len(set(layers)) < len(layers):
        raise TapError(f"dynamics.layers={tuple(layers)} names a layer twice. Name each once.")
    return tuple(layers) or models.depth_taps(existing)


def _statistics(
    features: tuple[jax.Array, ...], ranges: jax.Array, slopes: tuple[jax.Array, ...] | None
) -> dict[str, jax.Array]:
    """{name: (b, L)} of everything but the ranks."""
    common = jnp.stack([ranges[:, 0].min(), ranges[:, 1].max()])
    rows = []
    for index, x in enumerate(features):
        row = layer_statistics(x, common, ranges[index])
        if slopes is not None:
            row["gradient"] = gradient_magnitude(slopes[index])
        rows.append(row)
    return {name: jnp.stack([row[name] for row in rows], axis=1) for name in rows[0]}


def _ranks(features: tuple[jax.Array, ...], *_: Any) -> dict[str, jax.Array]:
    """{name: (b, L)}; layers of one shape are decomposed in one call."""
    columns: list[dict[str, jax.Array]] = [{} for _ in features]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, x in enumerate(features):
        groups.setdefault(as_tokens(x).shape if x.ndim > 2 else (x.shape[0],), []).append(index)
    for shape, members in groups.items():
        if len(shape) > 1:
            energies = image_energies(jnp.concatenate([as_tokens(features[i]) for i in members]))
        else:
            energies = jnp.full((len(members) * shape[0], 1), jnp.nan)
        for name, value in energy_statistics(energies).items():
            for index, part in zip(members, jnp.split(value, len(members)), strict=True):
                columns[index][name] = part
    return {name: jnp.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def _means(values: dict[str, jax.Array], valid: jax.Array) -> dict[str, jax.Array]:
    """{name: (B, L)} -> {name: (L,)} over the images that count; NaN where none does."""
    count = jnp.sum(valid)
    return {
        name: jnp.sum(jnp.where(valid[:, None], x.astype(jnp.float32), 0.0), axis=0) / count
        for name, x in values.items()
    }
