"""The branch analysis of a command line: super-resolution networks, each beside itself untrained, and small images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import train, weights
from jaxkd.analysis.pipeline.branches import BranchNetwork, analyse_branches, untrained
from jaxkd.cli.networks import Wanted, name_and_args
from jaxkd.data import open_pairs
from jaxkd.data.sources.images import open_images
from jaxkd.errors import ConfigError, DataError

# Pixels. All images are cut to the size of the smallest, and one below this would leave them a handful of rings.
SMALLEST_SIDE = 16


def analyse_wanted(
    wanted: Sequence[Wanted],
    spec: str,
    *,
    small: bool = False,
    max_images: int = 0,
    variant: str = "",
    seed: int = 2026,
    skipped: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> dict[str, Any]:
    """`analyse_branches` of networks and images as they are described.

    Args:
      wanted, variant, seed: see `branch_networks`.
      spec, small, max_images, skipped: see `small_images`.
      progress: see `analyse_branches`.

    Returns:
      What `analyse_branches` returns, with more settings and with "skipped", the sentences on images left out.

    Raises:
      ConfigError, DataError, WeightSourceError, WeightMismatchError, CheckpointError: see these functions.
    """
    start, sentences = time.perf_counter(), []

    def left_out(sentence: str) -> None:
        sentences.append(sentence)
        skipped(sentence)

    networks = branch_networks(wanted, variant=variant, seed=seed)
    scale = 1 if small else shared_scale(networks)
    images = small_images(spec, scale, small=small, max_images=max_images, skipped=left_out)
    results = analyse_branches(networks, images, source=spec, progress=progress)
    settings = {
        "small_images": "as given" if small else f"large ones shrunk by {scale} (MATLAB's bicubic), or their pairs",
        "seed": seed,
        "device": f"1 x {jax.devices()[0].device_kind}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": time.perf_counter() - start,
    }
    return {**results, "settings": results["settings"] | settings, "skipped": sentences}


def branch_networks(wanted: Sequence[Wanted], *, variant: str = "", seed: int = 2026) -> list[BranchNetwork]:
    """The networks with their weights, each followed by its control: the same network untrained.

    As when pictures are enlarged, a run that kept a moving average of its weights gives that one unless told otherwise.
    Networks of the same arguments share a control, and one without weights is untrained itself.

    Args:
      wanted: super-resolution networks.
      variant: "ema" or "raw" for those that do not say it themselves; "" for the default.
      seed: of initial weights.

    Raises:
      WeightSourceError, WeightMismatchError, CheckpointError: see `tasks.load_weights`. ConfigError: a constructor
        argument that does not exist, or a step or variant of nothing.
    """
    found: list[BranchNetwork] = []
    controls: dict[Any, str] = {}
    for w in wanted:
        network = weights.build_network(*name_and_args(w))
        if not w.weights:
            if w.step:
                raise ConfigError(
                    f"--step={w.step} was given for {w.label}, which has no --weights. Only a work directory holds "
                    "several steps. Add its --weights, or leave --step out."
                )
            start = untrained(BranchNetwork(w.label, network.model, None), seed=seed)
            found.append(BranchNetwork(w.label, network.model, start.variables, start.weights))
            controls.setdefault(network.model, w.label)
            continue
        run = train.find_run(w.weights)
        which = w.variant or variant
        if not which and run is not None:
            which = "ema" if train.read_config(run).get("ema", {}).get("decay") else "raw"
        network = weights.load_weights(network, w.weights, variant=which, step=w.step)
        trained = BranchNetwork(w.label, network.model, network.variables, network.origin)
        control = controls.get(network.model)
        if control is None:
            start = untrained(trained, seed=seed)
            control = controls[network.model] = start.label
            found += [trained.beside(control), start]
        else:
            found.append(trained.beside(control))
    return found


def shared_scale(networks: Sequence[BranchNetwork]) -> int:
    """The scale of all networks.

    Raises:
      ConfigError: they have several.
    """
    scales = {int(n.model.scale): n.label for n in reversed(networks)}
    if len(scales) > 1:
        said = " and ".join(f'"{label}" by {scale}' for scale, label in sorted(scales.items()))
        raise ConfigError(
            f"The networks enlarge by different factors: {said}. A large image is shrunk by the factor of the network, "
            "so that each would see other images and spectra could not be compared. Analyse each scale by itself, or "
            "give images that all of them take as they are, with --small-images."
        )
    return next(iter(scales))


def small_images(
    spec: str,
    scale: int,
    *,
    small: bool = False,
    max_images: int = 0,
    skipped: Callable[[str], None] = lambda sentence: None,
) -> list[np.ndarray]:
    """The images that networks of one scale are given.

    Args:
      spec: large images, or pairs of large and small ones, as `data.open_pairs` takes them (its validation split).
      scale: large images are shrunk by it, by MATLAB's bicubic, as those that the networks learn from.
      small: the images of `spec` are small already and taken as they are; any folder of them.
      max_images: the first so many; 0 for all.
      skipped: called with a sentence on each image that is left out, since it cannot be read or is too small.

    Returns:
      (h, w, 3) uint8 each.

    Raises:
      DataError: nothing there, or no image is left.
    """
    if small:
        source, _ = open_images(spec)

        def read(index: int) -> np.ndarray:
            return np.asarray(source.image(index))
    else:
        source = open_pairs(spec, scale, split="val")

        def read(index: int) -> np.ndarray:
            return source.pair(index).lr

    images, reasons = [], []
    count = min(max_images or len(source), len(source))
    for index in range(count):
        try:
            image = read(index)
            if min(image.shape[:2]) < SMALLEST_SIDE:
                given = "has" if small else f"shrunk by {scale} has"
                raise DataError(
                    f'The image "{source.name(index)}" {given} {image.shape[1]} x {image.shape[0]} pixels. All images '
                    f"are cut to the size of the smallest, and below {SMALLEST_SIDE} pixels a side little of a "
                    "spectrum is left. It is left out."
                )
        except DataError as error:
            reasons.append(str(error))
            skipped(str(error))
        else:
            images.append(image)
    if not images:
        hint = "" if small else " Give small images with --small-images, or larger ones."
        raise DataError(
            f'None of the {count} images of --images="{spec}" can be used. Branches are analysed on what they do to '
            f"some.{hint} The first: {reasons[0]}"
        )
    return images
