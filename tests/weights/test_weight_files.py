"""Written files: timm's names and bits, whole or not at all."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from jaxkd import weights
from jaxkd.errors import WeightMismatchError, WeightSourceError


def parse(path) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and fp32 arrays of a .safetensors file, by its specification."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    arrays = {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return header, arrays


@pytest.mark.parametrize("family", ["deit_distilled", "cait"])
def test_the_file_holds_timms_arrays(golden_state, tmp_path, family):
    model, state, _ = golden_state(family)
    path = tmp_path / "new" / "m.safetensors"
    written = weights.save_safetensors(path, model, weights.from_timm(model, state), {"model": "x"})
    assert written == path and [p.name for p in path.parent.iterdir()] == ["m.safetensors"]
    header, arrays = parse(path)
    assert header["__metadata__"] == {"format": "pt", "model": "x", "jaxkd.grid": "[4, 4]"}
    assert set(arrays) == set(state)
    for name in state:
        np.testing.assert_array_equal(arrays[name], state[name], err_msg=name)


def test_nothing_is_overwritten_unasked(golden_state, tmp_path):
    model, state, _ = golden_state("deit")
    variables = weights.from_timm(model, state)
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(WeightSourceError, match=r"exists already.*pass overwrite=True"):
        weights.save_safetensors(path, model, variables)
    assert path.read_bytes() == b"precious"
    weights.save_safetensors(path, model, variables, overwrite=True)
    assert set(parse(path)[1]) == set(state)


def test_a_failed_write_leaves_the_old_file_and_no_rest(golden_state, tmp_path, monkeypatch):
    model, state, _ = golden_state("deit")
    variables = weights.from_timm(model, state)
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    written = type(path).write_bytes

    def half(self, content):
        written(self, content[: len(content) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", half)
        with pytest.raises(WeightSourceError, match=r"cannot be written \(disk full\). Nothing was changed"):
            weights.save_safetensors(path, model, variables, overwrite=True)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_another_ending_and_another_network_are_refused(golden_state, tmp_path):
    model, state, _ = golden_state("deit")
    variables = weights.from_timm(model, state)
    with pytest.raises(WeightSourceError, match=r"does not end in \.safetensors"):
        weights.save_safetensors(tmp_path / "m.pth", model, variables)
    with pytest.raises(WeightMismatchError):
        weights.save_safetensors(tmp_path / "m.safetensors", golden_state("cait")[0], variables)
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
def test_timm_loads_the_file(golden_state, tmp_path, timm):
    import torch

    model, state, data = golden_state("cait")
    path = weights.save_safetensors(tmp_path / "m.safetensors", model, weights.from_timm(model, state))
    meta = json.loads(str(data["meta"]))
    name, args = meta["model"], {k: tuple(v) if isinstance(v, list) else v for k, v in meta["kwargs"].items()}
    network = timm.create_model(name, pretrained=False, checkpoint_path=str(path), **args).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(data["input_nchw"])).numpy()
    np.testing.assert_allclose(logits, data["logits"], rtol=1e-4, atol=1e-4)
