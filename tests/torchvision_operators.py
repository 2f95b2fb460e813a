"""Operators that torchvision's wheel lacks beside a CPU build of PyTorch; timm needs only their schemas."""

from __future__ import annotations

import sys
from typing import Any


def torchvision_library() -> Any:
    """Declares the operators where they are missing, and returns what keeps them declared while it lives."""
    import torch

    try:
        import torchvision  # noqa: F401  first: beside schemas that stand already, a complete one ends the process
    except ImportError:
        return None  # timm's import says what is missing
    except RuntimeError:  # the wheel is for another build of PyTorch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # may stand beside another definition
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None
