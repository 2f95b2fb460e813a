"""PyTorch and timm for the peers, also beside a torchvision without compiled operators."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from jaxkd.errors import ConfigError


@cache
def import_timm() -> tuple[Any, Any]:
    """(torch, timm), also beside a torchvision without compiled operators, of which timm needs only the schemas.

    Raises:
      ConfigError: one of them is missing.
    """
    try:
        import torch

        library = None
        try:
            import torchvision  # noqa: F401
        except RuntimeError:  # its operators are for another build of torch
            for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm
    except ImportError as error:
        raise ConfigError(
            f"The comparison with PyTorch needs PyTorch and timm, and importing them failed: {error}. "
            "Install the extra: pip install 'jaxkd[parity]'."
        ) from None
    timm._jaxkd_library = library  # keeps the schemas alive
    return torch, timm
