"""The pass over a data set against NumPy on the same features, whatever the batches, the devices and the range."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.analysis.pipeline.comparison import compare
from jaxkd.analysis.pipeline.dataset_pass import Stream, StreamOptions
from jaxkd.analysis.pipeline.summary import SummaryOptions, summarise
from jaxkd.errors import DataError, ShapeError, TapError

HERE = Path(__file__).resolve().parent
RNG = np.random.default_rng(3)
WEIGHTS = {"shallow": RNG.normal(size=(3, 20)), "deep": RNG.normal(size=(3, 24)) * 3}


class Fake:
    """Two layers whose features are a fixed function of the pixels; `deep` is kept."""

    label, layers, gradients, last = "fake", (), None, "deep"

    def __init__(self, spoil=None, constant=False):
        self.spoil, self.constant = spoil, constant

    def forward(self, images):
        x = np.asarray(images, np.float32) / 255.0
        early = np.sin(5 * x @ WEIGHTS["shallow"].astype(np.float32))  # (B, 4, 5, 20)
        late = (x @ WEIGHTS["deep"].astype(np.float32)).reshape(len(x), 20, 24) ** 3
        if self.constant:
            late = np.ones_like(late)
        if self.spoil is not None:
            bad = x[:, 0, 0, 0] == np.float32(self.spoil) / 255.0
            late = np.where(bad[:, None, None], np.nan, late)
        return {"shallow": early, "deep": late}


def images(count):
    x = np.random.default_rng(7).integers(0, 256, (count, 4, 5, 3)).astype(np.uint8)
    x[:, 0, 0, 0] = np.arange(count)
    return x


def batches(pixels, size, broken=()):
    out = []
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        mask = np.array([start + i not in broken for i in range(len(part))] + [False] * (size - len(part)))
        filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
        out.append({"image": filled, "label": np.zeros(size, np.int32), "mask": mask})
    return out


def run(tmp_path, pixels, *, features=None, batch=4, size=5, broken=(), name="tokens", devices=1, **options):
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    stream = Stream(features or Fake(), mesh, StreamOptions(batch_size=batch, **options))
    return stream.run(batches(pixels, size, broken), tmp_path / name, total=len(pixels), names=lambda i: f"image {i}")


def plain_entropy(x, low, high):
    out = []
    for token in x.reshape(-1, x.shape[-1]):
        counts, _ = np.histogram(token, bins=100, range=(low, high))
        p = counts[counts > 0] / counts.sum()
        out.append(-(p * np.log2(p)).sum())
    return np.mean(out)


def test_every_statistic_is_numpys(tmp_path):
    pixels = images(11)
    got = run(tmp_path, pixels, chunk=4, grams=True)
    features = Fake().forward(pixels)
    assert got.layers == ("shallow", "deep") and got.images == 11 and got.valid.all()
    for i, (name, x) in enumerate(features.items()):
        tokens = x.reshape(11, 20, -1).astype(np.float64)
        amplitude = np.abs(np.fft.fft(tokens, axis=-1)).mean(axis=1) / tokens.shape[-1]
        np.testing.assert_allclose(got.spectrum[name][0] / 11, amplitude.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(got.scalars["intensity"][:, i], amplitude.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(got.scalars["activation_mean"][:, i], np.abs(tokens).mean(axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(got.scalars["activation_max"][:, i], np.abs(tokens).max(axis=(1, 2)), rtol=1e-6)
        singular = np.linalg.svd(tokens, compute_uv=False) ** 2
        share = np.cumsum(singular, axis=1) / singular.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(got.scalars["rank_95"][:, i], 1 + (share < 0.95).sum(axis=1))
        ratio = singular.sum(axis=1) ** 2 / (singular**2).sum(axis=1)
        np.testing.assert_allclose(got.scalars["participation_ratio"][:, i], ratio, rtol=1e-5)
        np.testing.assert_allclose(got.scalars["stable_rank"][:, i], singular.sum(1) / singular.max(1), rtol=1e-5)
        flat = tokens.reshape(11, -1)
        for chunk, gram in enumerate(got.grams):
            part = flat[4 * chunk : 4 * chunk + 4]
            part = part - part.mean(axis=0)
            np.testing.assert_allclose(gram[i], part @ part.T, atol=1e-4 * np.abs(part @ part.T).max())
    for start in range(0, 11, 4):
        part = {k: v[start : start + 4] for k, v in features.items()}
        low, high = min(v.min() for v in part.values()), max(v.max() for v in part.values())
        for i, x in enumerate(part.values()):
            for j, image in enumerate(x):
                found = got.scalars["entropy"][start + j, i]
                assert found == pytest.approx(plain_entropy(image, low, high), abs=1e-4)
                own = got.scalars["entropy_own_range"][start + j, i]
                assert own == pytest.approx(plain_entropy(image, x.min(), x.max()), abs=1e-4)
    late = features["deep"].reshape(-1, 24).astype(np.float64)
    np.testing.assert_allclose(got.moment[0], late.T @ late, rtol=1e-5, atol=1e-5 * np.abs(late.T @ late).max())
    assert got.moment[2] == 220
    np.testing.assert_array_equal(got.spool, features["deep"].astype(np.float32))


def scalars(streamed):
    return streamed.scalars


@pytest.mark.parametrize("options", [{}, {"grams": True}, {"low_memory": True}, {"entropy_range": "exact"}])
def test_the_batch_size_changes_nothing(tmp_path, options):
    pixels = images(10)
    one = run(tmp_path, pixels, batch=1, size=3, chunk=4, name="a", **options)
    two = run(tmp_path, pixels, batch=6, size=10, chunk=4, name="b", **options)
    for key, value in scalars(one).items():
        np.testing.assert_allclose(scalars(two)[key], value, rtol=1e-5, atol=1e-4, err_msg=key)
    for name, found in one.sep.items():
        np.testing.assert_allclose(found.mean, two.sep[name].mean, atol=1e-4)
        np.testing.assert_allclose(found.sd, two.sep[name].sd, atol=1e-3)
    np.testing.assert_allclose(one.moment[0], two.moment[0], rtol=1e-5, atol=1e-2)


def test_holding_a_chunk_or_computing_it_twice_gives_the_same(tmp_path):
    one = run(tmp_path, images(9), chunk=4, name="a")
    two = run(tmp_path, images(9), chunk=4, name="b", low_memory=True)
    assert one.ranges == two.ranges and len(one.ranges) == 3
    for key, value in scalars(one).items():
        np.testing.assert_array_equal(scalars(two)[key], value, err_msg=key)


def test_exact_range_is_that_of_all_images(tmp_path):
    pixels = images(9)
    got = run(tmp_path, pixels, entropy_range="exact", chunk=4)
    values = np.concatenate([v.ravel() for v in Fake().forward(pixels).values()])
    assert set(got.ranges) == {(float(values.min()), float(values.max()))}
    given = run(tmp_path, pixels, entropy_range=got.ranges[0], chunk=4, name="b")
    np.testing.assert_allclose(given.scalars["entropy"], got.scalars["entropy"], atol=1e-6)


def test_broken_images_are_named_and_padding_is_not(tmp_path):
    pixels = images(7)
    got = run(tmp_path, pixels, broken=(2, 5), size=4)
    assert got.broken == ["image 2", "image 5"] and got.images == 5
    clean = run(tmp_path, np.delete(pixels, (2, 5), axis=0), size=4, name="b")
    np.testing.assert_allclose(got.scalars["entropy"], clean.scalars["entropy"], atol=1e-6)
    with pytest.raises(DataError, match=r"None of the images could be read \(7 are broken\).*image 0"):
        run(tmp_path, pixels, broken=range(7), name="c")


def test_an_image_that_is_not_finite_is_left_out_and_said(tmp_path):
    pixels = images(6)
    got = run(tmp_path, pixels, features=Fake(spoil=2), grams=True)
    assert got.valid.tolist() == [[True, i != 2] for i in range(6)]
    assert len(got.spool) == 5
    model = summarise(got, SummaryOptions(permutations=3, bootstrap=10))
    assert model["notes"][0].startswith("deep held NaN or infinity for 1 of 6 images")
    json.dumps(model, allow_nan=False)
    rest = run(tmp_path, np.delete(pixels, 2, axis=0), name="b")
    other = summarise(rest, SummaryOptions(permutations=3, bootstrap=10))
    assert model["last"]["ranks"]["99"]["mean"] == other["last"]["ranks"]["99"]["mean"]
    np.testing.assert_allclose(model["last"]["sep"]["full"]["mean"], other["last"]["sep"]["full"]["mean"], rtol=1e-6)


def test_constant_features_are_defined(tmp_path):
    got = run(tmp_path, images(5), features=Fake(constant=True))
    model = summarise(got, SummaryOptions(permutations=3, bootstrap=10))
    json.dumps(model, allow_nan=False)
    late = model["layers"].index("deep")
    assert model["per_layer"]["entropy"]["mean"][late] == 0
    assert model["per_layer"]["rank_99"]["mean"][late] == 1
    assert model["last"]["pca"]["centred"] is None
    assert any("all tokens are equal" in note for note in model["notes"])


def test_a_layer_that_is_never_finite_has_no_numbers(tmp_path):
    class Broken(Fake):
        def forward(self, images):
            full = super().forward(images)
            return {"shallow": full["shallow"] * np.nan, "deep": full["deep"]}

    model = summarise(run(tmp_path, images(3), features=Broken()), SummaryOptions(permutations=0))
    assert model["radial"][0] == [None] * 3 and model["spatial"][0] == [[None] * 5] * 4
    assert model["spectrum"][0] == [None] * 20 and model["per_layer"]["rank_99"]["mean"][0] is None


def test_one_image(tmp_path):
    got = run(tmp_path, images(1), grams=True)
    model = summarise(got, SummaryOptions(permutations=3, bootstrap=10))
    assert model["last"]["permutation"] is None
    assert model["last"]["ranks"]["99"]["sd"] == 0
    assert "One image" in " ".join(model["notes"]) and "at least two" in " ".join(model["notes"])
    found = compare(got, got)
    assert found["cka"] is None and "at least four images" in " ".join(found["notes"])


def test_a_network_is_equal_to_itself_and_token_counts_may_differ(tmp_path):
    pixels = images(12)
    got = run(tmp_path, pixels, grams=True, chunk=6)
    found = compare(got, got)
    np.testing.assert_allclose(np.diag(found["cka"]), 1, atol=1e-5)
    assert found["cka"][0][1] < 0.999
    np.testing.assert_allclose(found["principal_cosines"], 1, atol=1e-5)

    class Coarse(Fake):
        def forward(self, images):
            full = super().forward(images)
            return {"shallow": full["shallow"], "deep": full["deep"][:, ::2]}

    other = run(tmp_path, pixels, features=Coarse(), grams=True, chunk=6, name="b")
    found = compare(got, other)
    assert found["principal_cosines"] is None and "20" in found["notes"][0] and "10" in found["notes"][0]
    assert np.isfinite(np.asarray(found["cka"], float)).all()


def test_what_cannot_be_streamed_says_so(tmp_path):
    with pytest.raises(TapError, match=r'last="dee".*Did you mean "deep"'):
        run(tmp_path, images(2), last="dee")

    class Growing(Fake):
        calls = 0

        def forward(self, images):
            self.calls += 1
            full = super().forward(images)
            return {"shallow": full["shallow"], "deep": full["deep"][:, : 20 - self.calls]}

    with pytest.raises(ShapeError, match=r"changed its shape from \(19, 24\) to \(18, 24\)"):
        run(tmp_path, images(6), features=Growing(), batch=3)


def summary_of(tmp_path, devices):
    got = run(tmp_path, images(13), batch=8, size=6, chunk=8, grams=True, devices=devices)
    model = summarise(got, SummaryOptions(permutations=3, bootstrap=10))
    return {"model": model, "cka": compare(got, got)["cka"]}


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(tmp_path):
    code = (
        "import json, sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "import jax; jax.config.update('jax_default_matmul_precision', 'highest')\n"
        "assert jax.device_count() == 8\n"
        "import test_dataset_pass as t; print(json.dumps(t.summary_of(pathlib.Path(sys.argv[1]), 8)))"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(HERE)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    eight, one = json.loads(done.stdout.splitlines()[-1]), summary_of(tmp_path, 1)
    flat_one, flat_eight = jax.tree.flatten(one), jax.tree.flatten(eight)
    assert flat_one[1] == flat_eight[1]
    for a, b in zip(flat_one[0], flat_eight[0], strict=True):
        assert a == b if isinstance(a, str) else a == pytest.approx(b, rel=1e-4, abs=1e-5)
