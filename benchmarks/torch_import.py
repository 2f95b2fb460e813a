"""PyTorch and timm for the peers, also beside a torchvision without compiled operators."""

from __future__ import annotations

import contextlib
from typing import Any

from jaxkd.errors import ConfigError


def import_timm() -> tuple[Any, Any]:
    """(torch, timm), also beside a torchvision without compiled operators, of which timm needs only the schemas."""
    try:
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            with contextlib.suppress(RuntimeError):  # a complete torchvision has them already
                library.define(schema)
        import timm
    except ImportError as error:
        raise ConfigError(
            f"--peer=torch needs PyTorch and timm, and importing them failed: {error}. They are not needed to train. "
            "Install the extra: pip install 'jaxkd[parity]', or leave --peer out."
        ) from None
    timm._jaxkd_library = library  # keeps the schemas alive
    return torch, timm
