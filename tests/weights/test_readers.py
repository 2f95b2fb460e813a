"""Files: what each format gives, and what is said of files that are missing, damaged or something else."""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
import pytest

from jaxkd.errors import WeightSourceError
from jaxkd.weights.readers import read

A = np.array([[1.0, -2.5], [0.15625, 3.0]], np.float32)


def test_safetensors_of_every_width_come_back_as_fp32(tmp_path, write_safetensors):
    arrays = {"a": A, "half": A.astype(np.float16), "double": A.astype(np.float64), "brain": A, "index": np.arange(3)}
    got = read(write_safetensors(tmp_path / "m.safetensors", arrays, bf16=("brain",)))
    for name in ("a", "half", "double", "brain"):
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], A)  # all values are exact in bf16
    assert got["index"].dtype == np.int64


def test_bf16_is_read_without_pytorch(tmp_path, write_safetensors, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    got = read(write_safetensors(tmp_path / "m.safetensors", {"a": np.float32([[np.pi]])}, bf16=("a",)))
    assert got["a"].item() == 3.140625  # pi cut to 8 bits


def test_npz(tmp_path):
    np.savez(tmp_path / "m.npz", **{"blocks.0.norm1.weight": A.astype(np.float16)})
    got = read(tmp_path / "m.npz")
    np.testing.assert_array_equal(got["blocks.0.norm1.weight"], A)


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(WeightSourceError, match=r"cannot be read as \.npz.*allow_pickle"):
        read(tmp_path / "m.npz")


def sharded(folder, write_safetensors, index="model.safetensors.index.json"):
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": A})
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"b": 2 * A})
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / index


def test_shards_are_joined_by_their_index_or_their_folder(tmp_path, write_safetensors):
    index = sharded(tmp_path, write_safetensors)
    for source in (index, tmp_path):
        got = read(source)
        np.testing.assert_array_equal(got["a"], A)
        np.testing.assert_array_equal(got["b"], 2 * A)


def test_a_missing_shard_is_named(tmp_path, write_safetensors):
    index = sharded(tmp_path, write_safetensors)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightSourceError, match=r'model-00002-of-00002\.safetensors" is missing\. The index'):
        read(index)


def test_an_index_without_a_map_is_damaged(tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightSourceError, match="cannot be read"):
        read(tmp_path / "m.safetensors.index.json")


def test_a_folder_prefers_the_customary_name_and_takes_a_single_file(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "one" / "odd.safetensors", {"a": A})
    assert set(read(tmp_path / "one")) == {"a"}
    write_safetensors(tmp_path / "one" / "model.safetensors", {"b": A})
    assert set(read(tmp_path / "one")) == {"b"}


def test_a_folder_with_no_or_several_files_is_explained(tmp_path, write_safetensors):
    with pytest.raises(
        WeightSourceError, match=r"holds no weights\. A folder of weights has one of model\.safetensors"
    ):
        read(tmp_path)
    write_safetensors(tmp_path / "x.safetensors", {"a": A})
    write_safetensors(tmp_path / "y.safetensors", {"a": A})
    with pytest.raises(WeightSourceError, match=r"holds 2 files of weights\..*x\.safetensors, y\.safetensors"):
        read(tmp_path)


def test_a_missing_file_names_its_neighbours(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "student.safetensors", {"a": A})
    with pytest.raises(
        WeightSourceError, match=r'has no "studnet\.safetensors"\. Did you mean "student\.safetensors"\?'
    ):
        read(tmp_path / "studnet.safetensors")
    with pytest.raises(WeightSourceError, match=r"It holds the weights student\.safetensors"):
        read(tmp_path / "x.pth")
    with pytest.raises(WeightSourceError, match=r'has no "gone"'):
        read(tmp_path / "gone" / "further" / "x.pth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x00" * 100, "incomplete or of another format"),
        (b"", "incomplete or of another format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_damaged_file_says_what_it_is(tmp_path, suffix, content, why):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightSourceError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f'"{path}" ({len(content)} bytes) cannot be read as {suffix}. ') and why in text
    assert "\n" not in text


def test_a_truncated_file_is_damaged(tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "m.safetensors", {"a": A})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightSourceError, match=r"cannot be read as \.safetensors"):
        read(path)


def test_an_unknown_ending_is_named(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(WeightSourceError, match=r"is not of a known format.*\.safetensors, \.npz, \.pth"):
        read(tmp_path / "weights.h5")


def test_without_pytorch_a_pickle_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "m.pth").write_bytes(b"x")
    with pytest.raises(WeightSourceError, match=r"pip install 'jaxkd\[torch\]'`, or convert the file to \.safetensors"):
        read(tmp_path / "m.pth")


# --- with PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "last.ckpt", "pytorch_model.bin", "model_best.pth.tar"])
def test_pickles_are_read_with_their_nesting_and_widths(tmp_path, torch, name):
    import argparse

    tensor = torch.tensor(A)
    content = {
        "model": {"a": tensor, "b": tensor.bfloat16(), "c": tensor.half(), "d": torch.nn.Parameter(tensor)},
        "args": argparse.Namespace(lr=1.0),
        "epoch": 3,
    }
    torch.save(content, tmp_path / name)
    got = read(tmp_path / name)
    assert got["epoch"] == 3
    for array in got["model"].values():
        assert type(array) is np.ndarray and array.dtype == np.float32
        np.testing.assert_array_equal(array, A)


class Anything:
    """Unpickling this would need its class."""


def test_a_pickle_with_other_objects_is_refused_and_names_them(tmp_path, torch):
    torch.save({"model": {"a": torch.zeros(1)}, "config": Anything()}, tmp_path / "m.pth")
    with pytest.raises(WeightSourceError, match=r"holds more than weights: .*Anything.*weights_only=False"):
        read(tmp_path / "m.pth")


def test_a_damaged_pickle_and_a_bare_tensor_are_explained(tmp_path, torch):
    (tmp_path / "m.pth").write_bytes(b"\x00" * 50)
    with pytest.raises(WeightSourceError, match=r"cannot be read as \.pth\. The file is incomplete"):
        read(tmp_path / "m.pth")
    torch.save(torch.zeros(2), tmp_path / "t.pth")
    with pytest.raises(WeightSourceError, match=r"holds a Tensor and not a dict"):
        read(tmp_path / "t.pth")


def _data(torch) -> dict:
    """Values that lie beside the weights of published checkpoints."""
    import collections
    import datetime
    import pathlib
    import types

    times = {"at": datetime.datetime(2026, 1, 2), "took": datetime.timedelta(1)}
    numbers = {
        "best": np.float64(71.5),
        "n": np.int64(3),
        "ok": np.bool_(True),
        "type": np.dtype("f4"),
        "l": np.arange(3),
    }
    containers = {"seen": {1, 2}, "frozen": frozenset([1]), "last": collections.deque([1], maxlen=3), "r": range(3)}
    containers |= {"hits": collections.defaultdict(list, a=[1]), "count": collections.Counter("aab")}
    others = {"out": pathlib.Path("/a/b"), "args": types.SimpleNamespace(lr=1.0), "dtype": torch.float16, "s": slice(2)}
    return times | numbers | containers | others


class Call:
    """Pickled as the call of a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_a_small_pickle_cannot_fill_the_memory(tmp_path, torch):
    import fractions

    bombs = [Call(range, (0, 10**11)), Call(range, (10**30,)), Call(range, (0, -(10**11), -1))]
    bombs.append(Call(bytearray, (10**11,)))
    shared = {}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    for bomb in (*bombs, shared):
        torch.save({"x": bomb, "w": torch.zeros(1)}, tmp_path / "m.pth")
        with pytest.raises(WeightSourceError, match=r"asks for more than 1,000,000 items"):
            read(tmp_path / "m.pth")
    torch.save({"x": Call(fractions.Fraction, ("1e300000",)), "w": torch.zeros(1)}, tmp_path / "m.pth")
    assert read(tmp_path / "m.pth")["x"] == "1e300000"
    torch.save({"x": bytearray(b"abc"), "w": torch.zeros(1)}, tmp_path / "m.pth")
    assert read(tmp_path / "m.pth")["x"] == b"abc"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    views = {f"v{i}": torch.zeros(1, 1).expand(5_000, 9_000) for i in range(40)}
    torch.save({"whole": torch.ones(3), "x": torch.zeros(1).expand(10**11), **views}, tmp_path / "m.pth")
    found = read(tmp_path / "m.pth")
    assert found["x"].shape == (10**11,) and "too short for it" in found["x"].reason
    assert found["whole"].tolist() == [1, 1, 1] and "too short" in found["v39"].reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


def test_numbers_of_numpy_and_plain_containers_are_data(tmp_path, torch):
    torch.save({"model": {"a": torch.tensor(A)}, **_data(torch)}, tmp_path / "m.pth")
    got = read(tmp_path / "m.pth")
    np.testing.assert_array_equal(got["model"]["a"], A)
    assert got["best"] == 71.5 and got["hits"] == {"a": [1]} and str(got["out"]) == "/a/b" and got["last"] == [1]


def test_arrays_that_cannot_be_weights_say_what_they_are(tmp_path, torch):
    odd = {
        "fp8": (torch.zeros(2).to(torch.float8_e4m3fn), "is float8_e4m3fn, which jaxkd does not read"),
        "complex": (torch.zeros(2, dtype=torch.complex64), "holds complex numbers"),
        "sparse": (torch.eye(2).to_sparse(), "is sparse"),
        "meta": (torch.zeros(2, device="meta"), "is on the meta device"),
        "texts": (np.array(["a", "b"]), "holds texts"),
        "objects": (np.array([1, "b"], dtype=object), "holds Python objects"),
    }
    torch.save({k: v for k, (v, _) in odd.items()}, tmp_path / "m.pth")
    got = read(tmp_path / "m.pth")
    for name, (_, why) in odd.items():
        assert got[name].reason.startswith(why), name
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": odd["fp8"][0], "b": torch.zeros(1)}, tmp_path / "m.safetensors")
    got = read(tmp_path / "m.safetensors")
    assert got["a"].reason.startswith("is float8 (F8_E4M3)") and got["b"].dtype == np.float32
    np.savez(tmp_path / "m.npz", a=np.array(["x"]), b=np.zeros(1, np.complex64))
    assert [v.reason.split(",")[0] for v in read(tmp_path / "m.npz").values()] == [
        "holds texts",
        "holds complex numbers",
    ]


def test_containers_without_end_and_programs_are_one_sentence(tmp_path, torch):
    cyclic, deep = {}, {"a": torch.zeros(1)}
    cyclic["self"] = cyclic
    for _ in range(60):
        deep = {"m": deep}
    for content in (cyclic, deep):
        torch.save(content, tmp_path / "m.pth")
        with pytest.raises(WeightSourceError, match=r"nests its containers more than 50 deep, or one holds itself"):
            read(tmp_path / "m.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "j.pt")
    with pytest.raises(WeightSourceError, match="is a TorchScript program and not a state dict"):
        read(tmp_path / "j.pt")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1]", 'has no object "weight_map"'),
        ('{"weight_map": []}', 'has no object "weight_map"'),
        ('{"weight_map": {"a": 3}}', 'names 3 as the file of "a"'),
        ('{"weight_map": {"a": "../x.safetensors"}}', "which is no name of a file beside it"),
        ('{"weight_map": {"a": "m.safetensors", "gone": "m.safetensors"}}', 'holds no array "gone"'),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_an_odd_index_is_one_sentence(tmp_path, write_safetensors, content, why):
    write_safetensors(tmp_path / "m.safetensors", {"a": A})
    (tmp_path / "m.safetensors.index.json").write_text(content)
    with pytest.raises(WeightSourceError) as caught:
        read(tmp_path / "m.safetensors.index.json")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_flipped_and_cut_files_are_read_or_refused_in_words(tmp_path, torch, write_safetensors):
    torch.save({"model": {"a": torch.tensor(A)}, **_data(torch)}, tmp_path / "m.pth")
    np.savez(tmp_path / "m.npz", a=A)
    write_safetensors(tmp_path / "m.safetensors", {"a": A})
    rng = np.random.default_rng(2026)
    refused = 0
    for suffix in ("pth", "npz", "safetensors"):
        whole = (tmp_path / f"m.{suffix}").read_bytes()
        for _ in range(100):
            damaged = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] ^= 1 << rng.integers(8)
            (tmp_path / f"d.{suffix}").write_bytes(damaged)
            try:
                read(tmp_path / f"d.{suffix}")
            except WeightSourceError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 100
