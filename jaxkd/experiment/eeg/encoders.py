"""Encoders of contrastive runs for the analysis of features, over words that none of them was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd import train
from jaxkd.analysis.pipeline import FeatureSource
from jaxkd.analysis.pipeline.passages import Passages, cut_passages, passage_features
from jaxkd.errors import ConfigError, DataError
from jaxkd.experiment.eeg.decode import Opened, open_run
from jaxkd.weights.network import Network


def open_encoders(
    given: Sequence[Any],
    mesh: Mesh,
    *,
    load: Callable[[Any], Network],
    source: str = "",
    words: int = 32,
    most: int = 0,
    layers: tuple[str, ...] = (),
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[FeatureSource], Passages, str]:
    """Networks of an analysis, and the passages that all of them read.

    The passages are of the readings that are in the test part of every run. A network that is no run, such as one
    without weights, reads them as the first run does.

    Args:
      given: `cli.networks.NetworkArgs`; one at least is a run.
      mesh: devices.
      load: the network of one that is no run.
      source: recordings; "" for those of the runs.
      words: of a passage.
      most: the first so many passages; 0 is all.
      layers: taps or patterns; () for all.
      seed: of random weights.
      on_progress: `(bytes read, bytes, what)`.

    Returns:
      networks, passages, and the name of the recordings.

    Raises:
      ConfigError: no network is a run.
      DataError: the runs read other words, or their test parts have no reading in common.
      CheckpointError, and what `open_run` raises.
    """
    opened: dict[int, Opened] = {}
    for i, network in enumerate(given):
        if network.weights and train.find_run(network.weights) is not None:
            same = next((o.eeg_data.corpus for j, o in opened.items() if given[j].weights == network.weights), None)
            opened[i] = open_run(
                network.weights,
                changes={"data.source": source} if source else {},
                variant=network.variant,
                step=network.step,
                corpus=same,
                on_progress=on_progress,
            )
    if not opened:
        raise ConfigError(
            f"{given[0].label} is no work directory, and only a run of configs/brain_cliplm.py says which recordings "
            "and which readings are to be analysed. Give its work directory with --weights; others may stand beside it."
        )
    first = next(iter(opened.values()))
    _require_same_words(list(opened.values()), [given[i].label for i in opened])
    usable = reduce(np.logical_and, [_usable(o) for o in opened.values()])
    readings = reduce(np.intersect1d, [o.eeg_data.split.test for o in opened.values()])
    if not len(readings):
        raise DataError(
            f"The test parts of {' and '.join(given[i].label for i in opened)} have no reading in common, and only "
            "readings that no network was trained on are analysed. Analyse them in two calls, each with its own --out."
        )
    networks = []
    for i, network in enumerate(given):
        run = opened.get(i, first)
        networks.append(
            passage_features(
                _network(run) if i in opened else load(network),
                run.eeg_data.corpus,
                mesh,
                label=network.label,
                layers=layers,
                features=run.eeg_data.features,
                max_words=run.config.eeg.max_words,
                seed=seed,
            )
        )
    passages = cut_passages(first.eeg_data.corpus, readings, length=words, usable=usable, most=most, called="test")
    return networks, passages, first.config.data.source


def _network(opened: Opened) -> Network:
    """The trained network of a run."""
    params = jax.device_get(opened.fitted.params["student"])
    return replace(opened.fitted.task.student, variables={"params": params}, origin=opened.origin)


def _usable(opened: Opened) -> np.ndarray:
    """(V,) bool: words that a run's network reads."""
    corpus, features = opened.eeg_data.corpus, opened.eeg_data.features
    place = np.arange(len(corpus.word)) - corpus.start[corpus.reading_of_word]
    finite = corpus.usable if features is None else np.isfinite(features).all(axis=1)
    return finite & (place < opened.config.eeg.max_words)


def _require_same_words(runs: Sequence[Opened], labels: Sequence[str]) -> None:
    """Raises DataError where the corpora hold other readings or words."""
    for run, label in zip(runs[1:], labels[1:], strict=True):
        if run.eeg_data.corpus.fingerprint != runs[0].eeg_data.corpus.fingerprint:
            raise DataError(
                f"{label} reads other words ({run.config.data.source}) than {labels[0]} "
                f"({runs[0].config.data.source}), and networks are compared word by word. Analyse them in two calls, "
                "each with its own --out."
            )
