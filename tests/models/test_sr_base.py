"""Properties that MDBN and EDSR share: sizes, receptive field, taps, gradients, types, errors."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError, ShapeError, TapError
from jaxkd.models.mdbn import MDBN
from jaxkd.models.sr_base import pixel_shuffle

FAMILIES = ["mdbn", "edsr"]


def build(family: str, scale: int = 2, **kwargs):
    return models.create(f"{family}_x{scale}", **{"num_feat": 6, "num_block": 2, **kwargs})


def drawn(model, seed: int = 0):
    """Variables in the range of the initial ones, drawn by NumPy: compiling the initialiser would take longest."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 3)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.15, 0.15, x.shape), jnp.float32), shapes)


def picture(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


# --- sizes


@pytest.mark.parametrize("name", ["mdbn_x2", "mdbn_x3", "mdbn_x4", "mdbn_x8", "edsr_x2", "edsr_x3", "edsr_x4"])
def test_any_size_is_enlarged_by_the_scale(name):
    model = models.create(name, num_feat=4, num_block=1)
    variables = drawn(model)
    for height, width in ((1, 1), (1, 7), (5, 2)):
        output, features = jax.eval_shape(model.apply, variables, picture(2, height, width, 3))
        assert output.shape == (2, height * model.scale, width * model.scale, 3)
        assert output.dtype == jnp.float32 and features == {}
    assert np.isfinite(jax.jit(model.apply)(variables, picture(2, 1, 1, 3))[0]).all()


def test_pixel_shuffle_reads_channel_then_row_then_column():
    # channel c r^2 + row r + column of the only pixel goes to (row, column, c)
    x = jnp.arange(2 * 9, dtype=jnp.float32).reshape(1, 1, 1, 18)
    out = pixel_shuffle(x, 3)
    assert out.shape == (1, 3, 3, 2)
    np.testing.assert_array_equal(out[0, :, :, 0], [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(out[0, :, :, 1], [[9, 10, 11], [12, 13, 14], [15, 16, 17]])
    wide = pixel_shuffle(jnp.arange(8.0).reshape(1, 1, 2, 4), 2)  # two pixels beside each other
    np.testing.assert_array_equal(wide[0, :, :, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 8), r"takes \(batch, height, width, 3\).*look like NCHW.*transpose\(0, 2, 3, 1\)"),
        ((8, 8, 3), r"takes \(batch, height, width, 3\).*images\[None\]"),
        ((1, 8, 8, 4), "Convert the images to RGB, without alpha"),
        ((1, 0, 8, 3), "at least 1 x 1 pixels"),
    ],
)
def test_wrong_images_are_explained(shape, message):
    with pytest.raises(ShapeError, match=message):
        jax.eval_shape(lambda: build("mdbn").init(jax.random.key(0), jnp.zeros(shape)))


def test_another_scale_is_an_error():
    with pytest.raises(ConfigError, match="scale=5 is not implemented.*2, 3, 4, 8"):
        MDBN(scale=5)


# --- receptive field


@pytest.mark.parametrize(
    ("name", "expected"), [("mdbn_x2", 28), ("mdbn_x3", 28), ("mdbn_x4", 28), ("mdbn_x8", 28), ("edsr_x4", 36)]
)
def test_receptive_field_of_the_full_networks(name, expected):
    assert models.create(name).receptive_field == expected


@pytest.mark.parametrize("name", ["mdbn_x2", "mdbn_x3", "mdbn_x4", "mdbn_x8", "edsr_x2", "edsr_x3", "edsr_x4"])
def test_influence_ends_exactly_at_the_receptive_field(name):
    model = models.create(name, num_feat=3, num_block=2)
    reach, s = model.receptive_field, model.scale
    # Positive weights: nothing cancels, and no unit is cut off.
    variables = jax.tree.map(lambda x: 0.02 + jnp.abs(x) / 4, drawn(model))
    centre = reach + 2
    plain = picture(1, 2 * centre + 1, 2 * centre + 1, 3)
    edge = [(reach, 0), (-reach, 0), (0, reach), (0, -reach), (reach, -reach)]
    outside = [(reach + 1, 0), (-reach - 1, 0), (0, reach + 1), (0, -reach - 1), (reach + 1, reach + 1)]
    # So large that after the many averages on the way something is left in fp32 beside the rest.
    changed = [plain.at[0, centre + dy, centre + dx].add(1e20) for dy, dx in edge + outside]
    outputs = jax.jit(model.apply)(variables, jnp.concatenate([plain, *changed]))[0]
    of_centre = np.asarray(outputs[:, s * centre : s * centre + s, s * centre : s * centre + s])
    moved = np.abs(of_centre[1:] - of_centre[:1]).max(axis=(1, 2, 3)) > 0
    assert moved.tolist() == [True] * len(edge) + [False] * len(outside)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_that_overlap_by_the_receptive_field_fit_together(family):
    model = build(family, 3, num_block=1)
    variables, image, reach, s = drawn(model), picture(1, 29, 31, 3), model.receptive_field, model.scale
    apply = jax.jit(model.apply)
    whole = np.asarray(apply(variables, image)[0])
    top, left, size = 9, 10, 11
    tile = image[:, top - reach : top + size + reach, left - reach : left + size + reach]
    inside = np.asarray(apply(variables, tile)[0])[:, s * reach : -s * reach, s * reach : -s * reach]
    np.testing.assert_allclose(
        inside, whole[:, s * top : s * (top + size), s * left : s * (left + size)], rtol=0, atol=1e-6
    )


# --- training


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family):
    model = build(family, 4)
    variables, image, target = drawn(model), picture(2, 6, 5, 3), picture(2, 24, 20, 3, seed=2)
    gradients = jax.jit(jax.grad(lambda v: jnp.abs(model.apply(v, image, train=True)[0] - target).mean()))(variables)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert float(jnp.abs(gradient).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_remat_changes_no_value(family):
    image = picture(1, 5, 6, 3)
    results = []
    for remat in (False, True):
        model = build(family, remat=remat)
        variables = drawn(model)
        taps = models.tap_names(model)
        loss = lambda v, m=model, t=taps: sum(f.sum() for f in m.apply(v, image, taps=t)[1].values())  # noqa: E731
        run = jax.jit(lambda v, m=model, f=loss: (m.apply(v, image)[0], jax.grad(f)(v)))
        results.append((variables, *run(variables)))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for got, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_the_type_of_the_arithmetic_only(family):
    image = picture(2, 7, 8, 3)
    model, half = build(family), build(family, dtype=jnp.bfloat16)
    variables = drawn(half)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
    output, features = jax.jit(partial(half.apply, taps=("block_1",)))(variables, image)
    assert output.dtype == jnp.float32 and features["block_1"].dtype == jnp.bfloat16
    np.testing.assert_allclose(output, jax.jit(model.apply)(variables, image)[0], atol=2e-2)
    # Not rounded to the 256 levels that bf16 has between 0.5 and 2.
    assert np.abs(np.asarray(output) - np.asarray(output.astype(jnp.bfloat16), np.float32)).max() > 0
    gradients = jax.eval_shape(jax.grad(lambda v: half.apply(v, image)[0].sum()), variables)
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {np.dtype("float32")}


def test_res_scale_multiplies_the_branch():
    image = picture(1, 4, 4, 3)
    for family in FAMILIES:
        variables = drawn(build(family, num_block=1))
        blocks = []
        for res_scale in (0.0, 1.0, 2.0):
            features = build(family, num_block=1, res_scale=res_scale).apply(variables, image, taps=("block_0",))[1]
            blocks.append(np.asarray(features["block_0"]))
        none, one, two = blocks
        np.testing.assert_allclose(two - none, 2 * (one - none), rtol=1e-4, atol=1e-4)
        assert np.abs(one - none).max() > 1e-3


# --- taps


def test_tap_names_are_in_depth_order():
    inside = ("deep_0", "shallow_0", "deep_1", "shallow_1")
    expected = (*(f"block_0.{n}" for n in inside), "block_0", *(f"block_1.{n}" for n in inside), "block_1")
    assert models.tap_names(build("mdbn")) == expected
    assert models.tap_names(build("edsr")) == ("block_0", "block_1")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_can_be_had_and_none_changes_the_output(family):
    model = build(family)
    variables, image = drawn(model), picture(2, 4, 5, 3)
    names = models.tap_names(model)
    plain = model.apply(variables, image)[0]
    output, features = model.apply(variables, image, taps=names)
    np.testing.assert_array_equal(output, plain)
    assert set(features) == set(names)
    assert {f.shape for f in features.values()} == {(2, 4, 5, 6)}
    for name in names:
        only = model.apply(variables, image, taps=(name,))[1]
        assert set(only) == {name}
        np.testing.assert_array_equal(only[name], features[name])
    shapes = jax.eval_shape(lambda: variables)
    for taps, count in (((), 1), ((names[0],), 2)):
        assert len(jax.make_jaxpr(partial(model.apply, taps=taps))(shapes, image).jaxpr.outvars) == count


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_at_a_zero_offset_is_the_gradient_of_the_layer(family):
    model = build(family)
    variables, image = drawn(model), picture(1, 4, 5, 3)
    names = models.tap_names(model)
    features = model.apply(variables, image, taps=names)[1]
    zeros = jax.tree.map(jnp.zeros_like, features)
    weight = picture(1, 8, 10, 3, seed=3)
    # img_range 255 makes EDSR's features large and their gradients small.
    loss = jax.jit(lambda offsets: 255 * jnp.sum(weight * model.apply(variables, image, offsets=offsets)[0]))
    gradients = jax.jit(jax.grad(loss))(zeros)
    for name in names:
        direction = picture(*features[name].shape, seed=4) - 0.5
        up, down = (loss({**zeros, name: sign * 1e-1 * direction}) for sign in (1, -1))
        expected = float(up - down) / 0.2
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(jnp.vdot(gradients[name], direction), expected, rtol=2e-2, atol=0.05, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorded_feature_includes_its_offset(family):
    model = build(family)
    variables, image = drawn(model), picture(1, 4, 5, 3)
    for name in models.tap_names(model):
        before = model.apply(variables, image, taps=(name,))[1][name]
        after = model.apply(variables, image, taps=(name,), offsets={name: jnp.ones_like(before)})[1][name]
        np.testing.assert_allclose(after, before + 1, atol=1e-4, err_msg=name)


def test_an_unknown_tap_says_what_exists():
    model = build("mdbn")
    with pytest.raises(TapError, match=r'"block_0\.deep_2" does not exist in this MDBN.*Did you mean'):
        model.apply(drawn(model), picture(1, 2, 2, 3), taps=("block_0.deep_2",))
    model = build("edsr")
    with pytest.raises(TapError, match=r'"block_0\.deep_0" does not exist in this EDSR.*block_0 \.\.\. block_1'):
        model.apply(drawn(model), picture(1, 2, 2, 3), taps=("block_0.deep_0",))


@pytest.mark.parametrize("name", ["mdbn_x2", "mdbn_x3", "mdbn_x4", "mdbn_x8", "edsr_x4"])
def test_strips_change_no_pixel(name):
    """One row to more than all, with and without a smaller strip at the bottom; two images, nine pixels wide."""
    model = models.create(name, num_feat=6, num_block=1)
    variables = drawn(model)
    for height, all_strip_pixels in ((1, (9,)), (2, (9,)), (7, (1, 18, 27)), (8, (36, 10_000))):
        images = picture(2, height, 9, 3)
        whole, _ = jax.jit(model.apply)(variables, images)
        for strip_pixels in all_strip_pixels:
            striped = model.clone(strip_pixels=strip_pixels)
            got, features = jax.jit(partial(striped.apply, taps=("block_0",)))(variables, images)
            np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-6, err_msg=f"{height} {strip_pixels}")
            assert features["block_0"].shape == (2, height, 9, 6)


def test_strips_start_from_the_same_values():
    model = build("mdbn", num_block=1)
    images, key = picture(1, 3, 4, 3), jax.random.key(0, impl="rbg")
    whole, striped = (jax.jit(m.init)(key, images) for m in (model, model.clone(strip_pixels=4)))
    jax.tree.map(np.testing.assert_array_equal, whole, striped)


def test_strips_hold_no_large_map():
    """What the last upsampling makes of the whole image is never there: 64 channels of 256 x 256 pixels, fp32."""
    model = models.create("mdbn_x4", num_block=1)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    images, large = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), 256 * 256 * 64 * 4

    def held(strip_pixels):
        network = model.clone(strip_pixels=strip_pixels)
        return jax.jit(network.apply).lower(variables, images).compile().memory_analysis().temp_size_in_bytes

    assert held(0) > large > held(512)


@pytest.mark.parametrize("wrong", [-1, 1.5])
def test_strips_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match="strip_pixels"):
        models.create("mdbn_x2").clone(strip_pixels=wrong)
