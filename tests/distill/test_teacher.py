"""The teacher: its own normalisation, evaluation mode, no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models, parallel
from jaxkd.distill import Teacher
from jaxkd.errors import ShapeError
from jaxkd.models import fused_attention, talking_heads
from tests.random_weights import random_variables

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Tiny(nn.Module):
    """Keeps the contract of the networks: (output, features), nothing but what was asked for."""

    @nn.compact
    def __call__(self, images, *, train=False, taps=()):
        assert not train
        features = {"block_0": images * self.param("scale", nn.initializers.constant(2.0), (3,))}
        return features["block_0"].mean((1, 2)), {t: features[t] for t in taps}


@pytest.fixture
def variables():
    return {"params": {"scale": jnp.array([2.0, 2.0, 2.0])}}


def test_images_arrive_with_the_teachers_own_normalisation(variables):
    raw = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    teacher = Teacher(Tiny(), *HALF, *IMAGENET)
    as_the_student_sees_it = (raw - np.array(IMAGENET[0])) / np.array(IMAGENET[1])
    _, features = teacher(variables, jnp.asarray(as_the_student_sees_it, jnp.float32), ("block_0",))
    np.testing.assert_allclose(features["block_0"], 2 * (raw - 0.5) / 0.5, atol=1e-5)


def test_equal_constants_leave_the_images_alone():
    images = jnp.ones((1, 2, 2, 3))
    assert Teacher(Tiny(), *HALF, *HALF).renormalise(images) is images
    # lists and tuples are the same constants
    assert Teacher(Tiny(), [0.5] * 3, [0.5] * 3, *HALF).renormalise(images) is images


def test_no_gradient_and_only_the_features_asked_for(variables):
    teacher = Teacher(Tiny(), *HALF, *IMAGENET)
    images = jnp.ones((2, 4, 4, 3))

    def total(v, x):
        output, features = teacher(v, x, ("block_0",))
        return output.sum() + features["block_0"].sum()

    assert float(total(variables, images)) != 0.0
    for grad in jax.tree.leaves(jax.grad(total, (0, 1))(variables, images)):
        np.testing.assert_array_equal(grad, 0.0)
    assert teacher(variables, images)[1] == {}


def test_half_precision_images_stay_so():
    images = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    assert Teacher(Tiny(), *HALF, *IMAGENET).renormalise(images).dtype == jnp.bfloat16


def test_channels_must_fit():
    with pytest.raises(ShapeError, match=r"\(1, 3, 8, 8\).*\[3\] channels.*NHWC"):
        Teacher(Tiny(), *HALF, *IMAGENET).renormalise(jnp.ones((1, 3, 8, 8)))


@pytest.mark.parametrize(
    ("name", "options", "tap", "module", "function"),
    [
        ("cait_xxs24_224", {"depth": 2, "num_heads": 2}, "block_1", talking_heads, "_forward"),
        ("deit_tiny_patch16_224", {"depth": 2, "num_heads": 2}, "block_1", fused_attention, "attention"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (2,), "num_heads": (2,), "window_size": 3},
            "stage_0",
            fused_attention,
            "attention",
        ),
    ],
)
def test_on_tpus_a_transformer_uses_its_kernel_on_the_images_of_each_device(
    monkeypatch, name, options, tap, module, function
):
    model = models.create(name, num_classes=5, img_size=32, embed_dim=32, **options)
    variables = random_variables(model, size=32)
    count = 2 * jax.device_count()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(count, 32, 32, 3)), jnp.float32)
    teacher = Teacher(model, *IMAGENET, *IMAGENET, parallel.make_mesh())
    shapes = []

    def kernel(qkv, *others):
        shapes.append(qkv.shape)
        return module.fused(qkv, *others, interpret=True)

    monkeypatch.setattr(module, function, kernel)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(lambda v, x: teacher(v, x, (tap,)))(variables, images)
        assert not shapes
        with models.traced_for("tpu"):
            result = jax.jit(lambda v, x: teacher(v, x, (tap,)))(variables, images)
    assert [shape[0] for shape in shapes] == [2, 2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), result, expected)
