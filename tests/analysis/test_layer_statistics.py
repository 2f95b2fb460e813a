"""The registry of per-layer statistics: one registration shows up everywhere."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text

from jaxkd import analysis, parallel
from jaxkd.analysis.layer_statistics import LAYER_STATISTICS, energy_statistics, layer_statistics
from jaxkd.analysis.pipeline.dataset_pass import Stream, StreamOptions
from jaxkd.analysis.pipeline.summary import SummaryOptions, summarise
from jaxkd.errors import ConfigError
from jaxkd.report import depth_figures, figures, html, style
from jaxkd.report.tables import write_tables


@pytest.fixture
def spread():
    """A statistic of the user's, registered for one test."""
    statistic = analysis.LayerStatistic("spread of values", "volts", lambda x: x.std(axis=tuple(range(1, x.ndim))))
    analysis.register_layer_statistic("spread", statistic)
    yield
    del LAYER_STATISTICS["spread"]


def test_one_registration_reaches_summary_tables_figures_and_page(spread, tmp_path):
    features = SimpleNamespace(label="net", layers=(), last="a", gradients=None)
    features.forward = lambda images: {"a": images / 255.0, "b": jnp.sin(images / 50.0)}
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3)).astype(np.uint8)
    batch = {"image": pixels, "label": np.zeros(4, np.int32), "mask": np.ones(4, bool)}
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    streamed = Stream(features, mesh, StreamOptions(batch_size=4, ranks=False)).run([batch], tmp_path / "tokens")
    model = summarise(streamed, SummaryOptions(permutations=0))
    expected = [float(np.mean([x.std() for x in maps])) for maps in (pixels / 255.0, np.sin(pixels / 50.0))]
    np.testing.assert_allclose(model["per_layer"]["spread"]["mean"], expected, rtol=1e-5)

    results = {"settings": {"images": 4, "seed": 0}, "models": [{"label": "net", **model}]}
    write_tables(results, tmp_path)
    with (tmp_path / "per_layer.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["statistic"] == "spread"]
    assert [float(r["mean"]) for r in rows] == model["per_layer"]["spread"]["mean"]
    (plan,) = depth_figures.other_plans(results)
    with style.applied():
        figure = plan.draw(results)
    assert plan.name in [p.name for p in figures.plans_for(results)]
    assert "spread of values\n(volts)" in [t.get_text() for t in figure.findobj(Text)]
    html.write_report(results, [], tmp_path / "report.html")
    assert "spread of values (volts)" in (tmp_path / "report.html").read_text()


def test_names_are_registered_once_and_with_a_function():
    with pytest.raises(ConfigError, match='"kurtosis" is taken'):
        analysis.register_layer_statistic("kurtosis", analysis.LayerStatistic("k", "", jnp.mean))
    with pytest.raises(ConfigError, match="has no function"):
        analysis.register_layer_statistic("new", analysis.LayerStatistic("k", ""))


def test_an_image_that_is_not_finite_has_no_statistics():
    x = jnp.ones((2, 3, 4)).at[0, 0, 0].set(jnp.nan)
    for name, value in layer_statistics(x, jnp.array([0.0, 2.0]), jnp.array([0.0, 2.0])).items():
        assert np.isnan(value[0]) and np.isfinite(value[1]), name


@pytest.mark.parametrize("xp", [np, jnp])
def test_energies_on_the_host_and_on_a_device(xp):
    energies = xp.asarray([[90.0, 6.0, 3.0, 1.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4, [np.nan] * 4])
    got = {name: np.asarray(value) for name, value in energy_statistics(energies).items()}
    np.testing.assert_array_equal(got["rank_95"], [2, 1, 0, np.nan])
    np.testing.assert_array_equal(got["rank_80"], [1, 1, 0, np.nan])
    np.testing.assert_allclose(got["stable_rank"], [100 / 90, 1, 0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(got["participation_ratio"][:3], [1e4 / 8146, 1, 0], rtol=1e-6)
