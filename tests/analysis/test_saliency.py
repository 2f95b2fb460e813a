"""Maps of the image and of the layers against scores whose gradients are known, and against finite differences."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxkd import models
from jaxkd.analysis import saliency
from jaxkd.errors import ConfigError, ShapeError

SHAPE = (2, 5, 4, 3)
TINY = {
    "deit": ("deit_tiny_patch16_224", {"embed_dim": 12, "depth": 2, "num_heads": 2}),
    "cait": ("cait_xxs24_224", {"embed_dim": 12, "depth": 2, "num_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 6, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}),
}
# Taps that a score reads, of every kind: maps, prefix tokens, class attention, vectors.
TAPS = {
    "deit": ("block_0", "prefix_1", "pre_logits"),
    "cait": ("block_0", "block_1", "cls_block_0", "cls_block_1", "pre_logits"),
    "swin": ("stage_0.block_0", "stage_0", "stage_1", "pre_logits"),
}


def draw(shape=SHAPE, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear(weight: jax.Array):
    """A score with the gradient `weight[class]`."""
    return lambda images, classes: (weight[classes] * images).sum(axis=(1, 2, 3))


def cubic(images: jax.Array, classes: jax.Array) -> jax.Array:
    """Neighbouring channels interact, and so does the class."""
    return ((images**3).sum(-1) + images[..., 0] * images[..., 1] * (1 + classes)[:, None, None]).sum((1, 2))


def cube(images: jax.Array, classes: jax.Array) -> jax.Array:
    return (images**3).sum((1, 2, 3))


def square(images: jax.Array, classes: jax.Array) -> jax.Array:
    return (images**2).sum((1, 2, 3))


def scored(forward):
    """(images, offsets) -> logits as a score of images."""
    return lambda images, classes: saliency.class_score(forward(images, {}), classes)


@pytest.fixture(scope="module")
def network():
    """`network("cait")` -> (forward, images, classes, shapes of its features), with parameters that all matter."""

    def build(family: str):
        name, args = TINY[family]
        model = models.create(name, img_size=16, patch_size=4, num_classes=5, **args)
        images, classes = draw((2, 16, 16, 3), 3), jnp.array([1, 4])
        rng = np.random.default_rng(4)
        variables = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.asarray(rng.normal(path[-1].key == "scale", 0.3, x.shape), jnp.float32),
            jax.eval_shape(model.init, jax.random.key(0), images),
        )
        shapes = jax.eval_shape(lambda x: model.apply(variables, x, taps=TAPS[family])[1], images)
        forward = jax.jit(lambda x, offsets: model.apply(variables, x, offsets=offsets)[0])
        return forward, images, classes, shapes

    return build


CLASSES = jnp.array([1, 0])
KEY = jax.random.key(5)


# ---- the image


def test_vanilla_gradient_of_a_linear_score_is_its_weight():
    weight = draw((2, 5, 4, 3), 1)
    for reduction, expected in (
        ("none", weight[CLASSES]),
        ("max", np.abs(weight[CLASSES]).max(-1)),
        ("mean", np.abs(weight[CLASSES]).mean(-1)),
    ):
        got = saliency.vanilla_gradient(linear(weight), draw(), CLASSES, reduction=reduction)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_vanilla_gradient_of_a_network_by_finite_differences(network):
    forward, images, classes, _ = network("deit")
    score = scored(forward)
    gradient = saliency.vanilla_gradient(score, images, classes, reduction="none")
    direction, step = draw(images.shape, 8), 1e-2
    moved = (score(images + step * direction, classes) - score(images - step * direction, classes)) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), moved, rtol=5e-3)


def test_smooth_grad_without_noise_is_the_vanilla_gradient():
    got = saliency.smooth_grad(cubic, draw(), CLASSES, KEY, noise=0.0, samples=7)
    np.testing.assert_allclose(got, saliency.vanilla_gradient(cubic, draw(), CLASSES), rtol=1e-6)


def test_smooth_grad_averages_signed_gradients_over_noise_of_the_images_range():
    # Of x^3 the gradient is 3 x^2, and its mean over noise of deviation s is 3 (x^2 + s^2).
    images = draw() * jnp.array([1.0, 3.0])[:, None, None, None]
    sigma = 0.15 * np.ptp(np.asarray(images), axis=(1, 2, 3))
    got = saliency.smooth_grad(cube, images, CLASSES, KEY, samples=4000, batch=500, reduction="none")
    added = (got - 3 * images**2).mean((1, 2, 3))
    np.testing.assert_allclose(added, 3 * sigma**2, rtol=0.05)
    # |.| comes after the mean: the sign of a gradient that noise flips cancels
    still = images.at[:, 0, 0].set(0.0)
    flips = saliency.smooth_grad(square, still, CLASSES, KEY, samples=4000, batch=500)[:, 0, 0]
    assert (flips < 0.1 * sigma).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("per_image", [False, True])
def test_smooth_grad_does_not_depend_on_block_or_batch(impl, per_image):
    images, classes = draw((4, 5, 4, 3)), jnp.arange(4)
    key = jax.random.key(2, impl=impl)
    keys = jax.random.split(key, 4) if per_image else key
    run = partial(saliency.smooth_grad, cubic, samples=7)
    whole = run(images, classes, keys, batch=1000)
    for batch in (1, 12):
        np.testing.assert_allclose(run(images, classes, keys, batch=batch), whole, rtol=1e-5)
    last = run(images[3:], classes[3:], keys[3:] if per_image else key)
    np.testing.assert_allclose(last, whole[3:], rtol=1e-5)


def test_keys_of_their_own_give_images_draws_of_their_own():
    twice = jnp.repeat(draw()[:1], 2, axis=0)
    shared = saliency.smooth_grad(cubic, twice, jnp.zeros(2, int), KEY)
    own = saliency.smooth_grad(cubic, twice, jnp.zeros(2, int), jax.random.split(KEY))
    np.testing.assert_array_equal(shared[0], shared[1])
    assert not np.allclose(own[0], own[1])
    old = saliency.smooth_grad(cubic, twice, jnp.zeros(2, int), jax.random.PRNGKey(5))
    np.testing.assert_array_equal(old, shared)


@pytest.mark.parametrize("rule", saliency.RULES)
def test_integrated_gradients_of_a_linear_score_are_exact(rule):
    # All attributions are positive, so that the sum has no cancellation and fp32 can show 1e-6.
    weight, images, baseline = jnp.abs(draw(seed=1)), 1 + jnp.abs(draw()), jnp.array([0.5, -1.0, 0.0])
    got, error = saliency.integrated_gradients(linear(weight), images, CLASSES, baseline=baseline, steps=3, rule=rule)
    np.testing.assert_allclose(got, weight[CLASSES] * (images - baseline), rtol=1e-5, atol=1e-6)
    assert error.shape == (2,) and (error < 1e-6).all()


def test_completeness_error_falls_as_the_rules_say():
    # The gradient of x^3 along the path is quadratic: with n steps the trapezoid rule misses 1 / (2 n^2) of the change,
    # the midpoint rule half of that, the one-sided sums 3 / (2 n) -+ 1 / (2 n^2), two Gauss points nothing.
    def run(rule: str, n: int) -> jax.Array:
        return saliency.integrated_gradients(cube, draw() + 3, CLASSES, steps=n, rule=rule)[1]

    for n in (2, 8):
        np.testing.assert_allclose(run("trapezoid", n), 1 / (2 * n**2), rtol=2e-3)
        np.testing.assert_allclose(run("midpoint", n), 1 / (4 * n**2), rtol=2e-3)
        np.testing.assert_allclose(run("right", n), 3 / (2 * n) + 1 / (2 * n**2), rtol=1e-4)
        np.testing.assert_allclose(run("left", n), 3 / (2 * n) - 1 / (2 * n**2), rtol=1e-4)
    assert (run("gauss", 2) < 1e-6).all() and (run("gauss", 1) > 0.1).all()


def test_integrated_gradients_do_not_depend_on_block_or_batch():
    images, classes = draw((4, 5, 4, 3)), jnp.arange(4)
    run = partial(saliency.integrated_gradients, cubic, steps=11, rule="trapezoid")
    whole, error = run(images, classes, batch=1000)
    for batch in (1, 12):
        other, other_error = run(images, classes, batch=batch)
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other_error, error, rtol=1e-3)
    np.testing.assert_allclose(run(images[3:], classes[3:])[0], whole[3:], rtol=1e-5, atol=1e-6)


def test_completeness_error_of_a_network_is_small_for_gauss(network):
    forward, images, classes, _ = network("deit")
    score = scored(forward)
    attributions, error = saliency.integrated_gradients(score, images, classes, steps=30)
    assert (error < 1e-3).all()
    change = score(images, classes) - score(jnp.zeros_like(images), classes)
    np.testing.assert_allclose(saliency.attribution_map(attributions), np.abs(attributions.sum(-1)), rtol=1e-4)
    np.testing.assert_allclose(attributions.sum((1, 2, 3)), change, rtol=1e-3, atol=1e-4)


def test_an_image_that_is_its_own_baseline_and_one_of_one_colour():
    flat = jnp.full(SHAPE, 2.0)
    attributions, error = saliency.integrated_gradients(cubic, flat, CLASSES, baseline=2.0)
    assert not attributions.any() and not error.any()
    smooth = saliency.smooth_grad(cubic, flat, CLASSES, KEY)
    np.testing.assert_allclose(smooth, saliency.vanilla_gradient(cubic, flat, CLASSES), rtol=1e-6)


def test_error_is_absolute_where_the_scores_do_not_differ():
    # f(1) = f(-1), but one right-hand step from -1 attributes 2 * 2 = 4 per value
    _, error = saliency.integrated_gradients(square, jnp.ones(SHAPE), CLASSES, baseline=-1.0, steps=1, rule="right")
    np.testing.assert_allclose(error, 4 * 60, rtol=1e-6)


def test_nan_stays_with_its_image():
    images, head = draw().at[0, 0, 0, 0].set(jnp.nan), draw((3, 2), 1)

    def forward(x, offsets):
        maps = x**2 + offsets.get("maps", 0)
        return (maps**2).mean((1, 2)) @ head

    score = scored(forward)
    vanilla = saliency.vanilla_gradient(score, images, CLASSES)
    smooth = saliency.smooth_grad(score, images, CLASSES, KEY, samples=3)
    attributions, error = saliency.integrated_gradients(score, images, CLASSES, steps=3)
    gradients = saliency.layer_gradients(forward, images, CLASSES, {"maps": jnp.zeros(SHAPE)})
    for value in (vanilla, smooth, attributions, error, saliency.layer_gradient_maps(gradients)["maps"]):
        assert np.isnan(value[0]).any() and np.isfinite(value[1]).all()


# ---- the layers


@pytest.mark.parametrize("family", TINY)
def test_layer_gradients_are_those_of_an_offset(network, family):
    forward, images, classes, shapes = network(family)
    zeros = saliency.zero_offsets(shapes)
    together = jax.jit(partial(saliency.layer_gradients, forward))(images, classes, zeros)
    assert set(together) == set(TAPS[family])
    maps = saliency.layer_gradient_maps(together)
    score = jax.jit(lambda offsets: saliency.class_score(forward(images, offsets), classes))
    for number, (tap, gradient) in enumerate(together.items()):
        assert gradient.shape == shapes[tap].shape and np.abs(gradient).max() > 1e-4
        direction, step = draw(gradient.shape, number), 2e-2
        moved = (score({tap: step * direction}) - score({tap: -step * direction})) / (2 * step)
        inner = (gradient * direction).reshape(2, -1).sum(1)
        np.testing.assert_allclose(inner, moved, rtol=1e-2, atol=1e-2 * np.abs(moved).max(), err_msg=tap)
        grid = gradient.shape[1:3] if gradient.ndim == 4 else (1, 1)
        assert maps[tap].shape == (2, *grid)
        np.testing.assert_allclose(maps[tap].mean(), np.abs(gradient).mean(), rtol=1e-5)


def test_the_gradient_of_a_vector_before_the_head_is_a_row_of_the_head():
    head = draw((6, 5), 1)

    def forward(x, offsets):
        return (x.mean((1, 2)) @ jnp.ones((3, 6)) + offsets["pre_logits"]) @ head

    def loss(logits, classes):
        return -jax.nn.log_softmax(logits)[jnp.arange(2), classes]

    got = saliency.layer_gradients(forward, draw(), CLASSES, {"pre_logits": jnp.zeros((2, 6))})["pre_logits"]
    np.testing.assert_allclose(got, head.T[CLASSES], rtol=1e-6)
    of_loss = saliency.layer_gradients(forward, draw(), CLASSES, {"pre_logits": jnp.zeros((2, 6))}, score=loss)
    probabilities = jax.nn.softmax(forward(draw(), {"pre_logits": 0}))
    expected = (probabilities - jax.nn.one_hot(CLASSES, 5)) @ head.T
    np.testing.assert_allclose(of_loss["pre_logits"], expected, rtol=1e-4, atol=1e-6)


def test_patch_tokens_that_nothing_reads_have_no_gradient(network):
    forward, images, classes, shapes = network("deit")
    zeros = {"block_1": jnp.zeros(shapes["block_0"].shape), "prefix_1": jnp.zeros(shapes["prefix_1"].shape)}
    got = saliency.layer_gradients(forward, images, classes, zeros)
    assert not got["block_1"].any() and got["prefix_1"].any()


def test_a_layers_gradient_does_not_depend_on_the_batch(network):
    forward, images, classes, shapes = network("swin")
    whole = saliency.layer_gradients(forward, images, classes, saliency.zero_offsets(shapes))
    zeros = {name: jnp.zeros((1, *value.shape[1:])) for name, value in shapes.items()}
    alone = saliency.layer_gradients(forward, images[1:], classes[1:], zeros)
    for name, value in alone.items():
        np.testing.assert_allclose(value[0], whole[name][1], rtol=1e-4, atol=1e-6)


def test_everything_runs_inside_jit_and_shard_map():
    images, weight = draw(), draw((2, 5, 4, 3), 1)

    def forward(x, offsets):
        return jnp.einsum("bhwc,khwc->bk", x**2 + offsets.get("square", 0), weight)

    score = scored(forward)

    def all_of_it(x, c):
        zeros = {"square": jnp.zeros(x.shape)}  # made inside: the same value on every device
        return (
            saliency.vanilla_gradient(score, x, c),
            saliency.smooth_grad(score, x, c, KEY, samples=5, batch=4),
            *saliency.integrated_gradients(score, x, c, steps=5, batch=4),
            saliency.layer_gradients(forward, x, c, zeros)["square"],
        )

    plain = all_of_it(images, CLASSES)
    spec = PartitionSpec("data")
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharded = jax.jit(jax.shard_map(all_of_it, mesh=mesh, in_specs=spec, out_specs=spec))(images, CLASSES)
    for a, b in zip(plain, sharded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_images_are_computed_in_float32():
    got = saliency.vanilla_gradient(cubic, draw().astype(jnp.bfloat16), CLASSES)
    assert got.dtype == jnp.float32


# ---- errors


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s, x: saliency.smooth_grad(s, x, CLASSES, KEY, samples=0), ConfigError, "samples=0 is out of range"),
        (lambda s, x: saliency.smooth_grad(s, x, CLASSES, KEY, noise=-1), ConfigError, "noise=-1 is out of range"),
        (lambda s, x: saliency.smooth_grad(s, x, CLASSES, KEY, batch=0), ConfigError, "batch=0 is out of range"),
        (lambda s, x: saliency.smooth_grad(s, x, CLASSES, jax.random.split(KEY, 3)), ShapeError, "3 keys came with 2"),
        (lambda s, x: saliency.vanilla_gradient(s, x, CLASSES, reduction="maxx"), ConfigError, 'mean "max"'),
        (lambda s, x: saliency.integrated_gradients(s, x, CLASSES, steps=0), ConfigError, "steps=0 is out of range"),
        (lambda s, x: saliency.integrated_gradients(s, x, CLASSES, rule="midpont"), ConfigError, '"midpoint"'),
        (lambda s, x: saliency.integrated_gradients(s, x, CLASSES, baseline=np.zeros(2)), ShapeError, r"shape \(2,\)"),
        (
            lambda s, x: saliency.integrated_gradients(s, x, CLASSES, baseline=np.zeros((7, *SHAPE))),
            ShapeError,
            "The baseline has shape",
        ),
        (lambda s, x: saliency.vanilla_gradient(lambda a, c: a.sum(), x, CLASSES), ShapeError, r"shape \(\) for 2"),
        (lambda s, x: saliency.class_score(jnp.zeros((2, 5)), jnp.zeros((2, 5))), ShapeError, "one number per image"),
        (
            lambda s, x: saliency.layer_gradients(lambda a, o: a, x, CLASSES, {"block_0": jnp.zeros((1, 3))}),
            ShapeError,
            'zeros of "block_0" have shape',
        ),
        (lambda s, x: saliency.layer_gradient_maps({"a": jnp.zeros((1, 2, 3, 4, 5))}), ShapeError, 'gradient of "a"'),
    ],
)
def test_errors_say_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text):
        call(cubic, draw())


def test_no_taps_are_no_gradients():
    assert saliency.layer_gradients(lambda x, o: x, draw(), CLASSES, {}) == {}
