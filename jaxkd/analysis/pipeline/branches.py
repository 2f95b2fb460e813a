"""Fourier analysis of the branches of super-resolution networks over a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd import __version__
from jaxkd.analysis.branches import CUT, SMALLEST_GRID, branch_statistics, summarise_branches
from jaxkd.errors import ConfigError, ShapeError
from jaxkd.models.sr_base import RGB, Upscaler

PyTree = Any
LARGEST_SIDE = 128  # of the crop: 31 feature maps of it take 130 MB in MDBN


@dataclass(frozen=True)
class BranchNetwork:
    """A super-resolution network whose branches are analysed.

    Attributes:
      label: what tables and figures call it.
      model: an MDBN, merged or not, or a network of one branch per block (EDSR).
      variables: `{"params": ...}`.
      weights: where they came from, in words.
      control: label of the untrained network that results are read against, or "".
    """

    label: str
    model: nn.Module
    variables: PyTree
    weights: str = ""
    control: str = ""

    def beside(self, control: str) -> BranchNetwork:
        """The same, to be read against the network called `control`."""
        return replace(self, control=control)


def untrained(network: BranchNetwork, *, seed: int = 2026) -> BranchNetwork:
    """The same network with initial weights: what branches differ by before they have learnt anything."""
    image = jnp.zeros((1, SMALLEST_GRID, SMALLEST_GRID, RGB))
    variables = jax.jit(network.model.init)(jax.random.key(seed, impl="rbg"), image)
    label, weights = f"{network.label}, untrained", f"random, seed {seed}"
    return replace(network, label=label, variables=variables, weights=weights, control="")


def analyse_branches(
    networks: Sequence[BranchNetwork],
    images: Sequence[np.ndarray],
    *,
    cut: float = CUT,
    window: bool = True,
    side: int = LARGEST_SIDE,
    source: str = "",
    progress: Callable[[str, str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Spectra of all branches and block outputs, one image at a time; `analysis.branch_tables` writes them down.

    The definitions are ours (see `analysis.branches`): how the MDBN paper made its analysis is unknown.

    Args:
      networks: labels must differ; one scale or several, since all spectra are of the small image's grid.
      images: small images, (h, w, 3) or grey (h, w) uint8, of any sizes: each gives the crop in its middle that has the
        smallest height and the smallest width of all.
      cut: in cycles per pixel, between low and high frequencies.
      window: see `analysis.branches`.
      side: the crop has at most so many pixels a side.
      source: of the images, in words.
      progress: called with (label, phase, done, total).

    Returns:
      `{"settings": ..., "networks": [...]}` of plain Python numbers; each network has label, weights, control (a label
      or ""), name (of its class), scale, parameters (their number) and what `summarise_branches` returns.

    Raises:
      ConfigError: no super-resolution network, equal labels. ShapeError: no images, or one that is too small.
    """
    labels = [n.label for n in networks]
    if not networks or len(set(labels)) < len(labels):
        raise ConfigError(
            f"The networks are called {labels}. Results are told apart by their labels, and there must be one network "
            "at least. Give each a --label of its own."
        )
    for network in networks:
        if not isinstance(network.model, Upscaler):
            raise ConfigError(
                f'"{network.label}" is a {type(network.model).__name__}. Branches are analysed in super-resolution '
                "networks only. Choose an mdbn_x* or edsr_x*."
            )
    crops = common_crops(images, side=side)
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
                values = [branch_statistics(features.pop(name), cut=cut, window=window) for name in taps]
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
        found.append(head | summarise_branches(done, cut=cut, window=window))
    settings = {
        "images": len(crops),
        "source": source,
        "crop": list(crops[0].shape[:2]),
        "cut": cut,
        "window": "hann" if window else "none",
        "precision": "highest",
        "versions": {"jaxkd": __version__, "jax": jax.__version__},
    }
    return {"settings": settings, "networks": found}


def _features(model: nn.Module, taps: tuple[str, ...], variables: PyTree, image: jax.Array) -> dict[str, jax.Array]:
    """(1, h, w, 3) uint8 -> the features; what the network does behind them is not computed."""
    return model.apply(variables, image.astype(jnp.float32) / 255, taps=taps)[1]


def common_crops(images: Sequence[np.ndarray], *, side: int = LARGEST_SIDE) -> list[np.ndarray]:
    """The middles of `images`, all of one size: the smallest height and width among them, at most `side`.

    Args:
      images: (h, w, 3) or (h, w), uint8.
      side: largest height and width.

    Returns:
      (H, W, 3) uint8 each.

    Raises:
      ShapeError: no images, other arrays, or a side below `SMALLEST_GRID`.
    """
    if not len(images):
        raise ShapeError("There are no images. Branches are analysed on what they do to some. Give a folder of images.")
    for i, image in enumerate(images):
        right = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == RGB)
        if not right or image.dtype != np.uint8 or min(image.shape[:2]) < SMALLEST_GRID:
            raise ShapeError(
                f"Image {i} is an array of shape {image.shape} and type {image.dtype}. Crops are cut from 8-bit RGB or "
                f"grey images of {SMALLEST_GRID} pixels a side or more. Convert it, or leave it out."
            )
    if side < SMALLEST_GRID:
        raise ShapeError(f"A crop of {side} pixels has no spectrum. Its sides are limited to that. Give a larger side.")
    height, width = (min(side, *(image.shape[axis] for image in images)) for axis in (0, 1))
    crops = []
    for image in images:
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = image[top : top + height, left : left + width]
        crops.append(np.repeat(crop[..., None], RGB, axis=-1) if crop.ndim == 2 else crop)
    return crops
