"""Weights in and out: files and the Hugging Face Hub, timm's names, resizes, freezing and fingerprints."""

from jaxkd.weights.fingerprints import fingerprint
from jaxkd.weights.freezing import freeze_mask
from jaxkd.weights.loading import load
from jaxkd.weights.resize import resize_position_embedding, resize_relative_bias_table
from jaxkd.weights.timm import from_timm, to_timm
from jaxkd.weights.writers import save_safetensors

__all__ = [
    "fingerprint",
    "freeze_mask",
    "from_timm",
    "load",
    "resize_position_embedding",
    "resize_relative_bias_table",
    "save_safetensors",
    "to_timm",
]
