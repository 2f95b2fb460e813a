"""Operators that torchvision's wheel lacks beside a CPU build of PyTorch; timm needs only their schemas."""

from __future__ import annotations

import contextlib
from typing import Any


def torchvision_library() -> Any:
    """Declares the operators, and returns what keeps them declared while it lives."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # may stand beside another definition
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):  # a complete torchvision has them already
            library.define(schema)
    return library
