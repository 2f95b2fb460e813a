"""One pass over a data set: features on the devices, statistics beside them, only small numbers back on the host.

A network's features stay on the devices for as long as their chunk takes (with `low_memory`, in a scratch file); only
the tokens of one layer are kept in a file, because PCA and the permutation test have to read them again. Images are
taken in chunks of fixed size (32, as published), whatever the batch size and the number of devices, and every statistic
is a number per image or an exact sum over images, added in float64 on the host: neither can change a result beyond
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from threadpoolctl import threadpool_limits

from jaxkd.analysis.activation import gradient_magnitude
from jaxkd.analysis.layer_statistics import LAYER_STATISTICS, as_tokens, layer_ranges, layer_statistics
from jaxkd.analysis.lowrank import image_energies, second_moment, small_gram
from jaxkd.analysis.pipeline.accumulators import Accumulator, Streamed
from jaxkd.analysis.pipeline.feature_cache import DeviceFeatureCache, FileFeatureCache
from jaxkd.analysis.pipeline.features import PREDICTED, FeatureSource
from jaxkd.analysis.sep import image_sep
from jaxkd.analysis.similarity import gram_linear
from jaxkd.analysis.spectrum import image_channel_spectrum, spatial_spectrum
from jaxkd.errors import ConfigError, ShapeError, TapError, did_you_mean, in_words, printable
from jaxkd.parallel import batch_devices, batch_spec, put_batch


@dataclass(frozen=True)
class StreamOptions:
    """Settings of a pass over a data set."""

    batch_size: int = 8  # images that go through the network at once; a multiple of the devices
    chunk: int = 32  # images that share an entropy range and a Gram matrix (published: 32)
    bins: int = 100  # of the entropy's histogram
    # (lowest, highest); "chunk": minimum and maximum over all layers of each chunk, as published; "exact": over
    # the whole data set, found in a pass of its own
    entropy_range: str | tuple[float, float] = "chunk"
    last: str = ""  # layer for ranks, PCA and SEP; "" is the network's own choice
    ranks: bool = True  # singular values of every layer
    gradients: bool = True  # gradient magnitudes
    grams: bool = False  # Gram matrices over the images of a chunk, for CKA
    token_grams: bool = False  # these between all tokens of a chunk, each of which is an example of CKA of its own
    low_memory: bool = False  # the features of a chunk wait in a scratch file instead of on the devices


def parse_entropy_range(text: str) -> str | tuple[float, float]:
    """`StreamOptions.entropy_range` as `--entropy-range` writes it: "chunk", "exact" or "-8:8"."""
    if text in ("chunk", "exact"):
        return text
    try:
        low, high = map(float, text.split(":"))
        if -math.inf < low < high < math.inf:
            return low, high
    except ValueError:
        pass
    raise ConfigError(
        f'--entropy-range="{text}" is not a range for the histogram. Use "chunk" (as published), "exact" (of all '
        "images, in a pass of its own), or two numbers such as -8:8."
    )


_ranges = jax.jit(layer_ranges)


def _statistics(x: jax.Array, ranges: jax.Array, *, bins: int, ranks: bool, host_eigh: bool) -> dict:
    """Everything per image of one layer; x is (b, ..., C) of one device, `ranges` (2, 2): common and own."""
    tokens = as_tokens(x)
    out = layer_statistics(x, *ranges, bins=bins)
    out |= {"finite": jnp.isfinite(tokens).all(axis=(1, 2)), "spectrum": image_channel_spectrum(x)}
    if x.ndim == 4:
        out["spatial"] = spatial_spectrum(x)
    if ranks:
        out["energies"] = small_gram(tokens) if host_eigh else image_energies(tokens)
    return out


@cache
def _compiled_statistics(
    mesh: Mesh, bins: int, ranks: bool, host_eigh: bool, names: tuple[str, ...]
) -> Callable[[jax.Array, jax.Array], dict]:
    """`_statistics` over the mesh, compiled once per shape, whatever network it belongs to; `names` are registered."""
    split = batch_spec()

    def statistics(x: jax.Array, ranges: jax.Array) -> dict:
        work = partial(_statistics, bins=bins, ranks=ranks and x.ndim > 2, host_eigh=host_eigh)
        # Under shard_map each device transforms and decomposes its own images; XLA could otherwise gather them.
        specs: dict[str, Any] = {"in_specs": (split, PartitionSpec()), "out_specs": split}
        return jax.shard_map(work, mesh=mesh, check_vma=False, **specs)(x, ranges)

    return jax.jit(statistics)


def _joined(ranges: list[jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(L, 2) ranges of micro-batches -> (L, 2) of all of them, and (2,) of all layers."""
    found = np.asarray(jax.device_get(ranges), np.float64)
    own = np.stack([found[..., 0].min(axis=0), found[..., 1].max(axis=0)], axis=1)
    return own, np.array([own[:, 0].min(), own[:, 1].max()])


@partial(jax.jit, static_argnames="of_tokens")
def _gram(parts: list[jax.Array], mask: jax.Array, *, of_tokens: bool = False) -> jax.Array:
    """Inner products between the images of a chunk: (m, m), zero where `mask` is False or a feature is not finite.

    With `of_tokens`, between its N tokens an image: (m N, m N).
    """
    x = jnp.concatenate([as_tokens(p) for p in parts])
    if of_tokens:
        mask = jnp.repeat(mask, x.shape[1])
    x = x.reshape(len(mask), -1)
    return gram_linear(x, where=mask & jnp.isfinite(x).all(axis=1))


@jax.jit
def _last_layer(x: jax.Array, mask: jax.Array, shift: jax.Array) -> tuple:
    """Tokens, moments about `shift` and SEP of the kept layer; `mask` leaves out padding and what is not finite."""
    keep = mask[:, None, None]
    tokens = jnp.where(keep, as_tokens(x), 0.0)
    moment = second_moment(jnp.where(keep, tokens - shift, 0.0))[:2]
    return tokens, moment, {name: image_sep(tokens, folded=name == "folded") for name in ("full", "folded")}


class Stream:
    """One network over one data set."""

    def __init__(
        self,
        features: FeatureSource,
        mesh: Mesh,
        options: StreamOptions,
        progress: Callable[[int, str], None] | None = None,
    ):
        if jax.process_count() > 1:
            raise ShapeError(
                f"An analysis was started in {jax.process_count()} processes. Start one process; it uses all devices "
                "of its machine."
            )
        devices = batch_devices(mesh)
        if options.batch_size % devices:
            raise ShapeError(
                f"batch_size={options.batch_size} does not split over {devices} devices. Use a multiple of {devices}."
            )
        # More than a chunk at once would be padding.
        options = replace(options, batch_size=min(options.batch_size, -(-options.chunk // devices) * devices))
        self._features, self._mesh, self._options = features, mesh, options
        self._progress = progress or (lambda done, phase: None)
        # On a CPU NumPy finds eigenvalues faster than XLA, see `accumulators.host_energies`.
        self._host_eigh = jax.default_backend() == "cpu"
        self._statistics = _compiled_statistics(
            mesh, options.bins, options.ranks, self._host_eigh, tuple(LAYER_STATISTICS)
        )
        self._layers: tuple[str, ...] = tuple(features.layers)

    def run(
        self, batches: Iterable[dict], spool: Path, *, total: int | None = None, names: Callable[[int], str] = str
    ) -> Streamed:
        """Streams all images.

        Args:
          batches: of uint8 `image`, `label` and `mask`; iterated once, or twice with an "exact" range.
          spool: file for the last layer's tokens; written anew.
          total: images in the data set; what comes after them is padding.
          names: position in the data set -> name, for images that could not be read.
        """
        options = self._options
        searched = isinstance(options.entropy_range, str)
        own, fixed = None, None if searched else np.asarray(options.entropy_range, np.float64)
        self._progress(0, "compiling, first images")
        if options.entropy_range == "exact":
            done, found = 0, []
            for images, _, count in self._chunks(batches, [], total, names):
                found += [_ranges(list(self._forward(p).values()), mask) for p, mask in self._parts(images, count)]
                done += count
                self._progress(done, "ranges")
            if found:
                own, fixed = _joined(found)
        last = options.last or getattr(self._features, "last", "")
        gathered = Accumulator(self._features.label, last, spool, gram_energies=self._host_eigh)
        held = FileFeatureCache(spool.with_suffix(".held")) if options.low_memory else DeviceFeatureCache()
        # Eigenvalues of small matrices: two at a time, each on one thread, are twice as fast as one on two.
        with ThreadPoolExecutor(2, thread_name_prefix="jaxkd-eigh") as pool, threadpool_limits(1, user_api="blas"):
            for images, labels, count in self._chunks(batches, gathered.out.broken, total, names):
                self._chunk(gathered, held, images, labels, count, fixed, own, pool)
                self._progress(gathered.out.images, "statistics")
            if isinstance(held, FileFeatureCache):
                held.close()
            return gathered.finish()

    def _chunk(
        self,
        gathered: Accumulator,
        held: DeviceFeatureCache | FileFeatureCache,
        images: np.ndarray,
        labels: np.ndarray,
        count: int,
        fixed: np.ndarray | None,
        own: np.ndarray | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        """The statistics of one chunk; `fixed` and `own` are ranges of the whole data set, where they are known."""
        options = self._options
        parts = list(self._parts(images, count))
        searching = fixed is None or own is None
        hold = options.grams or searching
        found = []
        features: dict[str, Any] | None
        for part, mask in parts if hold else ():
            features = self._forward(part)
            if searching:
                found.append(_ranges(list(features.values()), mask))
            held.put(features)
        if searching:
            own, common = _joined(found)
            fixed = common if fixed is None else fixed
        assert own is not None and fixed is not None  # given or found
        # No finite value at all: a range that does not matter, since nothing of it will be reported.
        own, fixed = np.where(np.isfinite(own), own, 0.0), np.where(np.isfinite(fixed), fixed, 0.0)
        gathered.out.ranges.append((float(fixed[0]), float(fixed[1])))
        if options.grams:
            counted = np.concatenate([mask for _, mask in parts])
            grams = [
                _gram([held.get(i, name) for i in range(len(parts))], counted, of_tokens=options.token_grams)
                for name in self._layers
            ]
            # Padding is at the end, and so are its tokens.
            gathered.out.gram_tokens = len(grams[0]) // len(counted)
            sizes = [gathered.out.gram_tokens * count for g in grams]
            gathered.out.grams.append(np.stack([np.asarray(g)[:n, :n] for g, n in zip(grams, sizes, strict=True)]))
        for index, (part, mask) in enumerate(parts):
            features = None if hold else self._forward(part)
            get: Callable[[str], Any] = partial(held.get, index) if features is None else features.__getitem__
            results, shapes = {}, {}
            for i, name in enumerate(self._layers):
                x = get(name)
                shapes[name] = tuple(x.shape[1:])
                results[name] = self._statistics(x, jnp.asarray(np.stack([fixed, own[i]]), jnp.float32))
            gathered.start(shapes)
            good = int(mask.sum())
            slopes = self._slopes(gathered.out, part, labels[index * options.batch_size :], good)
            fit = gathered.add(results, slopes, good, pool)
            x = get(gathered.out.last)
            if x.ndim > 2:
                mask[:good] = fit
                if gathered.shift is None and mask.any():
                    # A rough mean, so that a mean far larger than the spread costs no digits of the second moment.
                    gathered.shift = np.asarray(as_tokens(x)[mask].mean(axis=(0, 1)), np.float32)
                shift = np.zeros(x.shape[-1], np.float32) if gathered.shift is None else gathered.shift
                # Three results, of which mypy does not know the number.
                gathered.keep(*jax.device_get(_last_layer(x, mask, shift)), mask)  # type: ignore[call-arg]
            if hold:
                held.forget(index)
        held.clear()

    def _slopes(self, out: Streamed, part: jax.Array, labels: np.ndarray, good: int) -> dict[str, jax.Array] | None:
        """Gradient magnitude of each layer and image, where the network has gradients; counts right predictions."""
        if not self._options.gradients or self._features.gradients is None:
            return None
        targets = np.zeros(self._options.batch_size, np.int32)
        targets[:good] = labels[:good]
        answer = self._features.gradients(part, put_batch(targets, self._mesh))
        if PREDICTED in answer:
            out.correct = (out.correct or 0) + int((np.asarray(answer[PREDICTED])[:good] == labels[:good]).sum())
        return {name: gradient_magnitude(answer[name]) for name in self._layers}

    def _chunks(
        self, batches: Iterable[dict], broken: list[str], total: int | None, names: Callable[[int], str]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """(images, labels, how many) in chunks of readable images, whatever the batches were."""
        images: list[np.ndarray] = []
        labels: list[int] = []
        position = 0
        for batch in batches:
            for image, label, good in zip(batch["image"], batch["label"], batch["mask"], strict=True):
                if good:
                    images.append(image)
                    labels.append(int(label))
                elif total is None or position < total:
                    broken.append(printable(names(position)))
                position += 1
                if len(images) == self._options.chunk:
                    yield np.stack(images), np.asarray(labels, np.int32), len(images)
                    images, labels = [], []
        if images:
            yield np.stack(images), np.asarray(labels, np.int32), len(images)

    def _parts(self, images: np.ndarray, count: int) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Micro-batches on the devices, the last one filled up with black images, and which images count."""
        size = self._options.batch_size
        for start in range(0, count, size):
            part = images[start : start + size]
            mask = np.arange(size) < len(part)
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            yield put_batch(part, self._mesh), mask

    def _forward(self, images: Any) -> dict[str, jax.Array]:
        """Features in depth order."""
        answer = self._features.forward(images)
        if not self._layers:
            self._layers = tuple(answer)
        missing = [name for name in self._layers if name not in answer]
        if missing:
            raise TapError(
                f'{self._features.label} answered without the layer "{missing[0]}".{did_you_mean(missing[0], answer)} '
                f"It has: {in_words(answer)}."
            )
        return {name: answer[name] for name in self._layers}
