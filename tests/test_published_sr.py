"""Our ruler is the field's ruler: published weights and plain bicubic give their published figures.

The pictures are shrunk and enlarged by `data.imresize` and measured by `metrics`; IMDN (Hui et al. 2019) is written
here in PyTorch after its state dict, and its weights are those that its authors published.

Set14 has one greyscale file, `bridge`. Networks are measured on it as on RGB, where luma spans 16 to 235; the
bicubic figures are older and compare its grey itself, 0 to 255, which is 20 log10(255 / 219) = 1.32 dB less for this
picture and 0.094 dB less for the set. Both conventions are checked, each where its figure was published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxkd import data, metrics


def pictures(folder: Path, factor: int) -> Iterator[tuple[np.ndarray, bool]]:
    """(uint8 RGB cut to multiples of the factor, whether the file is greyscale) of every picture."""
    for file in sorted(file for file in folder.iterdir() if file.suffix in (".png", ".jpg")):
        image = Image.open(file)
        width, height = (side // factor * factor for side in image.size)
        yield np.asarray(image.convert("RGB"))[:height, :width], image.mode == "L"


def imdn(factor: int):
    """IMDN with 64 channels and 6 blocks, on (1, 3, H, W) RGB in [0, 1]."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, kept = 64, 16

    def conv(inputs, outputs, kernel=3):
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    class ContrastAttention(nn.Module):
        """Channels weighed by what their mean plus standard deviation over the picture says."""

        def __init__(self):
            super().__init__()
            self.conv_du = nn.Sequential(conv(width, 4, 1), nn.ReLU(), conv(4, width, 1), nn.Sigmoid())

        def forward(self, x):
            contrast = x.std(dim=(2, 3), keepdim=True, correction=0)
            return x * self.conv_du(contrast + x.mean(dim=(2, 3), keepdim=True))

    class Distilling(nn.Module):
        """Three times a quarter of the channels is set aside and the rest refined; all quarters are fused."""

        def __init__(self):
            super().__init__()
            self.c1 = conv(width, width)
            self.c2 = conv(width - kept, width)
            self.c3 = conv(width - kept, width)
            self.c4 = conv(width - kept, kept)
            self.c5 = conv(width, width, 1)
            self.cca = ContrastAttention()

        def forward(self, x):
            aside, rest = [], x
            for layer in (self.c1, self.c2, self.c3):
                quarter, rest = functional.leaky_relu(layer(rest), 0.05).split((kept, width - kept), dim=1)
                aside.append(quarter)
            return x + self.c5(self.cca(torch.cat([*aside, self.c4(rest)], dim=1)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.fea_conv = conv(3, width)
            for i in range(1, 7):
                setattr(self, f"IMDB{i}", Distilling())
            self.c = nn.Sequential(conv(6 * width, width, 1), nn.LeakyReLU(0.05))
            self.LR_conv = conv(width, width)
            self.upsampler = nn.Sequential(conv(width, 3 * factor**2), nn.PixelShuffle(factor))

        def forward(self, image):
            first = x = self.fea_conv(image)
            outputs = []
            for i in range(1, 7):
                x = getattr(self, f"IMDB{i}")(x)
                outputs.append(x)
            return self.upsampler(first + self.LR_conv(self.c(torch.cat(outputs, dim=1))))

    return Network()


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "count", "factor", "psnr", "ssim"),
    [("sr_set5", 5, 4, 32.21, 0.8948), ("sr_set5", 5, 2, 38.00, 0.9605), ("sr_set14", 14, 4, 28.58, 0.7811)],
)
def test_published_imdn(shared_data, name, count, factor, psnr, ssim):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    state = torch.load(shared_data("weights") / "imdn" / f"IMDN_x{factor}.pth", map_location="cpu", weights_only=True)
    network = imdn(factor).eval()
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    values = []
    for high, _ in pictures(shared_data(name) / "HR", factor):
        low = data.imresize(high, 1 / factor)
        with torch.inference_mode():
            output = network(torch.from_numpy(low.transpose(2, 0, 1)[None] / np.float32(255)))
        restored = np.rint(255 * output[0].clamp(0, 1).numpy().transpose(1, 2, 0)).astype(np.uint8)
        values.append((metrics.psnr(restored, high, factor), metrics.ssim(restored, high, factor)))
    got = np.mean(values, axis=0)
    print(f"IMDN x{factor} {name}: {got[0]:.4f} dB, {got[1]:.5f}")
    assert len(values) == count
    assert round(got[0], 2) == psnr and round(got[1], 4) == ssim


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "count", "psnr"), [("sr_set5", 5, 28.42), ("sr_set14", 14, 26.00), ("sr_bsd100", 100, 25.96)]
)
def test_published_bicubic_x4(shared_data, name, count, psnr):
    values = []
    for high, grey in pictures(shared_data(name) / "HR", 4):
        restored = data.imresize(data.imresize(high, 1 / 4), 4)
        values.append(metrics.psnr(restored, high, 4, luma=not grey))  # three equal channels: the grey itself
    print(f"bicubic x4 {name}: {np.mean(values):.4f} dB")
    assert len(values) == count
    assert np.mean(values) == pytest.approx(psnr, abs=0.01)
