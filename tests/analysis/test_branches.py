"""Branches: what follows from the definitions for features whose spectra are known, and what is refused."""

from __future__ import annotations

import csv
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkd.analysis.branches import (
    branch_rings,
    branch_statistics,
    differentiation,
    higher_in_deep,
    mean_of,
    subjects,
    summarise_branches,
)
from jaxkd.analysis.spectrum import radial_frequencies
from jaxkd.errors import ConfigError, ShapeError
from jaxkd.report import branch_figures
from jaxkd.report.branch_report import write_branches


def branch_report(taps: dict, **options) -> dict:
    return summarise_branches([{name: branch_statistics(maps, **options) for name, maps in taps.items()}])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wave(frequency: float, size: int = 32, channels: int = 2) -> np.ndarray:
    """(1, size, size, channels) of horizontal waves, each channel shifted."""
    x = np.arange(size)[:, None] + np.arange(channels)
    return np.broadcast_to(np.cos(2 * np.pi * frequency * x), (1, size, size, channels)).astype(np.float32)


def checkerboard(size: int = 32, channels: int = 3) -> np.ndarray:
    board = (-1.0) ** (np.arange(size)[:, None] + np.arange(size))
    return np.broadcast_to(board[None, :, :, None], (1, size, size, channels)).astype(np.float32)


def pair(deep, shallow, **options):
    """The one block of a network with these branches."""
    report = branch_report({"block_0.deep_0": jnp.asarray(deep), "block_0.shallow_0": jnp.asarray(shallow)}, **options)
    return report["blocks"][0]


def test_a_fine_and_a_constant_branch_differ_entirely():
    constant = np.full((1, 32, 32, 3), 0.3, np.float32)
    block = pair(checkerboard(), constant)
    assert block["differentiation"]["mean"] == pytest.approx(1, abs=1e-6)
    deep, shallow = block["pairs"][0]["deep"], block["pairs"][0]["shallow"]
    # the checkerboard lies in the corner, beyond the rings of a radial profile, and its energy counts all the same
    assert deep["mean_frequency"]["mean"] == pytest.approx(0.5**0.5, abs=0.02)
    assert deep["high_low"]["mean"] is None or deep["high_low"]["mean"] > 1e3
    assert shallow["high_low"]["mean"] == shallow["mean_frequency"]["mean"] == 0
    assert shallow["mean_share"]["mean"] == pytest.approx(1, abs=1e-6) and deep["mean_share"]["mean"] < 1e-6
    assert shallow["distribution"][0] == 1 and {v for row in shallow["log_amplitude"] for v in row} == {None}


def test_equal_branches_do_not_differ_whatever_their_size_and_mean():
    x = noise(2, 20, 24, 5)
    assert pair(x, x)["differentiation"] == {"mean": 0, "sd": 0}
    for scale in (1e-25, 1e-3, 1e4, 1e25):
        block = pair(x, x * np.float32(scale))
        assert block["differentiation"]["mean"] < 1e-5
        deep, shallow = (block["pairs"][0][b] for b in ("deep", "shallow"))
        assert shallow["high_low"]["mean"] == pytest.approx(deep["high_low"]["mean"], rel=1e-4)
        assert shallow["profile"][3] == pytest.approx(scale * deep["profile"][3], rel=1e-4)
    # a constant moved from one branch to the other leaves the network what it is
    assert pair(x - 3, x + 3)["differentiation"]["mean"] < 1e-4
    assert pair(np.zeros_like(x), np.full_like(x, 7))["differentiation"]["mean"] == 0


def test_the_order_and_sign_of_channels_do_not_matter():
    x = noise(1, 16, 16, 4)
    assert pair(x, -x[..., ::-1])["differentiation"]["mean"] < 1e-6


def test_differentiation_is_the_share_of_energy_that_would_have_to_move():
    slow, fast = wave(0.125), wave(0.375)
    for share in (0.25, 0.7):
        mixed = np.sqrt(1 - share) * slow + np.sqrt(share) * np.roll(fast.transpose(0, 2, 1, 3), 3, axis=2)
        assert pair(mixed, slow, window=False)["differentiation"]["mean"] == pytest.approx(share, abs=1e-4)
    assert pair(slow, fast)["differentiation"]["mean"] > 0.999
    p, q = np.array([[0.5, 0.5, 0], [1, 0, 0]]), np.array([[0.25, 0.5, 0.25], [0, 0, 1]])
    np.testing.assert_allclose(differentiation(p, q), [0.25, 1])


def test_the_ratio_splits_at_the_cut_and_holds_all_the_energy():
    mixed = 3 * wave(0.125) + wave(0.375).transpose(0, 2, 1, 3)
    for cut, expected in ((0.25, 1 / 9), (0.375, 1 / 9)):  # a frequency at the cut is high
        ratio = branch_statistics(mixed, cut=cut, window=False)["high_low"]
        np.testing.assert_allclose(ratio, expected, rtol=1e-3)
    np.testing.assert_allclose(branch_statistics(mixed, cut=0.376, window=False)["high_low"], 0, atol=1e-6)
    # white noise: the ratio of the areas of the plane, corners included
    u = np.fft.fftfreq(64)
    high = (np.hypot(u[:, None], u) >= 0.25).sum()
    white = branch_statistics(noise(4, 64, 64, 32))["high_low"].mean()
    np.testing.assert_allclose(white, high / (64 * 64 - high), rtol=0.02)


def test_the_window_keeps_the_edges_out_of_the_high_frequencies():
    ramp = np.broadcast_to(
        np.arange(32, dtype=np.float32)[None, :, None, None], (1, 32, 32, 2)
    )  # jumps only from edge to edge
    bare, windowed = (branch_statistics(ramp, window=w)["high_low"][0] for w in (False, True))
    assert bare > 0.02 and windowed < 1e-4
    # and leaves the size of what is equally strong everywhere
    x = noise(8, 32, 32, 16)
    sizes = [float(np.mean(branch_statistics(x, window=w)["profile"][:, 4:])) for w in (False, True)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


def test_distributions_are_shares_of_all_energy_but_the_mean():
    x = noise(2, 12, 17, 3)
    statistics = branch_statistics(x, window=False)
    centred = x - x.mean((1, 2), keepdims=True)
    energy = np.abs(np.fft.fftshift(np.fft.fft2(centred.astype(np.float64), axes=(1, 2)), axes=(1, 2))) ** 2
    energy = energy.mean(-1)
    ring, middles = branch_rings(12, 17)
    expected = np.stack([[e[ring == r].sum() for r in range(len(middles))] for e in energy])
    np.testing.assert_allclose(statistics["distribution"], expected / expected.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(middles[: len(radial_frequencies(12, 17))], radial_frequencies(12, 17))
    assert middles[-1] == pytest.approx(0.5**0.5, abs=0.05)
    np.testing.assert_allclose(
        statistics["mean_share"], 1 - np.square(centred).mean((1, 2, 3)) / np.square(x).mean((1, 2, 3)), atol=1e-5
    )


def test_images_do_not_mix_and_non_finite_features_show():
    x, y = noise(3, 8, 8, 2), noise(3, 8, 8, 2, seed=1)
    taps = {"block_0.deep_0": x, "block_0.shallow_0": y, "block_0": x + y}
    alone = [{k: branch_statistics(v[i : i + 1]) for k, v in taps.items()} for i in range(3)]
    one, three = branch_report(taps), summarise_branches(alone)
    assert one["images"] == three["images"] == 3
    for key in ("mean", "sd"):
        assert three["blocks"][0]["differentiation"][key] == pytest.approx(one["blocks"][0]["differentiation"][key])
    x[1, 2, 3, 0] = np.nan
    for name, value in branch_statistics(x).items():
        bad = ~np.isfinite(np.asarray(value)).reshape(3, -1).all(axis=1)
        assert bad.tolist() == [False, True, False], name
    block = pair(x, y)
    assert block["differentiation"]["mean"] is None
    json.dumps(block, allow_nan=False)


def test_bf16_is_transformed_in_fp32():
    x = jnp.asarray(noise(1, 8, 8, 2), jnp.bfloat16)
    for name, value in branch_statistics(x).items():
        assert value.dtype == jnp.float32
        # compiled apart, so equal but for rounding; in bf16 it would be 1e-2
        np.testing.assert_allclose(value, branch_statistics(x.astype(jnp.float32))[name], rtol=1e-5, atol=1e-6)


def test_a_network_of_one_branch_has_outputs_only():
    report = branch_report({"block_0": noise(2, 9, 8, 3), "block_10": noise(2, 9, 8, 3)})
    assert [b["block"] for b in report["blocks"]] == ["block_0", "block_10"] and report["grid"] == [9, 8]
    assert all(b["differentiation"] is None and not b["pairs"] for b in report["blocks"])
    assert len(report["blocks"][0]["output"]["profile"]) == len(report["frequency"]) == 5


def test_pairs_are_found_by_number_and_a_block_is_the_mean_of_its_pairs():
    taps = {f"block_{i}.{b}_{j}": noise(1, 8, 8, 2, seed=i + j) for i in (1, 10) for j in (0, 1) for b in ("deep",)}
    taps |= {name.replace("deep", "shallow"): x if "deep_0" in name else checkerboard(8, 2) for name, x in taps.items()}
    report = branch_report(taps)
    assert [b["block"] for b in report["blocks"]] == ["block_1", "block_10"]
    for block in report["blocks"]:
        first, second = (p["differentiation"]["mean"] for p in block["pairs"])
        assert first == 0 and second > 0.5 and block["differentiation"]["mean"] == pytest.approx(second / 2)


def test_wrong_features_are_refused_in_words():
    x = noise(1, 8, 8, 2)
    with pytest.raises(ShapeError, match=r"shape \(8, 8, 2\).*at least 4 x 4"):
        branch_statistics(x[0])
    with pytest.raises(ShapeError, match=r"shape \(1, 3, 8, 2\)"):
        branch_statistics(x[:, :3])
    with pytest.raises(ConfigError, match=r"cut=0\.7 is out of range"):
        branch_statistics(x, cut=0.7)
    with pytest.raises(ShapeError, match=r"block_0\.shallow_0 are missing"):
        branch_report({"block_0.deep_0": x})
    with pytest.raises(ShapeError, match=r"sizes \[\(6, 8\), \(8, 8\)\]"):
        branch_report({"block_0": x, "block_1": x[:, :6]})
    with pytest.raises(ShapeError, match="images of one size"):
        differentiation(np.ones((1, 3)), np.ones((1, 4)))


def results_of(*networks: tuple[str, dict]) -> dict:
    reports = [{"label": label, "weights": "w", "scale": 2, **branch_report(taps)} for label, taps in networks]
    settings = {"images": 2, "source": "noise", "crop": [12, 10], "cut": 0.25, "window": "hann", "versions": {}}
    return {"settings": settings, "networks": reports}


@pytest.fixture(scope="module")
def mdbn():
    taps = {}
    for i in range(3):
        taps[f"block_{i}.deep_0"], taps[f"block_{i}.shallow_0"] = (
            noise(2, 12, 10, 3, seed=i),
            np.ones((2, 12, 10, 3), np.float32),
        )
        taps[f"block_{i}"] = noise(2, 12, 10, 3, seed=9)
    return "mdbn $x_1$", taps


@pytest.mark.slow
def test_everything_is_on_disk_and_survives_odd_names(mdbn, tmp_path):
    results = results_of(mdbn, ("edsr", {f"block_{i}": noise(2, 12, 10, 3) for i in range(8)}))
    paths = write_branches(results, tmp_path / "out")
    drawn = ["differentiation", "high_low", "outputs", "profiles_0", "maps_0_0", "profiles_1", "maps_1_0"]
    names = ["results.json", "branches.csv", "branch_profiles.csv"]
    names += [f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")] + ["report.html"]
    assert [p.name for p in paths] == names and all(p.stat().st_size for p in paths)
    assert "mdbn $x_1$" in paths[-1].read_text() and "8 blocks" in paths[-1].read_text()
    saved = json.loads(paths[0].read_text())
    assert saved == results and "is not published" in paths[-1].read_text()
    rows = list(csv.DictReader(paths[1].open()))
    assert len(rows) == 3 * 3 + 8
    assert rows[0]["branch"] == "deep" and float(rows[0]["differentiation"]) == pytest.approx(1)
    assert rows[2]["branch"] == "output" and rows[2]["pair"] == "" and rows[-1]["differentiation"] == ""
    assert len(list(csv.DictReader(paths[2].open()))) == len(rows) * 6
    with Image.open(paths[3]) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.min() < 60 and (grey > 250).mean() > 0.1
    assert len(write_branches(results, tmp_path / "out", figures=False)) == 3


def test_a_single_branch_alone_and_numbers_that_are_missing_are_drawn(mdbn, tmp_path):
    edsr = results_of(("edsr", {"block_0": noise(2, 12, 10, 3)}))
    assert any("has one branch per block" in s for s in branch_figures.branch_sentences(edsr))
    drawn = branch_figures.draw_branches(edsr, tmp_path / "one")
    assert [f.name for f in drawn] == ["high_low", "outputs", "profiles_0", "maps_0_0"]
    name, taps = mdbn
    broken = results_of((name, {k: v * np.float32(np.nan) for k, v in taps.items()}))
    drawn = branch_figures.draw_branches(broken, tmp_path / "two")
    assert drawn[0].png.stat().st_size
    assert any("differentiation is undefined" in s for s in branch_figures.branch_sentences(broken))


def test_a_network_is_read_against_its_control(tmp_path):
    fine, smooth = noise(2, 12, 10, 3), np.cumsum(np.cumsum(noise(2, 12, 10, 3, seed=1), axis=1), axis=2)
    taps = [
        {"block_0.deep_0": deep, "block_0.shallow_0": shallow, "block_0": deep + shallow}
        for deep, shallow in ((fine, smooth), (smooth, fine))
    ]
    results = results_of(("ours", taps[0]), ("ours, untrained", taps[1]))
    assert [(n["label"], c) for n, c in subjects(results)] == [("ours", None), ("ours, untrained", None)]
    results["networks"][0]["control"] = "ours, untrained"
    assert [(n["label"], c["label"]) for n, c in subjects(results)] == [("ours", "ours, untrained")]
    said = " ".join(branch_figures.branch_sentences(results))
    assert re.search(r"higher in the deep one in 1 of 1 blocks \(untrained: .* in 0 of 1 blocks\)", said)
    assert [higher_in_deep(n) for n in results["networks"]] == [(1, 1), (0, 1)]
    assert mean_of(results["networks"][0], "deep", "high_low") > 5 * mean_of(
        results["networks"][0], "shallow", "high_low"
    )
    page = write_branches(results | {"skipped": ["torn & <gone>"]}, tmp_path)[-1].read_text()
    assert "<title>Branches of ours</title>" in page and "torn &amp; &lt;gone&gt;" in page
    assert "1 of 1" in page and "0 of 1" in page
