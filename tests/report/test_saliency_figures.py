"""Pictures open, have the sizes and frames they should, and say what is broken."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxkd.report import saliency_figures

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(2, 24, 32, 3))
MAPS = {"vanilla gradient": RNG.uniform(size=(2, 24, 32)), "SmoothGrad": RNG.uniform(size=(2, 24, 32))}
LAYERS = {"block_0": RNG.uniform(size=(6, 8)), "block_1": RNG.uniform(size=(3, 4)), "cls_block_0": np.ones((1, 1))}


def luminance(colours: np.ndarray) -> np.ndarray:
    return colours @ np.array([0.2126, 0.7152, 0.0722])


def test_grid_has_a_row_per_image_and_a_column_per_map(tmp_path):
    sizes = {}
    for rows in (1, 2):
        maps = {title: value[:rows] for title, value in MAPS.items()}
        path = tmp_path / f"{rows}.png"
        saliency_figures.draw_saliency(IMAGES[:rows], maps, path, labels=["a name"] * rows, caption="seed 0")
        with Image.open(path) as picture:
            sizes[rows] = picture.size
    assert sizes[1][0] == sizes[2][0] > 3 * 250
    assert sizes[1][1] > 250 and sizes[2][1] - sizes[1][1] > 200
    saliency_figures.draw_saliency(IMAGES, MAPS, tmp_path / "both.pdf", labels=["a", "b"], caption="")
    assert (tmp_path / "both.pdf").read_bytes().startswith(b"%PDF")


def test_animation_has_a_frame_per_layer_even_if_maps_are_equal(tmp_path):
    layers = {**LAYERS, "block_2": LAYERS["block_1"], "block_3": LAYERS["block_1"]}
    saliency_figures.draw_layer_animation(IMAGES[0], layers, tmp_path / "layers.gif")
    with Image.open(tmp_path / "layers.gif") as picture:
        assert picture.n_frames == 5 and picture.info["loop"] == 0
        frames = []
        for index in range(5):
            picture.seek(index)
            assert picture.info["duration"] == saliency_figures.FRAME_MILLISECONDS
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
    height, width, _ = frames[0].shape
    assert width > 2 * 224 and height > 168  # small images are enlarged
    for a, b in pairwise(frames):
        assert (a[:40] != b[:40]).any(), "the name is not in the frame"
    np.testing.assert_array_equal(frames[0][45:200, 8:232], frames[1][45:200, 8:232])  # the image does not flicker


def test_every_frame_names_its_layer_and_its_scale(tmp_path, monkeypatch):
    written = []
    text = Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, a, b, t, **k: (written.append(t), text(self, a, b, t, **k)))
    layers = {"block_0": np.full((2, 3), 4.0), "stage_1": np.zeros((1, 2)), "cls_block_0": np.ones((1, 1))}
    saliency_figures.draw_layer_animation(IMAGES[0], layers, tmp_path / "layers.gif")
    frames = [written[i : i + 5] for i in range(0, 15, 5)]
    for index, (name, frame) in enumerate(zip(layers, frames, strict=True)):
        assert frame[0] == "mean |gradient| of the class score" and frame[1] == f"{name}   ({index + 1} of 3)"
    assert frames[0][2:] == ["2 x 3 grid", "black 0, brightest 4", "mean 4 (bars: log scale)"]
    assert frames[1][2:] == ["1 x 2 grid", "zero everywhere", "mean 0 (bars: log scale)"]
    assert frames[2][2:] == ["no grid: one value for the image", "", "mean 1 (bars: log scale)"]


def test_brightness_of_a_frame_follows_the_map(tmp_path):
    ramp = np.linspace(0, 1, 16)[None].repeat(12, axis=0)
    layers = {"block_0": 5 * ramp, "block_1": 0.5 * ramp}
    path = tmp_path / "ramps.gif"
    saliency_figures.draw_layer_animation(np.full((24, 32, 3), 0.5), layers, path)
    brightness = []
    with Image.open(path) as picture:
        for index in range(2):
            picture.seek(index)
            brightness.append(np.asarray(picture.convert("L"), float)[60:200, 250:460].mean(0))
            assert (np.diff(brightness[-1][::20]) > 0).all()
    np.testing.assert_allclose(*brightness, atol=12)


def test_colours_grow_lighter_with_the_value():
    lights = luminance(saliency_figures.colours()(np.linspace(0, 1, 200))[:, :3])
    assert (np.diff(lights) >= -1e-9).all() and lights[-1] > 0.8
    assert saliency_figures.scale_of(np.linspace(0, 4, 200)[None]) == (4, "black 0, brightest 4")


def test_the_scale_of_a_panel_ends_at_its_percentile():
    values = np.ones((10, 100))
    values[0, 0] = 1000.0
    assert saliency_figures.scale_of(values, saliency_figures.PERCENTILE) == (1, "black 0, brightest 1")
    few = np.zeros((10, 100))
    few[0, 0] = 7.0  # the percentile itself is 0
    assert saliency_figures.scale_of(few, 99.0) == (7, "black 0, brightest 7")


def panel(path, index):
    """The part of a frame with the map, (H, W, 3) in [0, 1]."""
    with Image.open(path) as picture:
        picture.seek(index)
        return np.asarray(picture.convert("RGB"))[60:200, 250:460] / 255


def test_zero_and_broken_maps_say_so_without_warnings(tmp_path):
    zero, broken, none = np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan)
    broken[0, :2] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saliency_figures.scale_of(zero) == (1, "zero everywhere")
        assert saliency_figures.scale_of(broken, 99.0) == (1, "black 0, brightest 1; 2 of 16 not finite")
        assert saliency_figures.scale_of(none)[1] == "no finite value: nothing to show"
        assert luminance(np.array(saliency_figures.colours()(0.0)[:3])) < 0.02
        for bad in (np.nan, np.inf):
            value = np.ma.masked_invalid([bad])
            np.testing.assert_allclose(saliency_figures.colours()(value)[0, :3], saliency_figures.NOT_FINITE)
        layers = {"zero": zero, "broken": broken, "none": none, "one": none[:1, :1], "null": zero[:1, :1]}
        saliency_figures.draw_layer_animation(IMAGES[0], layers, tmp_path / "a.gif")
        saliency_figures.draw_layer_animation(IMAGES[0], {"none": none}, tmp_path / "b.gif")
        panels = {"zero": np.zeros((1, 24, 32)), "none": np.full((1, 24, 32), np.nan)}
        saliency_figures.draw_saliency(IMAGES[:1], panels, tmp_path / "c.png", labels=[""], caption="")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 5
    assert luminance(panel(tmp_path / "a.gif", 0)).max() < 0.3
    not_finite = 0.8 * np.array(saliency_figures.NOT_FINITE)  # above a dim copy of the image
    assert (panel(tmp_path / "a.gif", 2) > not_finite - 0.1).all()
    assert (panel(tmp_path / "a.gif", 2) < not_finite + 0.3).all()
