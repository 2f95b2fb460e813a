"""Figures from results: which are drawn, which are left out and why, what the captions say, that they survive grey."""

from __future__ import annotations

import copy
import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from synthetic_results import make, make_broken

from jaxkd.report import figures, style
from jaxkd.report.results import null_line

PAIR_FIGURES = {"cka", "principal_cosines"}


LOW_DPI = 50


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(results, figures) of two models, drawn once and coarsely."""
    results = make(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", LOW_DPI)
        return results, figures.write_figures(results, tmp_path_factory.mktemp("two"))


@pytest.fixture
def unsaved(monkeypatch):
    """Draws figures without writing them, which takes most of the time."""

    def save(figure, folder, name):
        figure.draw_without_rendering()
        return folder / f"{name}.png", folder / f"{name}.pdf"

    monkeypatch.setattr(style, "save", save)


def drawn(plan: str, results: dict):
    with style.applied():
        return next(p for p in figures.PLANS if p.name == plan).draw(results)


@pytest.mark.slow
def test_every_figure_is_a_png_and_a_pdf(two):
    _, out = two
    assert [f.name for f in out] == [p.name for p in figures.PLANS]
    for figure in out:
        with Image.open(figure.png) as image:
            assert min(image.size) / LOW_DPI > 1.9, figure.name
            grey = np.asarray(image.convert("L"))
        assert grey.min() < 60 and (grey > 250).mean() > 0.1, f"{figure.name} is empty"
        assert figure.pdf.read_bytes().startswith(b"%PDF")


def test_pictures_are_sharp(tmp_path):
    with style.applied():
        png, _ = style.save(style.panels(1)[0], tmp_path, "empty")
    with Image.open(png) as image:
        assert image.info["dpi"][0] >= 149 and min(image.size) > 300


def test_one_model_has_no_pairs_and_says_so():
    results = make(1)
    names = {p.name for p in figures.PLANS if p.has(results["models"][0])}
    assert names == {p.name for p in figures.PLANS} - PAIR_FIGURES
    left = dict(figures.left_out(results))
    assert len(left) == 2 and all("two models" in reason for reason in left.values())


def test_missing_statistics_leave_their_figure_out_with_the_reason(tmp_path, unsaved):
    results = make_broken(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = {f.name: f for f in figures.write_figures(results, tmp_path)}
    assert "gradient" not in out and "cka" not in out and "principal_cosines" in out
    left = dict(figures.left_out(results))
    assert "not asked for" in left["Gradient magnitude by depth"]
    assert "four images" in left["Similarity of all layers (linear CKA)"]
    # drawn for the others, and the caption names the model that is not in it, with its note
    assert "Not shown" in out["permutation"].caption and "needs two images" in out["permutation"].caption
    assert 'a<b>&"$x_1$' in out["permutation"].caption


def test_nothing_but_settings_draws_nothing(tmp_path):
    for results in ({"settings": {}, "models": []}, {"models": [{"label": "m", "layers": [], "last": None}]}):
        assert figures.write_figures(results, tmp_path) == []
        assert len(figures.left_out(results)) == len(figures.PLANS)


def test_one_image_one_layer_and_zeros_are_drawn_without_warnings(tmp_path, unsaved):
    results = make(1, images=1)
    model = results["models"][0]
    for key in ("layers", "tokens", "channels", "grids", "spectrum", "spectrum_sd", "radial", "radial_frequency"):
        model[key] = model[key][-1:]
    model["spatial"] = model["spatial"][-1:]
    for spread in model["per_layer"].values():
        for key in spread:
            spread[key] = [0.0]
    model["spectrum"] = [[0.0] * len(model["spectrum"][0])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = figures.write_figures(results, tmp_path)
    assert len(out) == len(figures.PLANS) - len(PAIR_FIGURES)
    assert "1 image," in out[0].caption


def test_seven_models_have_a_place_in_every_figure():
    results = make(3)
    for i in range(4):
        results["models"].append(copy.deepcopy(results["models"][1]) | {"label": f"_copy_{i}"})
    for plan in ("intensity", "sep", "pca", "channel_spectrum_map", "permutation"):
        figure = drawn(plan, results)
        text = " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))
        assert "copy_0" in text and "copy_3" in text, plan


def test_every_caption_says_n_seed_band_and_limits(two):
    _, out = two
    for figure in out:
        first, *_, last = figure.caption.split("\n")
        assert first.startswith("What it shows: ") and "n = 12 images" in first and "seed 2026" in first, figure.name
        assert any(word in first.lower() for word in ("band", "dashed", "shaded", "whiskers")), figure.name
        assert last.startswith("What it cannot show: ") and len(last) > 80, figure.name


def test_sep_caption_says_what_is_true_by_construction(two):
    text = next(f.caption for f in two[1] if f.name == "sep")
    assert "b50 is 0.50 by construction for any real features" in text
    assert "no evidence of distributed encoding" in text
    line = null_line(np.asarray([10.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(line, 10 + 90 * np.arange(10) / 9)
    # published anchor: rho = 0 at D = 384 reaches 80 and 90 % at 308 and 346
    null = null_line(np.zeros(384))
    assert [int(np.argmax(null >= a)) + 1 for a in (80, 90)] == [308, 346]


def test_sep_curves_are_drawn_less_their_null_lines():
    results = make(1)
    line = null_line(np.asarray([10.0] + [0.0] * 23))
    curve = line.copy()
    curve[5] -= 2.0
    results["models"][0]["last"]["sep"]["full"]["mean"] = curve.tolist()
    (y,) = (x.get_ydata() for x in drawn("sep", results).axes[1].lines if x.get_linewidth() == 2.0)
    np.testing.assert_allclose(y, curve - line, atol=1e-12)
    assert y[5] == pytest.approx(-2.0)


def test_depth_is_relative_only_when_depths_differ():
    results = make(2)
    assert "relative depth" in drawn("intensity", results).axes[0].get_xlabel()
    equal = {"settings": results["settings"], "models": [results["models"][0]] * 2}
    axis = drawn("intensity", equal).axes[0]
    assert axis.get_xlabel() == "layer (0 = first)"
    assert axis.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5]


def test_bands_are_the_spread_over_images():
    results = make(1)
    spread = results["models"][0]["per_layer"]["activation_mean"]
    spread["mean"], spread["sd"] = [2.0] * 6, [0.5] * 6
    axis = drawn("activation", results).axes[0]
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 1.5 and band[:, 1].max() == 2.5


def test_rank_histogram_shows_shares_and_both_percentiles():
    results = make(1)
    last = results["models"][0]["last"]
    last["ranks"]["95"]["values"] = [4.0] * 6 + [None] * 6  # images that did not count
    axis = drawn("rank_histogram", results).axes[0]
    heights = [p.get_height() for p in axis.patches]
    assert sum(heights) == pytest.approx(200)  # two histograms of 100 % each
    shared = np.percentile(last["pca"]["uncentred"]["required_d"]["95"]["values"], 99)
    places = [line.get_xdata()[0] for line in axis.lines]
    assert places[:2] == [4.0, pytest.approx(shared)]


def test_a_null_breaks_the_line_instead_of_becoming_zero():
    results = make_broken(1)
    y = drawn("entropy", results).axes[0].lines[0].get_ydata()
    assert np.isnan(y[1]) and np.isfinite(y[[0, 2]]).all()


def test_styles_differ_without_colour():
    dashes_and_markers = {(str(dash), marker) for _, dash, marker, _ in style.STYLES}
    assert len(dashes_and_markers) == len(style.STYLES)
    assert len({str(dash) for _, dash, *_ in style.STYLES}) == len({s[2] for s in style.STYLES}) == 6
    grey = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour, *_ in style.STYLES]
    assert all(abs(a - b) > 0.1 for a, b in itertools.pairwise(grey))
    table = matplotlib.colormaps[style.COLOUR_MAP](np.linspace(0, 1, 64))[:, :3]
    assert (np.diff(table @ (0.2126, 0.7152, 0.0722)) > 0).all()


def test_legends_lie_outside_of_all_panels(two):
    results, _ = two
    for plan in ("intensity", "sep", "rank_histogram", "pca", "permutation", "channel_spectrum"):
        figure = drawn(plan, results)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(axis.get_visible() and box.overlaps(axis.get_tightbbox()) for axis in figure.axes), plan


def test_names_are_literal_in_pictures():
    assert style.plain("_a") == " _a" and style.plain("$x$") == r"\$x\$"
    assert style.plain("x" * 60) == "x" * 12 + "..." + "x" * 11
    # the caller's settings of matplotlib are as they were
    before = matplotlib.rcParams["font.size"]
    with style.applied():
        assert matplotlib.rcParams["font.size"] == style.SETTINGS["font.size"]
    assert matplotlib.rcParams["font.size"] == before
