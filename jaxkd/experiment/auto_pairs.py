"""`distill.pairs="auto"`: the layers are chosen from the teacher's spectrum once, when a run starts.

The rule is in `jaxkd/analysis/layer_selection.py`. The chosen pairs go into the resolved config and, with the reason,
into `pairs.json`, so that a continued run takes the same pairs and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, distill, models, parallel, tasks, weights
from jaxkd.analysis.spectrum import image_channel_spectrum
from jaxkd.config.fields import change
from jaxkd.data.files import write_atomic
from jaxkd.errors import CheckpointError, ConfigError, DataError, ShapeError
from jaxkd.experiment.workdir import has_checkpoints

AUTO = "auto"
IMAGES = 32  # as in the published analysis, whose 32 are the first ones, all of one class
FILE = "pairs.json"


def resolve_auto_pairs(
    config: ConfigDict,
    workdir: Path | None,
    source: data.Source,
    build: Callable[[ConfigDict], tasks.ClassificationTask],
    console: Console | None,
) -> tuple[ConfigDict, dict[str, Any] | None]:
    """The config with pairs of layers in the place of "auto".

    A run that has checkpoints takes the pairs that it started with. A new one builds and checks everything else first,
    then measures the teacher: its own normalisation, fp32 at highest precision, whatever the run computes in.

    Args:
      config: resolved, but for `distill.pairs`.
      workdir: of the run; only read; None for no run.
      source: the validation split. Labels are not read.
      build: config -> the task with its weights.
      console: where the choice and its reason go; None is silent.

    Returns:
      The config, locked, and what `save_pairs` writes: pairs, reason and profile; the same config and None if it is not
      "auto".
    """
    if config.distill.pairs != AUTO:
        return config, None
    if workdir is not None and (workdir / FILE).exists() and has_checkpoints(workdir):
        choice, origin = _read(workdir / FILE), f"as chosen when the run started ({workdir / FILE})"
    else:
        choice = _choose(config, source, build)
        origin = f"from {choice['images']} validation images" if choice["images"] else "from their stages"
    if console is not None and parallel.is_main_host():
        taps = ", ".join(f"{student} <- {teacher}" for student, teacher in choice["taps"])
        for line in (f"layer pairs {origin}: {taps}", choice["reason"], *choice["warnings"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    pairs = tuple((int(student), int(teacher)) for student, teacher in choice["pairs"])
    return change(config, {"distill.pairs": pairs}).lock(), choice


def save_pairs(choice: dict[str, Any] | None, workdir: Path) -> None:
    """Writes `choice` into a work directory that the run has claimed, or removes what an abandoned start left there."""
    path = workdir / FILE
    if not parallel.is_main_host():
        return
    if choice is not None:
        write_atomic(path, json.dumps(choice, indent=2))
    elif not has_checkpoints(workdir):
        path.unlink(missing_ok=True)


def intensity_profile(
    network: weights.Network, variables: Any, images: np.ndarray, taps: tuple[str, ...]
) -> np.ndarray:
    """Model-wise intensity of a network (SpectralKD, arXiv 2412.19055, equation of L[l]).

    Args:
      network: its module and constants of normalisation; computed in fp32 at highest precision.
      variables: `{"params": ...}`.
      images: (B, H, W, 3) uint8.
      taps: L names.

    Returns:
      (L,) float64, the mean over images, positions and frequencies of |FFT over channels| / C.
    """
    model = network.model.clone(dtype=jnp.float32)

    @jax.jit
    def intensities(variables: Any, images: jax.Array) -> jax.Array:  # (B, L)
        x = data.normalise(images, network.spec.mean, network.spec.std)
        _, features = model.apply(variables, x, train=False, taps=taps)
        return jnp.stack([image_channel_spectrum(features[t]).mean(axis=-1) for t in taps], axis=1)

    with jax.default_matmul_precision("highest"):
        profile = np.asarray(intensities(variables, images), np.float64).mean(axis=0)
    # Hosts of different hardware would otherwise be free to round to different sides of the threshold.
    return profile if jax.process_count() == 1 else np.float64(multihost_utils.broadcast_one_to_all(profile))


def _choose(config: ConfigDict, source: data.Source, build: Callable) -> dict[str, Any]:
    try:
        task = build(change(config, {"distill.pairs": "first+last"}).lock())
    except ShapeError as error:
        raise ConfigError(
            f'distill.pairs="{AUTO}" is not possible for these networks, whose ends cannot be compared. {error}'
        ) from None
    teacher = task.teacher
    taps = [models.tap_names(network.model) for network in (task.student, teacher)]
    layers, profile, used = distill.profile_taps(taps[1]), None, []
    if layers:
        images, used = _images(config, source, teacher)
        profile = [float(v) for v in intensity_profile(teacher, task.teacher_variables, images, layers)]
    pairs = distill.resolve_pairs(AUTO, *taps, profile=profile)  # raises where the profile does not support it
    found = distill.suggest(*taps, profile)
    warnings = []
    if teacher.variables is None:
        warnings.append(
            "The teacher's weights are random. The profile of an untrained network says little of a trained one's."
        )
    return {
        "pairs": [list(pair) for pair in found.pairs],
        "taps": [list(pair) for pair in pairs],
        "reason": found.reason,
        "warnings": warnings,
        "threshold": found.threshold,
        "first": found.first,
        "last": found.last,
        "layers": list(layers),
        "profile": profile,
        "images": len(used),
        "indices": used,
        "source": config.data.source,
        "teacher": teacher.spec.name,
        "weights": teacher.origin,
        "teacher_fingerprint": task.metadata()["teacher_fingerprint"],
    }


def _images(config: ConfigDict, source: data.Source, teacher: weights.Network) -> tuple[np.ndarray, list[int]]:
    """(B, H, W, 3) uint8 and their numbers: evenly over the split, since a folder's first ones are all of one class."""
    preprocess = data.eval_preprocess(teacher.spec, teacher.image_size, config.eval.crop_pct, config.eval.interpolation)
    images, used, problem = [], [], None
    for index in dict.fromkeys(i * len(source) // IMAGES for i in range(IMAGES)):
        try:
            images.append(preprocess(source.image(index)))
            used.append(index)
        except DataError as error:
            problem = error
    if not images:
        raise DataError(
            f'distill.pairs="{AUTO}" found no readable image among the {len(source)} of the validation split. Repair '
            f"the data, or give the pairs by number. Of the last one: {problem}"
        )
    return np.stack(images), used


def _read(path: Path) -> dict[str, Any]:
    try:
        choice = json.loads(path.read_text())
        [(int(student), int(teacher)) for student, teacher in choice["pairs"]]
        return {"taps": [], "reason": "", "warnings": []} | choice
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'"{path}" cannot be read ({type(error).__name__}: {" ".join(str(error).split())}). Restore it, or write '
            f'the pairs of config.json in the place of distill.pairs="{AUTO}".'
        ) from None
