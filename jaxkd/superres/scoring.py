"""PSNR and SSIM of super-resolution networks on whole images, beside those of MATLAB's bicubic."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import data, metrics, parallel, weights
from jaxkd.data.ordered_map import ordered_map
from jaxkd.errors import ConfigError, DataError, ShapeError
from jaxkd.superres.benchmark import measure_cost
from jaxkd.superres.tiling import Enlarger

KEPT_PICTURES = 3  # results of the first set that `PairScorer` keeps for TensorBoard
NAMED_FILES = 20  # unreadable files that an error names
CROPS = {"scale": None, "4": 4}  # border by name: the field's convention; the published MDBN files at every scale
GENERIC_FOLDERS = {"HR", "val", "train", "/"}  # their names do not tell which set it is
Progress = Callable[[int], None]


def named_sets(entries: str | Iterable[str], option: str) -> dict[str, str]:
    """`("Set5=/data/Set5", "/data/B100/HR")` -> {"Set5": "/data/Set5", "B100": "/data/B100/HR"}."""
    named: dict[str, str] = {}
    for entry in (entries,) if isinstance(entries, str) else entries:
        name, folder = split_entry(str(entry))
        name = name or folder_title(folder)
        if name in named:
            raise ConfigError(
                f'{option} names two sets "{name}": "{named[name]}" and "{folder}". Give each a name of its own, as '
                "NAME=FOLDER."
            )
        named[name] = folder
    return named


def split_entry(entry: str) -> tuple[str, str]:
    """`"Set5=/data/Set5"` -> ("Set5", "/data/Set5"); ("", entry) where there is no name before a folder.

    A name has no "/" and no "?", so that "/data/a=b" and "Set5?lr=LR" are folders; so is whatever exists as one.
    """
    found = re.fullmatch(r"([^/?=]+)=(.+)", entry)
    return ("", entry) if found is None or Path(entry).is_dir() else (found[1].strip(), found[2])


def folder_title(folder: str) -> str:
    """Name of a folder without one: "/data/Set5/HR" is "Set5", "embedded:photos" is "photos"."""
    first = folder.split("?lr=")[0].split(",")[0]
    if ":" in first and not Path(first).exists():
        return first.rpartition(":")[2] or "val"
    return next((part for part in reversed(Path(os.path.abspath(first)).parts) if part not in GENERIC_FOLDERS), "val")


def _read_pairs(name: str, source: data.PairSource) -> list[data.Pair]:
    """Every pair of a set. Raises DataError that names the files which cannot be read."""

    def read(index: int) -> data.Pair | DataError:
        try:
            return source.pair(index)
        except DataError as error:
            return error

    pairs = list(ordered_map(read, range(len(source))))
    broken = [str(pair) for pair in pairs if isinstance(pair, DataError)]
    if broken:  # all of them were read, so that the error can name more than one
        more = f" | and {len(broken) - NAMED_FILES} more" if len(broken) > NAMED_FILES else ""
        raise DataError(
            f'{len(broken)} of {len(source)} images of the set "{name}" cannot be read, and a mean without them would '
            f"be of another set. Repair or remove them. {' | '.join(broken[:NAMED_FILES])}{more}"
        )
    return pairs


class PairScorer:
    """Scores a network on whole images, by tiles that give the pixels of one pass.

    Several hosts divide the images among them, and all must call it; every image counts once.

    Args:
      model: the network.
      sets: name -> pairs.
      crop: border left out of PSNR and SSIM, in pixels of the large image.
      luma: compare BT.601 luma instead of RGB.

    Attributes:
      names: metrics, `<set>/psnr_y_crop4` and so on; the first is what "best" means.
      bicubic: the same metrics of MATLAB's bicubic, once computed.
      images: name -> how many the set has.
    """

    def __init__(self, model: Any, sets: dict[str, data.PairSource], *, crop: int, luma: bool):
        self._model, self._crop, self._luma = model, crop, luma
        self._kinds = {kind: metrics.name_of(kind, crop, luma) for kind in ("psnr", "ssim")}
        self.names = tuple(f"{name}/{kind}" for name in sets for kind in self._kinds.values())
        self.bicubic: dict[str, float] = {}
        self.pictures: list[tuple[str, np.ndarray]] = []
        self._enlarger: Enlarger | None = None
        self._pairs = {name: _read_pairs(name, source) for name, source in sets.items()}
        self.images = {name: len(pairs) for name, pairs in self._pairs.items()}

    def _scores(
        self, enlarge: Callable[[np.ndarray], np.ndarray], progress: Progress, keep: bool = False
    ) -> dict[str, float]:
        out: dict[str, float] = {}
        done = 0
        for name, pairs in self._pairs.items():
            rows = []
            for pair in pairs[jax.process_index() :: jax.process_count()]:  # each host its own
                made = enlarge(pair.lr)
                try:
                    rows.append([getattr(metrics, k)(made, pair.hr, self._crop, self._luma) for k in self._kinds])
                except ShapeError as error:
                    raise DataError(f'"{pair.name}" cannot be scored. {error}') from None
                if keep and len(self.pictures) < KEPT_PICTURES:
                    self.pictures.append((f"{name}/{Path(pair.name).stem}", made))
                done += 1
                progress(done)
            total = np.sum(rows, axis=0) if rows else np.zeros(len(self._kinds))
            means = parallel.sum_over_hosts(total) / len(pairs)
            out |= dict(zip((f"{name}/{k}" for k in self._kinds.values()), means.tolist(), strict=True))
        return out

    def __call__(
        self, params: Any, *, keep_pictures: bool = False, progress: Progress = lambda done: None
    ) -> dict[str, float]:
        """`params` of the network -> {metric: mean over the images of its set}, each of which counts the same.

        `keep_pictures` keeps the first results of this host in `pictures`.
        """
        variables = {"params": params}
        if self._enlarger is None:
            self._enlarger = Enlarger(self._model, variables)
        self._enlarger.use(variables)
        self.pictures = []
        return self._scores(self._enlarger, progress, keep_pictures)

    def compare_bicubic(self, progress: Progress = lambda done: None) -> dict[str, float]:
        """MATLAB's bicubic on the same pairs."""
        if not self.bicubic:
            self.bicubic = self._scores(lambda lr: data.imresize(lr, self._model.scale), progress)
        return self.bicubic


def score_network(
    network: weights.Network,
    sets: Mapping[str, data.PairSource],
    *,
    crop: int,
    luma: bool = True,
    cost: bool = False,
    progress: Callable[[str, str, int, int], None] = lambda label, phase, done, total: None,
) -> dict[str, Any]:
    """Scores of a network and of bicubic on whole images, and what the network costs.

    Args:
      network: a super-resolution network with its weights.
      sets: name -> pairs.
      crop, luma: see `PairScorer`.
      cost: also measure what the network costs.
      progress: called with (label, phase, done, total).

    Returns:
      `metrics` and `bicubic`: `{"Set5/psnr_y_crop4": dB, "Set5/ssim_y_crop4": ...}`, means over the images of a set;
      `images` of each set and `images_per_second`; with `cost` also `cost`, as `measure_cost` returns it.
    """
    name = network.spec.name
    model, variables = weights.for_inference(network.model, network.variables)
    scorer = PairScorer(model, dict(sets), crop=crop, luma=luma)
    images = sum(scorer.images.values())
    bicubic = scorer.compare_bicubic(lambda done: progress("bicubic", "images", done, images))
    progress(name, "images", 0, images)
    start = time.perf_counter()
    scores = scorer(variables["params"], progress=lambda done: progress(name, "images", done, images))
    result = {
        "images": scorer.images,
        "metrics": _finite(scores),
        "bicubic": _finite(bicubic),
        "images_per_second": images / max(time.perf_counter() - start, 1e-9),
    }
    if cost:
        result["cost"] = measure_cost(
            network.model, network.variables, lambda done, of: progress(name, "timed calls", done, of)
        )
    return result


def _finite(scores: dict[str, float]) -> dict[str, Any]:
    """JSON has no infinity, which is the PSNR of equal pictures: a text, as in metrics.jsonl."""
    return {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}
