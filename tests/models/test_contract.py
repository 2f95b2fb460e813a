"""Taps, offsets and sizes: the same promises for every family."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from random_weights import random_variables

from jaxkd import models
from jaxkd.errors import ConfigError, ShapeError, TapError

FAMILIES = ["deit", "distilled", "cait", "swin"]


def test_tap_names_are_in_depth_order(tiny):
    assert models.tap_names(tiny("deit", depth=2)) == (
        *("query_0", "key_0", "value_0", "attn_0", "prefix_0", "block_0"),
        *("query_1", "key_1", "value_1", "attn_1", "prefix_1", "block_1"),
        "pre_logits",
    )
    assert models.tap_names(tiny("deit", depth=1, class_token=False, global_pool="avg")) == (
        *("query_0", "key_0", "value_0", "attn_0", "block_0"),
        "pre_logits",
    )
    assert models.tap_names(tiny("cait", depth=2)) == (
        *("query_0", "key_0", "value_0", "attn_0", "block_0"),
        *("query_1", "key_1", "value_1", "attn_1", "block_1"),
        *("cls_block_0", "cls_block_1", "pre_logits"),
    )
    assert models.tap_names(tiny("swin", depths=(1, 1))) == (
        *(f"stage_0.block_0.{kind}" for kind in models.ATTENTION_TAPS),
        *("stage_0.block_0", "stage_0"),
        *(f"stage_1.block_0.{kind}" for kind in models.ATTENTION_TAPS),
        *("stage_1.block_0", "stage_1", "pre_logits"),
    )


EXPECTED_SHAPES = {
    "deit": {"block_1": (2, 4, 4, 24), "prefix_0": (2, 1, 24), "value_0": (2, 3, 17, 8), "attn_1": (2, 3, 17, 17)},
    "distilled": {"block_1": (2, 4, 4, 24), "prefix_0": (2, 2, 24), "attn_1": (2, 3, 18, 18), "pre_logits": (2, 24)},
    "cait": {"block_1": (2, 4, 4, 24), "key_1": (2, 3, 16, 8), "attn_1": (2, 3, 16, 16), "cls_block_1": (2, 24)},
    "swin": {
        "stage_0": (2, 9, 9, 8),
        "stage_0.block_1": (2, 9, 9, 8),
        "stage_1": (2, 5, 5, 16),
        "stage_0.block_1.attn": (2, 9, 1, 9, 9),
        "stage_0.block_1.query": (2, 9, 1, 9, 8),
        "stage_1.block_0.attn": (2, 4, 2, 9, 9),  # a 5 x 5 grid is padded to 6 x 6
        "pre_logits": (2, 16),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_can_be_had_and_none_changes_the_output(tiny, randomised, pictures, family):
    model = tiny(family)
    variables, images = randomised(model), pictures(model)
    apply = jax.jit(model.apply, static_argnames=("train", "taps"))
    plain, nothing = apply(variables, images)
    assert nothing == {}
    names = models.tap_names(model)
    output, features = apply(variables, images, taps=names)
    assert set(features) == set(names)
    np.testing.assert_allclose(output, plain, rtol=1e-5, atol=1e-5)
    shapes = {name: value.shape for name, value in features.items()}
    assert EXPECTED_SHAPES[family].items() <= shapes.items()
    for attention in (value for name, value in features.items() if "attn" in name):  # probabilities
        assert attention.min() >= 0
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_unasked_features_leave_no_trace(tiny, pictures, family):
    """The program without taps holds no more outputs than the logits, and asking for one adds exactly it."""
    model = tiny(family)
    images = pictures(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    last = [n for n in models.tap_names(model) if n.startswith(("block", "stage"))][-1]
    for taps, outputs in (((), 1), ((last,), 2)):
        program = jax.make_jaxpr(partial(model.apply, taps=taps))(shapes, images)
        assert len(program.jaxpr.outvars) == outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_at_a_zero_offset_is_the_gradient_of_the_layer(tiny, randomised, pictures, family):
    """<gradient, direction> equals the central difference along that direction, for every tap."""
    model = tiny(family)
    variables, images = randomised(model), pictures(model)
    names = models.tap_names(model)
    features = jax.eval_shape(partial(model.apply, taps=names), variables, images)[1]
    rng = np.random.default_rng(2)
    weight = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(offsets):
        return jnp.sum(weight * model.apply(variables, images, offsets=offsets)[0])

    _, gradients = loss({n: jnp.zeros_like(features[n]) for n in names})
    for name in names:
        # Half of it is the gradient itself, so that small gradients stand out of the rounding of the loss.
        direction = rng.normal(size=features[name].shape)
        halves = (direction, np.asarray(gradients[name]))
        direction = sum(half / max(np.linalg.norm(half), 1e-30) for half in halves)
        direction = jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)
        zeros = {n: jnp.zeros_like(features[n]) for n in names}
        step = 1e-2
        up, down = (loss({**zeros, name: sign * step * direction})[0] for sign in (1, -1))
        expected = (up - down) / (2 * step)
        scale = float(jnp.linalg.norm(gradients[name]))
        # After the last block of a DeiT only the prefix tokens are read.
        assert (scale == 0) == (name == "block_1" and family in ("deit", "distilled")), name
        np.testing.assert_allclose(
            jnp.vdot(gradients[name], direction), expected, rtol=2e-2, atol=5e-3 * scale, err_msg=name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorded_feature_includes_its_offset(tiny, randomised, pictures, family):
    model = tiny(family)
    variables, images = randomised(model), pictures(model)
    names = models.tap_names(model)
    apply = jax.jit(partial(model.apply, taps=names))
    shapes = jax.eval_shape(apply, variables, images)[1]
    zeros = {name: jnp.zeros_like(feature) for name, feature in shapes.items()}
    _, before = apply(variables, images, offsets=zeros)
    for offset, value in before.items():
        _, after = apply(variables, images, offsets={**zeros, offset: jnp.ones_like(value)})
        # Later features differ as well; earlier ones do not.
        np.testing.assert_allclose(after[offset], value + 1, atol=1e-4, err_msg=offset)
        for name in names[: names.index(offset)]:
            if name.rsplit(".", 1)[0] != offset.rsplit(".", 1)[0] and name.split("_")[-1] != offset.split("_")[-1]:
                np.testing.assert_allclose(after[name], before[name], atol=1e-4, err_msg=f"{offset} on {name}")


@pytest.mark.parametrize(
    ("family", "tap", "message"),
    [
        ("deit", "block_2", r'tap "block_2" does not exist.*Did you mean.*block_0 \.\.\. block_1.*tap_names'),
        ("cait", "prefix_0", r'tap "prefix_0" does not exist.*cls_block_0 \.\.\. cls_block_1, pre_logits'),
        ("swin", "block_0", r'tap "block_0" does not exist.*stage_0 \.\.\. stage_1'),
    ],
)
def test_an_unknown_tap_says_what_exists(tiny, pictures, family, tap, message):
    model = tiny(family)
    images = pictures(model)
    with pytest.raises(TapError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, taps=(tap,)))


def test_an_unknown_offset_is_an_error_too(tiny, pictures):
    model = tiny("deit")
    images = pictures(model)
    with pytest.raises(TapError, match='offset "blok_0" does not exist'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, offsets={"blok_0": jnp.zeros(())}))


def test_taps_as_one_string_are_an_error(tiny, pictures):
    model = tiny("deit")
    images = pictures(model)
    with pytest.raises(TapError, match=r'Write taps=\("block_0",\)'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, taps="block_0"))


@pytest.mark.parametrize("tap", ["block_0", "attn_0"])
def test_an_offset_must_not_broadcast(tiny, pictures, tap):
    model = tiny("deit")
    images = pictures(model)
    with pytest.raises(ShapeError, match=r"offset of \"\w+\" has shape \(1,\)"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, offsets={tap: jnp.zeros((1,))}))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 48, 32, 3), r"\(2, 48, 32, 3\), but .* built for \(batch, 32, 32, 3\).*img_size=\(48, 32\)"),
        ((2, 3, 32, 32), r"look like NCHW.*transpose\(0, 2, 3, 1\)"),
        ((32, 32, 3), r"built for \(batch, 32, 32, 3\).*images\[None\]"),
        ((2, 32, 32, 1), "in_chans=1"),
    ],
)
def test_wrong_images_are_explained(tiny, shape, message):
    model = tiny("cait")
    with pytest.raises(ShapeError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))


def test_distilled_needs_a_distilled_network(tiny, pictures):
    model = tiny("deit")
    images = pictures(model)
    with pytest.raises(ConfigError, match=r"distilled=True, but this network has one head"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, distilled=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_without_a_key_is_explained(tiny, pictures, family):
    model = tiny(family, drop_path_rate=0.1)
    images = pictures(model)
    with pytest.raises(ConfigError, match=r'Stochastic depth .*no key named "dropout"'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))


class Scaled(nn.Module):
    """A network whose scale starts at the mean of the images, with a field that may have no hash."""

    widths: tuple | list = (3,)

    @nn.compact
    def __call__(self, images, times=1):
        scale = self.param("scale", lambda key: images.mean() + 2.0)
        return times * images * scale * self.param("colour", nn.initializers.ones, tuple(self.widths))


@pytest.mark.parametrize("widths", [(3,), [3]], ids=["hashable", "unhashable"])
def test_shapes_are_known_without_a_computation_and_the_answer_may_be_changed(widths):
    for _ in range(2):
        variables, output = models.abstract_call(Scaled(widths), (1, 4, 4, 3), times=2)
        assert output.shape == (1, 4, 4, 3) and variables["params"].pop("colour").shape == (3,)
    assert models.abstract_variables(Scaled(widths), (1, 4, 4, 3))["params"]["colour"].shape == (3,)


def test_parameters_that_depend_on_the_images_start_from_black_ones():
    assert models.init_variables(Scaled(), jax.random.key(0), (1, 4, 4, 3))["params"]["scale"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_first_parameters_are_those_of_init(tiny, family):
    model, key = tiny(family), jax.random.key(1)
    shape = (1, *model.img_size, 3)
    jax.tree.map(
        np.testing.assert_array_equal, models.init_variables(model, key, shape), model.init(key, jnp.zeros(shape))
    )


def test_parameters_of_another_shape_are_refused(tiny):
    model = tiny("deit")
    variables = random_variables(model, size=model.img_size[0])
    variables["params"]["norm"]["bias"] = np.zeros(23, np.float32)
    with pytest.raises(ScopeParamShapeError, match=r"(?s)bias.*\(24,\)"):
        model.apply(variables, jnp.zeros((1, *model.img_size, 3)))
