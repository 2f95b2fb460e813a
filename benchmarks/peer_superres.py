"""MDBN and EDSR-baseline in PyTorch, as BasicSR builds them, to time ours against.

Needs the extra `parity`. The weights are ours, through `weights.to_basicsr`. PyTorch runs as people run it: eager in
its usual layout, eager in channels-last, and both through torch.compile.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd import weights
from jaxkd.errors import ConfigError
from jaxkd.models.edsr import EDSR
from jaxkd.models.sr_base import SCALES, Upscaler

FORMS = ("eager", "channels_last", "compile", "compile_channels_last")


def import_torch() -> Any:
    """PyTorch. Raises ConfigError where it is missing."""
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"--peer=torch needs PyTorch, and importing it failed: {error}. It is not needed to train or to enlarge. "
            "Install the extra: pip install 'jaxkd[parity]', or leave --peer out."
        ) from None
    return torch


def build(model: Upscaler, variables: Any) -> Any:
    """The torch.nn.Module of `model` with its weights, in evaluation mode, on the CPU or the GPU."""
    torch = import_torch()
    nn = torch.nn
    feat = model.num_feat

    def conv(inputs: int, outputs: int) -> Any:
        return nn.Conv2d(inputs, outputs, 3, 1, 1)

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.uconv1, self.uconv2, self.dconv = (conv(feat, feat) for _ in range(3))
            self.act = nn.GELU()

        def forward(self, x):
            return self.act(self.uconv2(self.act(self.uconv1(x))) + self.dconv(x))

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.baseblock1, self.baseblock2 = Base(), Base()

        def forward(self, x):
            return x + model.res_scale * self.baseblock2(self.baseblock1(x))

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.relu = conv(feat, feat), conv(feat, feat), nn.ReLU(inplace=True)

        def forward(self, x):
            return x + model.res_scale * self.conv2(self.relu(self.conv1(x)))

    edsr = isinstance(model, EDSR)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_first = conv(3, feat)
            self.body = nn.Sequential(*((Single if edsr else Branched)() for _ in range(model.num_block)))
            self.conv_after_body = conv(feat, feat)
            steps: list[Any] = []
            for factor in SCALES[model.scale]:
                steps += [conv(feat, feat * factor**2), nn.PixelShuffle(factor)]
            self.upsample = nn.Sequential(*steps)
            self.conv_last = conv(feat, 3)
            mean = torch.tensor(model.rgb_mean).view(1, 3, 1, 1)
            self.register_buffer("mean", mean, persistent=False)

        def forward(self, x):
            if model.shifts_colours:
                x = (x - self.mean) * model.img_range
            x = self.conv_first(x)
            x = self.conv_last(self.upsample(x + self.conv_after_body(self.body(x))))
            return x / model.img_range + self.mean if model.shifts_colours else x

    network = Network().eval()
    state = {k: torch.from_numpy(np.array(v)) for k, v in weights.to_basicsr(model, variables).items()}
    network.load_state_dict(state)
    return network.cuda() if torch.cuda.is_available() else network


def programs(
    model: Upscaler, variables: Any, images: np.ndarray, dtype: str, forms: tuple[str, ...] = FORMS
) -> dict[str, Callable[[], Any]]:
    """Form -> a function that enlarges `images` and returns when that is done.

    Args:
      model, variables: ours.
      images: (B, H, W, 3) fp32.
      dtype: "float32" or "bfloat16"; the latter casts weights and images.
      forms: of `FORMS`.

    Returns:
      Functions of no arguments, which return the result as (B, s H, s W, 3) on the device; compiled forms compile in
      their first call.
    """
    torch = import_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True  # XLA tries several algorithms too
    torch._dynamo.reset()  # programs of another scale share the code: after eight, it would fall back to eager
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    network = build(model, variables).to(getattr(torch, dtype))
    device = next(network.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device, getattr(torch, dtype))
    out = {}
    for form in forms:
        module, given = (network if len(forms) == 1 else copy.deepcopy(network)), x
        if form.endswith("channels_last"):
            module, given = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if form.startswith("compile"):
            module = torch.compile(module, dynamic=False)  # compiled for its size, as XLA does

        def run(module: Any = module, given: Any = given) -> Any:
            with torch.inference_mode():
                y = module(given)
            if y.is_cuda:
                torch.cuda.synchronize()
            return y.permute(0, 2, 3, 1)

        out[form] = run
    return out
