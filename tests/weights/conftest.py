"""Small networks with golden weights (timm's, see tests/golden/README.md), and files written byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxkd import models


def _golden_args(data) -> tuple[str, dict]:
    """Name and constructor arguments of a golden network."""
    meta = json.loads(str(data["meta"]))
    return meta["model"], {k: tuple(v) if isinstance(v, list) else v for k, v in meta["kwargs"].items()}


@pytest.fixture
def golden_state(golden):
    """`golden_state("cait", num_classes=7)` -> (network, timm's state dict, golden arrays)."""

    def load(name: str, **kwargs):
        data = golden(name)
        model, args = _golden_args(data)
        state = {k.removeprefix("state/"): data[k] for k in data.files if k.startswith("state/")}
        return models.create(model, **{**args, **kwargs}), state, data

    return load


@pytest.fixture
def write_safetensors():
    """`write_safetensors(path, {"w": array}, bf16=("w",))`: the format by its specification, without the package.

    An 8-byte length, a JSON header with type, shape and offsets, the bytes. bf16 keeps the upper half of an fp32.
    """
    codes = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}

    def write(path: Path, arrays: dict[str, np.ndarray], bf16: tuple[str, ...] = ()) -> Path:
        header, blobs, start = {"__metadata__": {"format": "pt"}}, [], 0
        for name, array in arrays.items():
            array = np.asarray(array)
            if name in bf16:
                code, blob = "BF16", (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
            else:
                code, blob = codes[array.dtype.name], array.tobytes()
            offsets = [start, start + len(blob)]
            header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets}
            start += len(blob)
            blobs.append(blob)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
        return path

    return write
