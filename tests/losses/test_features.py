"""Feature MSE and channel pooling, by hand and against PyTorch's adaptive pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ShapeError

# (C, channels): divisible, not divisible, one channel, one fewer, many per group
POOLS = [(12, 6), (12, 7), (13, 5), (10, 6), (384, 192), (192, 72), (5, 1), (5, 4), (96, 3), (8, 8)]


def test_pooling_by_hand():
    x = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
    np.testing.assert_allclose(losses.pool_channels(x[:, :4], 2), [[1.5, 6.0]])
    # windows [0, 2), [1, 4), [3, 5): floor(5 i / 3) to ceil(5 (i + 1) / 3)
    np.testing.assert_allclose(losses.pool_channels(x, 3), [[1.5, 14.0 / 3, 12.0]], rtol=1e-6)
    np.testing.assert_allclose(losses.pool_channels(x, 1), [[6.2]], rtol=1e-6)


@pytest.mark.parametrize(("have", "channels"), POOLS)
def test_pooling_is_every_window_mean(have, channels):
    x = np.random.default_rng(0).normal(size=(2, 3, have)).astype(np.float32)
    expected = np.stack(
        [x[..., i * have // channels : -(-(i + 1) * have // channels)].mean(-1) for i in range(channels)], axis=-1
    )
    np.testing.assert_allclose(losses.pool_channels(x, channels), expected, rtol=1e-5, atol=1e-6)


def test_pooling_keeps_double_and_raises_half_precision():
    assert losses.pool_channels(jnp.ones((2, 4), jnp.bfloat16), 2).dtype == jnp.float32
    with jax.enable_x64(True):
        assert losses.pool_channels(jnp.ones((2, 5), jnp.float64), 3).dtype == jnp.float64


def test_mse_by_hand():
    student = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    teacher = jnp.array([[0.0, 2.0], [2.0, 2.0], [1.0, 1.0], [8.0, 0.0]]).reshape(1, 2, 2, 2)  # pooled: 1, 2, 1, 4
    np.testing.assert_allclose(losses.feature_mse(student, teacher), [1.0])
    np.testing.assert_allclose(
        losses.feature_mse(teacher, student), [1.0]
    )  # more student channels: the student is pooled
    np.testing.assert_allclose(losses.feature_mse(jnp.ones((3, 4)), jnp.zeros((3, 4))), [1.0, 1.0, 1.0])


def test_mse_is_per_example_and_in_fp32():
    student, teacher = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
    value = losses.feature_mse(student, teacher)
    np.testing.assert_allclose(value, [np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)], rtol=1e-6)
    assert losses.feature_mse(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)).dtype == jnp.float32
    # 4096 ones: a bf16 sum would stop at 256
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    np.testing.assert_array_equal(losses.feature_mse(ones, 0 * ones), [1.0])


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (
            (2, 7, 7, 8),
            (2, 14, 14, 8),
            r"\(2, 7, 7, 8\).*\(2, 14, 14, 8\).*grids \(7, 7\) and \(14, 14\) differ.*Pair layers",
        ),
        ((2, 7, 7, 8), (3, 7, 7, 8), r"batches are of 2 and 3 examples.*the same images"),
        ((2, 7, 7, 8), (2, 49, 8), r"\(2, 7, 7, 8\).*\(2, 49, 8\).*same axes"),
        ((8,), (8,), r"a batch and a channel axis"),
    ],
)
def test_shape_errors(student, teacher, text):
    with pytest.raises(ShapeError, match=text):
        losses.feature_mse(jnp.zeros(student), jnp.zeros(teacher))


def test_pooling_up_is_an_error():
    for channels in (0, 5):
        with pytest.raises(ShapeError, match=rf"4 channels cannot be pooled to {channels}.*Ask for 1 to 4"):
            losses.pool_channels(jnp.zeros((1, 4)), channels)


@pytest.mark.parity
@pytest.mark.parametrize(("have", "channels"), POOLS)
def test_pooling_against_torch(timm, have, channels):
    import torch
    import torch.nn.functional as F

    x = np.random.default_rng(1).normal(size=(2, have, 3, 5)).astype(np.float32)
    expected = F.adaptive_avg_pool3d(torch.tensor(x), (channels, 3, 5)).numpy()
    np.testing.assert_allclose(
        losses.pool_channels(x.transpose(0, 2, 3, 1), channels), expected.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parity
@pytest.mark.parametrize("loss", ["spectral", "spectral_fft", "feature_mse"])
@pytest.mark.parametrize(("ours", "theirs"), [(12, 12), (7, 12), (12, 6), (13, 5), (12, 7)])
def test_losses_and_gradients_against_torch_also_with_more_student_channels(timm, loss, ours, theirs):
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(2)
    s, t = (rng.normal(size=(3, c, 6, 5)).astype(np.float32) for c in (ours, theirs))
    x, y = torch.tensor(s, requires_grad=True), torch.tensor(t)
    fewer = min(ours, theirs)
    a, b = (F.adaptive_avg_pool3d(v, (fewer, 6, 5)) for v in (x, y))
    if loss != "feature_mse":
        a, b = (torch.view_as_real(torch.fft.rfft2(v, norm="ortho")) for v in (a, b))
    expected = F.mse_loss(a, b)
    expected.backward()

    def fn(m):
        if loss == "feature_mse":
            return losses.feature_mse(m, t.transpose(0, 2, 3, 1)).mean()
        method = "fft" if loss == "spectral_fft" else "closed"
        return losses.spectral(m, t.transpose(0, 2, 3, 1), method=method).mean()

    value, grad = jax.value_and_grad(fn)(jnp.asarray(s.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-7)
