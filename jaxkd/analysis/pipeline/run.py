"""Several networks over the same images: one pass each, then what they have in common."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd import __version__, data
from jaxkd.analysis.pipeline.accumulators import Streamed
from jaxkd.analysis.pipeline.comparison import compare
from jaxkd.analysis.pipeline.dataset_pass import Stream, StreamOptions
from jaxkd.analysis.pipeline.features import FeatureSource
from jaxkd.analysis.pipeline.summary import SummaryOptions, summarise
from jaxkd.errors import DataError

Progress = Callable[[str, str, int, int], None]  # model, phase, done, total


@dataclass(frozen=True)
class AnalysisOptions:
    """What an analysis computes; see `StreamOptions` and `SummaryOptions` for the rest.

    Attributes:
      stream: of the pass.
      summary: of PCA, SEP, permutations and null models.
      compare: the first network with each other one.
      crop_pct: of the evaluation crop; 0 is each network's own.
      interpolation: likewise; "" is each network's own.
      max_broken: share of images that may be unreadable.
    """

    stream: StreamOptions = field(default_factory=StreamOptions)
    summary: SummaryOptions = field(default_factory=SummaryOptions)
    compare: bool = True
    crop_pct: float = 0.0
    interpolation: str = ""
    max_broken: float = 1.0


def analyse(
    networks: Sequence[FeatureSource],
    source: Any,
    mesh: Mesh,
    options: AnalysisOptions | None = None,
    *,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every statistic of `networks` over the images of `source`.

    Args:
      networks: what to analyse; the first is the teacher of the comparisons. Labels must differ.
      source: images (a `data.Source`).
      mesh: where batches are split.
      options: what is computed.
      scratch: folder for the last layers' tokens (4 N C bytes an image and network), deleted afterwards; None is the
        system's.
      progress: called with (label, phase, done, total).

    Returns:
      `{"settings": ..., "models": [...], "comparisons": [...], "saliency": []}` of plain Python numbers, None where a
      number does not exist, with the reason in words in "notes".

    Raises:
      DataError: no image could be read.
    """
    begin = time.perf_counter()
    options = options or AnalysisOptions()
    progress = progress or (lambda label, phase, done, total: None)
    pair = options.compare and len(networks) > 1
    stream_options = replace(options.stream, grams=options.stream.grams or pair)
    models: list[dict[str, Any]] = []
    passes: list[Streamed] = []
    with tempfile.TemporaryDirectory(prefix="jaxkd-tokens-", dir=scratch) as folder:
        for index, network in enumerate(networks):
            batches = _batches(network, source, options)
            stream = Stream(
                network,
                mesh,
                stream_options,
                progress=lambda done, phase, label=network.label: progress(label, phase, done, len(source)),
            )
            tokens = Path(folder) / f"{index}.tokens"
            streamed = stream.run(batches, tokens, total=len(source), names=source.name)
            model = summarise(
                streamed,
                options.summary,
                progress=lambda done, total, phase, label=network.label: progress(label, phase, done, total),
            )
            models.append({**_about(network), **model})
            models[-1]["gradient_of"] = None if "gradient" not in model["per_layer"] else network.gradient_of
            passes.append(streamed)
        comparisons = []
        for index in range(1, len(networks)) if pair else ():
            progress(networks[index].label, "comparison", index, len(networks) - 1)
            found = compare(passes[0], passes[index], energy=0.99)
            comparisons.append({"teacher": networks[0].label, "student": networks[index].label, **found})
        for streamed in passes:
            del streamed.spool  # the map is closed before its folder goes
    settings = _settings(stream_options, options, passes, mesh) | {"seconds": time.perf_counter() - begin}
    return {"settings": settings, "models": models, "comparisons": comparisons, "saliency": []}


def _batches(network: FeatureSource, source: Any, options: AnalysisOptions) -> Any:
    preprocess = data.eval_preprocess(network, network.image_size, options.crop_pct, options.interpolation)
    if not len(source):
        raise DataError("There are no images to analyse. Every statistic is over images. Give at least one.")
    return data.eval_batches(source, preprocess, batch_size=options.stream.batch_size, max_broken=options.max_broken)


def _about(network: FeatureSource) -> dict[str, Any]:
    return {
        "label": network.label,
        "name": network.name,
        "weights": network.origin,
        "parameters": network.parameters,
        "image_size": list(network.image_size),
    }


def _settings(stream: StreamOptions, options: AnalysisOptions, passes: list[Streamed], mesh: Mesh) -> dict[str, Any]:
    return {
        "images": max(p.images for p in passes),
        "seed": options.summary.seed,
        "chunk": stream.chunk,
        "batch_size": stream.batch_size,
        "bins": stream.bins,
        "entropy_range": stream.entropy_range,
        "range": list(stream.value_range) if stream.value_range else None,
        "permutations": options.summary.permutations,
        "bootstrap": options.summary.bootstrap,
        "device": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "precision": "highest",
        "versions": {"jaxkd": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
