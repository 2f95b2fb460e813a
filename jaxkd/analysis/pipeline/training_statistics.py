"""Statistics of a student's layers while it trains: computed inside the compiled step, on images of its own batch.

Names and definitions are those of `jaxkd.analysis`, so that a curve over the steps continues into the analysis of the
finished network. Three things differ from an analysis. The images are augmented, erased and mixed as the step trains
on them, and dropout and stochastic depth are on, with the masks of the step. The parameters are those before the
update. The gradient is that of the training loss, the teacher's terms included.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxkd import models, parallel
from jaxkd.analysis.activation import activation_statistics, gradient_magnitude
from jaxkd.analysis.entropy import entropy_map
from jaxkd.analysis.lowrank import image_energies, participation_ratio, stable_rank
from jaxkd.analysis.spectrum import image_channel_spectrum
from jaxkd.errors import ConfigError, TapError, did_you_mean, in_words
from jaxkd.train.task import Batch

PyTree = Any
BINS = 100  # of the entropy's histogram, as published
THRESHOLDS = {"rank_99": 0.99, "rank_95": 0.95, "rank_90": 0.90, "rank_80": 0.80}
_DEPTH = re.compile(r"(block|stage)_\d+")


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

    The energies behind the ranks are eigenvalues of the smaller Gram matrix rather than squared singular values of the
    tokens. Both are right: `image_energies` shows that no rank up to 99.9 % differs. On CPU neither is clearly faster
    (8 images of 12 layers, one LAPACK thread: 173 ms against 138 for 196 x 192 tokens, 217 against 277 for 196 x 384);
    on an accelerator the SVD is the larger algorithm (XLA's for TPU is a polar decomposition followed by this very
    eigh), and an eigh of the Gram costs min(N, C), not N. Several BLAS threads that wait for one another made it tens
    of times slower where other processes wanted the same cores (benchmarks/dynamics.py), so the runner allows one.

    Spectra come from `jnp.fft`. A patch token behind the last block does not reach the loss of a network that reads its
    class token, so the gradient there is 0 unless a feature term reads that layer.

    Args:
      task: the task whose student and loss are observed.
      mesh: where the batch is split.
      layers: taps of the student; () takes all `block_i` and `stage_i`.
      images: how many of a batch (published analyses: 32); a smaller (micro-)batch gives all of its own.
      gradients: whether to compute `gradient`, which costs a backward pass of these images.
      ranks: whether to compute ranks, the participation ratio and the stable rank.
      rank_images: how many images these are averaged over; decompositions are the expensive part.

    Raises:
      ConfigError: `layers` is one string. TapError: a layer that the student does not have, or one named twice.
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
        self, params: PyTree, mutable: PyTree, batch: Batch, key: jax.Array, step: jax.Array, constants: PyTree
    ) -> dict[str, jax.Array]:
        """See the class."""
        task = self._task
        inputs = task.inputs(batch, key, constants)
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
                params, mutable, inputs, key, step, taps=self.layers, offsets=named
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
        out = _means(self._per_image(_statistics, features, _ranges(features, valid), slopes), valid)
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
    """The taps to watch; () is every `block_i` and `stage_i` of a student with the taps `existing`.

    Raises:
      ConfigError: one string instead of a tuple. TapError: a tap that does not exist or comes twice.
    """
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
    return tuple(layers) or tuple(name for name in existing if _DEPTH.fullmatch(name))


def _tokens(x: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B, N, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _ranges(features: tuple[jax.Array, ...], valid: jax.Array) -> jax.Array:
    """(L, 2): least and greatest finite value of each layer over the images that count."""
    limits = []
    for x in features:
        counts = jnp.isfinite(x) & valid.reshape(-1, *[1] * (x.ndim - 1))
        limits.append(jnp.stack([jnp.where(counts, x, jnp.inf).min(), jnp.where(counts, x, -jnp.inf).max()]))
    return jnp.stack(limits)


def _statistics(
    features: tuple[jax.Array, ...], ranges: jax.Array, slopes: tuple[jax.Array, ...] | None
) -> dict[str, jax.Array]:
    """{name: (b, L)} of everything but the ranks."""
    low, high = ranges[:, 0].min(), ranges[:, 1].max()
    rows = []
    for index, x in enumerate(features):
        tokens = _tokens(x)
        row = {
            "intensity": image_channel_spectrum(x).mean(axis=1),
            "entropy": entropy_map(tokens, low, high, BINS).mean(axis=1),
            "entropy_own_range": entropy_map(tokens, *ranges[index], BINS).mean(axis=1),
            **activation_statistics(tokens),
        }
        # Explicit, because on CPU XLA's maximum may lose a NaN, and a histogram does not count infinity.
        finite = jnp.isfinite(tokens).all(axis=(1, 2))
        row = {name: jnp.where(finite, value, jnp.nan) for name, value in row.items()}
        if slopes is not None:
            row["gradient"] = gradient_magnitude(slopes[index])
        rows.append(row)
    return {name: jnp.stack([row[name] for row in rows], axis=1) for name in rows[0]}


def _ranks(features: tuple[jax.Array, ...], *_: Any) -> dict[str, jax.Array]:
    """{name: (b, L)}; layers of one shape are decomposed in one call."""
    names = (*THRESHOLDS, "participation_ratio", "stable_rank")
    columns: list[dict[str, jax.Array]] = [{} for _ in features]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, x in enumerate(features):
        groups.setdefault(_tokens(x).shape if x.ndim > 2 else (), []).append(index)
    for shape, members in groups.items():
        if shape:
            values = _of_energies(image_energies(jnp.concatenate([_tokens(features[i]) for i in members])))
        else:
            values = dict.fromkeys(names, jnp.full(len(members) * features[members[0]].shape[0], jnp.nan))
        for name, value in values.items():
            for index, part in zip(members, jnp.split(value, len(members)), strict=True):
                columns[index][name] = part
    return {name: jnp.stack([column[name] for column in columns], axis=1) for name in names}


def _of_energies(energies: jax.Array) -> dict[str, jax.Array]:
    """(M, K) descending -> {name: (M,)}; rank: the fewest directions that hold the share, 0 of a zero image."""
    total = energies.sum(axis=1, keepdims=True)
    held = jnp.cumsum(energies, axis=1)
    ranks = {}
    for name, share in THRESHOLDS.items():
        count = jnp.where(total[:, 0] > 0, 1 + jnp.sum(held < share * total, axis=1), 0).astype(jnp.float32)
        ranks[name] = jnp.where(jnp.isfinite(total[:, 0]), count, jnp.nan)
    return {**ranks, "participation_ratio": participation_ratio(energies), "stable_rank": stable_rank(energies)}


def _means(values: dict[str, jax.Array], valid: jax.Array) -> dict[str, jax.Array]:
    """{name: (B, L)} -> {name: (L,)} over the images that count; NaN where none does."""
    count = jnp.sum(valid)
    return {
        name: jnp.sum(jnp.where(valid[:, None], x.astype(jnp.float32), 0.0), axis=0) / count
        for name, x in values.items()
    }
