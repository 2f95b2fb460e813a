"""Fourier analysis of the branches of super-resolution networks over a set of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd import __version__
from jaxkd.analysis.branches import CUT, SMALLEST_GRID, branch_statistics, summarise_branches
from jaxkd.analysis.pipeline.run import clear_report
from jaxkd.data import open_pairs
from jaxkd.data.sources.images import open_images
from jaxkd.errors import ConfigError, DataError, ShapeError, printable
from jaxkd.models.sr_base import RGB, Upscaler

PyTree = Any
Progress = Callable[[str, str, int, int], None]  # label, phase, done, total
# Pixels. All images are cut to the size of the smallest, and one below this would leave them a handful of rings.
SMALLEST_SIDE = 16
LARGEST_SIDE = 128  # of the crop: 31 feature maps of it take 130 MB in MDBN


@dataclass(frozen=True)
class BranchNetwork:
    """A super-resolution network whose branches are analysed."""

    label: str  # what tables and figures call it
    model: nn.Module  # an MDBN, merged or not, or a network of one branch per block (EDSR)
    variables: PyTree  # `{"params": ...}`, or None for initial weights (see `with_controls`)
    weights: str = ""  # where they came from, in words
    control: str = ""  # label of the untrained network that results are read against, or ""


def untrained(network: BranchNetwork, *, seed: int = 2026) -> BranchNetwork:
    """The same network with initial weights: what branches differ by before they have learnt anything."""
    image = jnp.zeros((1, SMALLEST_GRID, SMALLEST_GRID, RGB))
    variables = jax.jit(network.model.init)(jax.random.key(seed, impl="rbg"), image)
    label, weights = f"{network.label}, untrained", f"random, seed {seed}"
    return replace(network, label=label, variables=variables, weights=weights, control="")


def with_controls(networks: Sequence[BranchNetwork], *, seed: int = 2026) -> list[BranchNetwork]:
    """Each network followed by its control: the same network untrained.

    Networks of the same arguments share a control, and one without weights is an untrained network itself.
    """
    found: list[BranchNetwork] = []
    controls: dict[nn.Module, str] = {}
    for network in networks:
        start = untrained(network, seed=seed)
        if network.variables is None:
            found.append(replace(start, label=network.label))
            controls.setdefault(network.model, network.label)
        elif network.model in controls:
            found.append(replace(network, control=controls[network.model]))
        else:
            controls[network.model] = start.label
            found += [replace(network, control=start.label), start]
    return found


def write_branch_analysis(
    networks: Sequence[BranchNetwork],
    spec: str,
    out: str | Path,
    *,
    small: bool = False,
    max_images: int = 0,
    seed: int = 2026,
    figures: bool = True,
    command: str = "",
    skipped: Callable[[str], None] = lambda sentence: None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Analyses the branches of networks and of their untrained controls, and writes a report.

    Args:
      networks: see `with_controls`, as for `seed`.
      spec, small, max_images, skipped: see `small_images`.
      out: folder, which exists; an earlier report in it is replaced.
      figures: also draw figures and write report.html.
      command: the report's own command line.
      progress: called with (label, phase, done, total).

    Returns:
      The contents of results.json: `analyse_branches`, with more settings, "skipped" (sentences on images that were
      left out) and "sentences" (the results in words).
    """
    from jaxkd.report.branch_figures import branch_sentences
    from jaxkd.report.branch_report import write_branches

    start, left_out = time.perf_counter(), []

    def leave_out(sentence: str) -> None:
        left_out.append(sentence)
        skipped(sentence)

    scale = 1 if small else shared_scale(networks)
    images = small_images(spec, scale, small=small, max_images=max_images, skipped=leave_out)
    results = analyse_branches(with_controls(networks, seed=seed), images, source=spec, progress=progress)
    results["settings"] |= {
        "small_images": "as given" if small else f"large ones shrunk by {scale} (MATLAB's bicubic), or their pairs",
        "seed": seed,
        "device": f"1 x {jax.devices()[0].device_kind}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": time.perf_counter() - start,
        "command": command,
    }
    results["skipped"] = left_out
    results = printable(results)
    results["sentences"] = branch_sentences(results)
    clear_report(Path(out))
    write_branches(results, out, figures=figures)
    return results


def shared_scale(networks: Sequence[BranchNetwork]) -> int:
    """The scale of all networks."""
    scales = {int(n.model.scale): n.label for n in reversed(networks)}
    if len(scales) > 1:
        scaled = " and ".join(f'"{label}" by {scale}' for scale, label in sorted(scales.items()))
        raise ConfigError(
            f"The networks enlarge by different factors: {scaled}. Large images would be shrunk to different sizes for "
            "each. Analyse each scale by itself, or give small images with --small-images."
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
    """The small images that networks of one scale take.

    Args:
      spec: large images, or pairs of large and small ones, as `data.open_pairs` takes them (its validation split).
      scale: large images are shrunk by it, by MATLAB's bicubic, as those that the networks learn from.
      small: the images of `spec` are small already and taken as they are; any folder of them.
      max_images: the first so many; 0 for all.
      skipped: called with a sentence on each image that is left out, since it cannot be read or is too small.

    Returns:
      (h, w, 3) uint8 each.
    """
    source: Any  # of images or of pairs
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
                    f'The image "{source.name(index)}" {given} {image.shape[1]} x {image.shape[0]} pixels, and a '
                    f"spectrum needs {SMALLEST_SIDE} a side. It is left out."
                )
        except DataError as error:
            reasons.append(str(error))
            skipped(str(error))
        else:
            images.append(image)
    if not images:
        hint = "" if small else " Give small images with --small-images, or larger ones."
        raise DataError(f'None of the {count} images of --images="{spec}" can be used.{hint} The first: {reasons[0]}')
    return images


def analyse_branches(
    networks: Sequence[BranchNetwork],
    images: Sequence[np.ndarray],
    *,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Spectra of all branches and block outputs, one image at a time.

    `analysis.branches` has the definitions; those of the MDBN paper are not published.

    Args:
      networks: labels must differ; one scale or several, since all spectra are of the small image's grid.
      images: small images, (h, w, 3) or grey (h, w) uint8, of any sizes: each gives the crop in its middle that has the
        smallest height and the smallest width of all.
      source: of the images, in words.
      progress: called with (label, phase, done, total).

    Returns:
      `{"settings": ..., "networks": [...]}` of plain Python numbers; each network has label, weights, control (a label
      or ""), name (of its class), scale, parameters (their number) and what `summarise_branches` returns.
    """
    labels = [n.label for n in networks]
    if not networks or len(set(labels)) < len(labels):
        raise ConfigError(f"The networks are called {labels}. Give at least one, and each a --label of its own.")
    for network in networks:
        if not isinstance(network.model, Upscaler):
            raise ConfigError(
                f'"{network.label}" is a {type(network.model).__name__}, not a super-resolution network. Choose an '
                "mdbn_x* or edsr_x*."
            )
    crops = common_crops(images)
    found, compiled = [], {}
    for network in networks:
        taps = network.model.tap_names()
        if network.model not in compiled:  # a network and its untrained control are one program
            compiled[network.model] = jax.jit(partial(_features, network.model, taps))
        done = []
        for i, crop in enumerate(crops):
            with jax.default_matmul_precision("highest"):
                features = compiled[network.model](network.variables, crop[None])
                # One program for each branch, rather than one of all branches, which takes long to compile. In order of
                # depth: JAX sorts a dict by name.
                values = [branch_statistics(features.pop(name)) for name in taps]
            done.append(dict(zip(taps, jax.device_get(values), strict=True)))
            if progress is not None:
                progress(network.label, "branches", i + 1, len(crops))
        head = {
            "label": network.label,
            "weights": network.weights,
            "control": network.control,
            "name": type(network.model).__name__,
            "scale": int(network.model.scale),
            "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(network.variables)),
        }
        found.append(head | summarise_branches(done))
    settings = {
        "images": len(crops),
        "source": source,
        "crop": list(crops[0].shape[:2]),
        "cut": CUT,
        "window": "hann",
        "precision": "highest",
        "versions": {"jaxkd": __version__, "jax": jax.__version__},
    }
    return {"settings": settings, "networks": found}


def _features(model: nn.Module, taps: tuple[str, ...], variables: PyTree, image: jax.Array) -> dict[str, jax.Array]:
    """(1, h, w, 3) uint8 -> the features; what the network does behind them is not computed."""
    answer: Any = model.apply(variables, image.astype(jnp.float32) / 255, taps=taps)
    return answer[1]


def common_crops(images: Sequence[np.ndarray], *, side: int = LARGEST_SIDE) -> list[np.ndarray]:
    """The middles of `images`, all of one size: the smallest height and width among them, at most `side`.

    Returns:
      (H, W, 3) uint8 each.
    """
    if not len(images):
        raise ShapeError("There are no images. Give a folder of images.")
    for i, image in enumerate(images):
        right = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == RGB)
        if not right or image.dtype != np.uint8 or min(image.shape[:2]) < SMALLEST_GRID:
            raise ShapeError(
                f"Image {i} is an array of shape {image.shape} and type {image.dtype}. Crops are cut from 8-bit RGB or "
                f"grey images of {SMALLEST_GRID} pixels a side or more. Convert it, or leave it out."
            )
    if side < SMALLEST_GRID:
        raise ShapeError(f"A crop of {side} pixels has no spectrum. Give a larger side.")
    height, width = (min(side, *(image.shape[axis] for image in images)) for axis in (0, 1))
    crops = []
    for image in images:
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = image[top : top + height, left : left + width]
        crops.append(np.repeat(crop[..., None], RGB, axis=-1) if crop.ndim == 2 else crop)
    return crops
