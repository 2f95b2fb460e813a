"""EDSR-baseline against the same network in PyTorch, and its mean shift."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, weights


def in_pytorch(torch, scale: int, num_feat: int, num_block: int, res_scale: float):
    """The network as its paper and BasicSR describe it, under BasicSR's names."""
    nn = torch.nn

    def conv(inputs: int, outputs: int):
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = conv(num_feat, num_feat), conv(num_feat, num_feat)

        def forward(self, x):
            return x + res_scale * self.conv2(torch.relu(self.conv1(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_first = conv(3, num_feat)
            self.body = nn.Sequential(*(Block() for _ in range(num_block)))
            self.conv_after_body = conv(num_feat, num_feat)
            steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
            self.upsample = nn.Sequential(
                *(m for r in steps for m in (conv(num_feat, num_feat * r * r), nn.PixelShuffle(r)))
            )
            self.conv_last = conv(num_feat, 3)

        def forward(self, x):
            mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
            x = self.conv_first(255 * (x - mean))
            x = x + self.conv_after_body(self.body(x))
            return self.conv_last(self.upsample(x)) / 255 + mean

    return Network()


@pytest.mark.parity
@pytest.mark.parametrize(("scale", "res_scale"), [(2, 1.0), (3, 0.1), (4, 1.0)])
def test_the_output_is_pytorchs(scale, res_scale):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    torch.manual_seed(scale)
    theirs = in_pytorch(torch, scale, 10, 3, res_scale)
    ours = models.create(f"edsr_x{scale}", num_feat=10, num_block=3, res_scale=res_scale)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    variables = weights.from_basicsr(ours, state)
    images = np.random.default_rng(0).uniform(size=(2, 9, 14, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, images)[0], expected, rtol=1e-4, atol=1e-4)
    # and the way back: PyTorch accepts every key, strictly
    theirs.load_state_dict({k: torch.tensor(v) for k, v in weights.to_basicsr(ours, variables).items()})


def test_nothing_learnt_gives_the_mean_colour_and_the_shift_can_be_switched_off():
    image = jnp.full((1, 3, 4, 3), 0.9)
    model = models.create("edsr_x3", num_feat=4, num_block=1)
    zero = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), image))
    output = model.apply(zero, image)[0]
    np.testing.assert_allclose(output, np.broadcast_to([0.4488, 0.4371, 0.4040], (1, 9, 12, 3)), atol=1e-6)
    plain = models.create("edsr_x3", num_feat=4, num_block=1, img_range=1.0, rgb_mean=[0.0, 0.0, 0.0])
    np.testing.assert_array_equal(plain.apply(zero, image)[0], np.zeros((1, 9, 12, 3)))


def test_the_first_convolution_sees_the_range_of_8_bit_images():
    image = jnp.asarray([0.4488 + 0.1, 0.4371, 0.4040]).reshape(1, 1, 1, 3)
    model = models.create("edsr_x2", num_feat=4, num_block=1, res_scale=0.0)
    variables = model.init(jax.random.key(0), image)
    first = variables["params"]["conv_first"]
    expected = 25.5 * first["kernel"][1, 1, 0] + first["bias"]
    got = model.apply(variables, image, taps=("block_0",))[1]["block_0"][0, 0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
