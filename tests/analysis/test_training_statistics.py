"""Statistics of the layers inside the train step, against NumPy and against gradients of the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import observe
import pytest
from observe import BATCH, CLASSES, STUDENT, batch_of, distillation, network

from jaxkd import distill, models, parallel, tasks, weights
from jaxkd.analysis import pipeline
from jaxkd.errors import ConfigError, TapError

HERE = Path(__file__).resolve().parent
RANKS = {"rank_99": 0.99, "rank_95": 0.95, "rank_90": 0.90, "rank_80": 0.80}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(1, 1, [jax.devices()[0]])


def classification(name="deit_tiny_patch16_224", args=STUDENT, **more):
    return tasks.ClassificationTask(network(name, args, 3), distill.preset("none", smoothing=0.1), **more)


def observed(task, mesh, batch, *, key=None, params=None, step=0, **options):
    dynamics = pipeline.Dynamics(task, mesh, **options)
    params = task.init(jax.random.key(0))[0] if params is None else params
    key = jax.random.key(5) if key is None else key
    values = jax.jit(dynamics)(params, {}, batch, key, jnp.int32(step), task.constants)
    return {name: np.asarray(value) for name, value in values.items()}, dynamics.layers


def reference(task, batch, layers, *, key, step=0):
    """Features and per-image gradients of the whole batch, as the loss computes them."""

    @jax.jit  # one program: op by op, each operation would be compiled for itself
    def features_and_gradient(batch, constants):
        params, _ = task.init(jax.random.key(0))
        images_key, dropout_key = (jax.random.fold_in(key, i) for i in (0, 1))
        images, labelled = task.augment(images_key, batch)
        teacher = task.teacher_forward(images, constants)

        def apply(offsets, taps):
            return task.student.model.apply(
                {"params": params["student"]}, images, True, taps=taps, offsets=offsets, rngs={"dropout": dropout_key}
            )

        def loss(offsets):
            return task.objective({}, {}, apply(offsets, task.objective.student_taps), teacher, labelled, step)[0]

        features = apply(None, layers)[1]
        return features, jax.grad(loss)(jax.tree.map(jnp.zeros_like, features))

    features, gradient = features_and_gradient(batch, task.constants)
    counted = int(batch["mask"].sum()) if "mask" in batch else len(batch["image"])
    # In the order of `layers`: what passes through JAX comes back sorted by name.
    return {k: np.asarray(features[k], np.float64) for k in layers}, {
        k: counted * np.asarray(gradient[k], np.float64) for k in layers
    }


def entropy(x, low, high):
    bits = []
    for values in x.reshape(-1, x.shape[-1]):
        p = np.histogram(values, 100, range=(low, high))[0] / len(values)
        bits.append(-np.sum(p[p > 0] * np.log2(p[p > 0])))
    return np.mean(bits)


def expected_of(features, gradients, chosen, ranked):
    """{name: (L,)} in float64; `chosen` and `ranked` are the images."""
    rows = []
    low, high = min(x[chosen].min() for x in features.values()), max(x[chosen].max() for x in features.values())
    for name, x in features.items():
        x = x[chosen]
        row = {
            "intensity": np.mean(np.abs(np.fft.fft(x, axis=-1))) / x.shape[-1],
            "entropy": entropy(x, low, high),
            "entropy_own_range": entropy(x, x.min(), x.max()),
            "activation_mean": np.abs(x).mean(),
            "activation_max": np.abs(x.reshape(len(x), -1)).max(axis=1).mean(),
        }
        if gradients is not None:
            row["gradient"] = np.abs(gradients[name][chosen]).mean()
        energies = [np.linalg.svd(t.reshape(-1, t.shape[-1]), compute_uv=False) ** 2 for t in features[name][ranked]]
        shares = [np.cumsum(e) / e.sum() for e in energies]
        for key, share in RANKS.items():
            row[key] = np.mean([1 + np.sum(s < share) for s in shares])
        row["participation_ratio"] = np.mean([e.sum() ** 2 / np.sum(e**2) for e in energies])
        row["stable_rank"] = np.mean([e.sum() / e.max() for e in energies])
        rows.append(row)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def assert_agree(ours, expected):
    assert set(ours) == {*expected, "kurtosis", "massive_share"}
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-4, atol=1e-9, err_msg=name)


def test_a_distillation_against_numpy_with_mixing_erasing_stochastic_depth_and_an_unread_image(mesh):
    task, batch, key = distillation(), batch_of(0), jax.random.key(5)
    ours, layers = observed(task, mesh, batch, key=key, images=11, rank_images=4)
    assert layers == ("block_0", "block_1")
    features, gradients = reference(task, batch, layers, key=key)
    chosen, ranked = [i for i in range(11) if i != 2], [0, 1, 3]
    assert_agree(ours, expected_of(features, gradients, chosen, ranked))
    # both layers are compared with the teacher, so that both have a gradient
    assert (ours["gradient"] > 0).all()
    # all of it belongs to this step: another key is other images and other masks
    other, _ = observed(task, mesh, batch, key=jax.random.key(6), images=11, rank_images=4)
    assert all((other[name] != ours[name]).all() for name in ("intensity", "entropy", "activation_mean", "gradient"))


def test_a_batch_smaller_than_images_gives_all_of_it(mesh):
    task, key = distillation(), jax.random.key(5)
    batch = {k: v[:8] for k, v in batch_of(0).items() if k != "mask"}
    ours, layers = observed(task, mesh, batch, key=key, images=32, rank_images=32)
    features, gradients = reference(task, batch, layers, key=key)
    assert_agree(ours, expected_of(features, gradients, range(8), range(8)))


def test_gradients_do_not_depend_on_the_batch_around_the_images(mesh):
    task = classification(args=STUDENT | {"drop_path_rate": 0.0})
    batch = {k: v for k, v in batch_of(0).items() if k != "mask"}
    whole, _ = observed(task, mesh, batch, images=4)
    alone, _ = observed(task, mesh, {k: v[:4] for k, v in batch.items()}, images=4)
    half, _ = observed(task, mesh, {k: v[:8] for k, v in batch.items()}, images=4)
    for name in whole:
        np.testing.assert_allclose(whole[name], alone[name], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(half[name], alone[name], rtol=1e-5, err_msg=name)
    # the last block's patch tokens reach the loss through nothing: the head reads the class token
    assert whole["gradient"][0] > 0 and whole["gradient"][1] == 0


def test_any_tap_of_a_class_attention_student(mesh):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    task = classification("cait_xxs24_224", args)
    layers = ("block_1", "cls_block_0", "cls_block_1", "pre_logits", "attn_0")
    # Of batch 0, fast compilation (conftest.py) rounds one of 144 values into another bin, or out of the range.
    batch, key = {k: v for k, v in batch_of(1).items() if k != "mask"}, jax.random.key(5)
    ours, named = observed(task, mesh, batch, key=key, layers=layers, images=6, rank_images=6)
    assert named == layers
    features, gradients = reference(task, batch, layers, key=key)
    expected = expected_of(features, gradients, range(6), range(6))
    for name in (*RANKS, "participation_ratio", "stable_rank"):
        expected[name][1:4] = np.nan  # one vector an image: no tokens, no rank
    assert_agree(ours, expected)


def test_values_stand_in_the_order_of_the_layers(mesh):
    args = STUDENT | {"depth": 11, "drop_path_rate": 0.0}
    batch = {k: v[:2] for k, v in batch_of(0).items() if k != "mask"}
    task = classification(args=args)
    ours, layers = observed(task, mesh, batch, gradients=False, ranks=False)
    assert layers == tuple(f"block_{i}" for i in range(11))  # and not block_0, block_1, block_10, block_2
    variables = {"params": task.init(jax.random.key(0))[0]["student"]}
    apply = jax.jit(lambda v, x: task.student.model.apply(v, x, train=False, taps=layers)[1])
    features = apply(variables, task.preprocess(batch))
    expected = [np.abs(np.asarray(features[name])).mean() for name in layers]
    np.testing.assert_allclose(ours["activation_mean"], expected, rtol=1e-4)


def test_stages_of_a_swin_differ_in_shape(mesh):
    args = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    task = classification("swin_tiny_patch4_window7_224", args)
    batch, key = {k: v for k, v in batch_of(0).items() if k != "mask"}, jax.random.key(5)
    ours, layers = observed(task, mesh, batch, key=key, images=5, rank_images=2)
    assert layers == ("stage_0", "stage_1")
    features, gradients = reference(task, batch, layers, key=key)
    assert features["stage_0"].shape[1:] == (16, 16, 12) and features["stage_1"].shape[1:] == (8, 8, 24)
    assert_agree(ours, expected_of(features, gradients, range(5), range(2)))


def test_parts_can_be_left_out(mesh):
    batch = batch_of(0)
    everything, _ = observed(classification(), mesh, batch, images=4)
    without, _ = observed(classification(), mesh, batch, images=4, gradients=False, ranks=False)
    assert set(everything) - set(without) == {"gradient", *RANKS, "participation_ratio", "stable_rank"}
    for name, value in without.items():
        np.testing.assert_allclose(value, everything[name], rtol=1e-6, err_msg=name)


def test_arithmetic_in_bfloat16_is_seen_in_fp32(mesh):
    task = classification()
    batch = batch_of(0)
    exact, _ = observed(task, mesh, batch)
    model = models.create("deit_tiny_patch16_224", num_classes=CLASSES, dtype=jnp.bfloat16, **STUDENT)
    task.student = weights.Network(model, task.student.spec, (32, 32), CLASSES, task.student.variables, "")
    rounded, _ = observed(task, mesh, batch)
    for name, value in rounded.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, exact[name], rtol=0.2, err_msg=name)
    assert not np.array_equal(rounded["intensity"], exact["intensity"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_show_and_only_where_they_are(mesh, bad):
    task = classification()
    params, _ = task.init(jax.random.key(0))
    params["student"]["blocks_1"]["mlp"]["fc2"]["bias"] = np.full(24, bad, np.float32)
    ours, _ = observed(task, mesh, batch_of(0), params=params, gradients=False)
    for name, value in ours.items():
        assert np.isnan(value[1]) and np.isfinite(value[0]), name


def test_a_batch_without_one_readable_image_has_no_statistics(mesh):
    batch = batch_of(0) | {"mask": np.zeros(BATCH, bool)}
    ours, _ = observed(classification(), mesh, batch, images=4)
    assert all(np.isnan(value).all() for value in ours.values())


@pytest.mark.slow
def test_one_device_is_eight_devices(tmp_path, mesh):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, str(HERE / "observe.py"), str(tmp_path / "out.npz")]
    subprocess.run(command, env=env, check=True, timeout=300)
    eight, one = dict(np.load(tmp_path / "out.npz")), observe.steps(mesh)
    # eleven images are spread over eight devices, two each, and none of them transforms the others'
    assert eight.pop("transformed").tolist() == [2] and one.pop("transformed").tolist() == [11]
    assert set(eight) == set(one) and np.ptp(one["0.intensity"]) > 0
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ("block_0", ConfigError, "one string"),
        (("block_0", "blok_1"), TapError, r"names \"blok_1\".*Did you mean"),
        (("block_0", "block_0"), TapError, "twice"),
    ],
)
def test_layers_that_cannot_be_watched(mesh, layers, error, words):
    with pytest.raises(error, match=words):
        pipeline.Dynamics(classification(), mesh, layers=layers)
