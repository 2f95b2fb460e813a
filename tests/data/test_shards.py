"""Shards: the same records as the folder's, from any process, and nothing damaged that goes unnoticed."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import AugmentConfig, TrainPipeline, open_source
from jaxkd.data.prepare.shards import ShardOptions, convert, shrink, verify
from jaxkd.data.sources import shards as shards_module
from jaxkd.data.sources.folder import FolderSource
from jaxkd.errors import DataError


@pytest.fixture(params=["tar", "arrayrecord"])
def form(request):
    if request.param == "arrayrecord":
        pytest.importorskip("array_record", reason="needs the extra `shards`")
    return request.param


@pytest.fixture
def made(folder, tmp_path, form):
    """(folder, shards of both its splits, three or more of train)."""
    root = folder()
    for split in ("train", "val"):
        convert(
            FolderSource(root, split), tmp_path / "shards" / split, ShardOptions(form, shard_bytes=20_000), workers=2
        )
    return root, tmp_path / "shards"


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def shard_paths(where):
    return sorted(p for p in where.iterdir() if p.name.startswith("train-"))


def test_records_are_those_of_the_folder(made):
    root, where = made
    assert len(shard_paths(where / "train")) >= 3
    for split in ("train", "val"):
        ours, theirs = open_source(str(where), split), open_source(str(root), split)
        assert ours.class_names == theirs.class_names and len(ours) == len(theirs)
        np.testing.assert_array_equal(ours.class_counts, theirs.class_counts)
        for i in range(len(theirs)):
            assert ours.bytes(i) == theirs.bytes(i) and ours.label(i) == theirs.label(i)
            np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(theirs.image(i)))


def test_training_batches_are_those_of_the_folder(made):
    batches = []
    for root in made:
        options = {"batch_size": 4, "image_size": (12, 16), "seed": 3, "augment": AugmentConfig()}
        pipeline = TrainPipeline(open_source(str(root), "train"), **options)
        batches.append([next(pipeline) for _ in range(4)])
    for a, b in zip(*batches, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_names_lead_to_the_shard_and_to_the_original(made, form):
    _, where = made
    source = open_source(str(where), "train")
    assert source.name(0) == f"{where}/train/train-00000.{form}:00000000 (cat/0.jpg)"
    assert source.name(8).endswith(":00000008 (dog/3.png)")
    with pytest.raises(IndexError):
        source.name(9)


def test_words_of_the_classes_come_along(folder, tmp_path):
    root = folder()
    (root / "classes.txt").write_text("cat\ta cat\ndog\ta dog\n")
    convert(FolderSource(root, "val"), tmp_path / "s" / "val", ShardOptions())
    assert open_source(str(tmp_path / "s"), "val").class_words == ("a cat", "a dog")


def test_a_tar_is_one_that_others_can_read(folder, tmp_path):
    root = folder()
    convert(FolderSource(root, "train"), tmp_path / "s" / "train", ShardOptions("tar"))
    source = open_source(str(root), "train")
    with tarfile.open(tmp_path / "s" / "train" / "train-00000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {
            (0, 0, 0, "", 0o644)
        }  # always the same bytes
    assert len(members) == 18 and list(members)[:2] == ["00000000.jpg", "00000000.cls"]
    for i in range(9):
        assert members[f"{i:08d}.{'png' if source.name(i).endswith('png') else 'jpg'}"] == source.bytes(i)
        assert members[f"{i:08d}.cls"] == str(source.label(i)).encode()


def _read_all(source) -> list[bytes]:
    return [source.bytes(i) for i in range(len(source))]


def test_workers_and_threads_read_the_same(made):
    source = open_source(str(made[1]), "train")
    expected = _read_all(source)  # files and index are open now
    assert len(pickle.dumps(source)) < 3000
    assert _read_all(pickle.loads(pickle.dumps(source))) == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.bytes, list(range(9)) * 40)) == expected * 40
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.bytes, range(9), chunksize=1) == expected


def test_few_shards_are_open_at_a_time(made, monkeypatch):
    few = lru_cache(1)(shards_module._open_shard.__wrapped__)
    monkeypatch.setattr(shards_module, "_open_shard", few)
    root, where = made
    source = open_source(str(where), "train")
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(source.bytes, [0, 8, 4] * 30))
    assert got == [open_source(str(root), "train").bytes(i) for i in (0, 8, 4)] * 30
    assert few.cache_info().currsize == 1


def test_the_same_images_give_the_same_bytes(made, folder, tmp_path, form):
    again = folder("elsewhere")
    for split in ("train", "val"):
        options = ShardOptions(form, shard_bytes=20_000)
        convert(FolderSource(again, split), tmp_path / "again" / split, options, workers=1)
    assert files(made[1]) == files(tmp_path / "again")


def test_a_shard_is_closed_before_it_gets_too_large(made):
    source = open_source(str(made[0]), "train")
    sizes = [len(source.bytes(i)) for i in range(9)]
    manifest = json.loads((made[1] / "train" / "manifest.json").read_text())
    first = 0
    for shard in manifest["shards"]:
        own = sizes[first : first + shard["records"]]
        assert sum(own) <= 20_000 or len(own) == 1
        first += shard["records"]
        assert first == 9 or sum(own) + sizes[first] > 20_000


def test_resizing_shrinks_and_keeps_what_is_small(folder, tmp_path, picture):
    root = folder()
    small = root / "train" / "cat" / "tiny.png"
    picture(10, 20).save(small)
    broken = root / "train" / "dog" / "broken.jpg"
    broken.write_bytes(b"no image")
    manifest = convert(FolderSource(root, "train"), tmp_path / "s" / "train", ShardOptions(resize=24, quality=90))
    ours, theirs = open_source(str(tmp_path / "s"), "train"), open_source(str(root), "train")
    assert manifest.unreadable == ["dog/broken.jpg"]
    for i in range(len(theirs)):
        if theirs.name(i) in (str(small), str(broken)):
            assert ours.bytes(i) == theirs.bytes(i)
        else:
            before, after = theirs.image(i), ours.image(i)
            assert min(after.size) == 24 and max(after.size) == round(max(before.size) * 24 / min(before.size))
            mean = np.asarray(before).mean((0, 1)) - np.asarray(after).mean((0, 1))
            assert np.abs(mean).max() < 3 and ours.bytes(i)[:3] == b"\xff\xd8\xff"
    with pytest.raises(DataError, match=r"train-00000.tar:\d+ \(dog/broken.jpg\)"):
        ours.image([theirs.name(i) for i in range(len(theirs))].index(str(broken)))


def test_shrinking_keeps_the_orientation(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture(40, 60).save(file, "JPEG", exif=exif)
    small = Image.open(io.BytesIO(shrink(file.getvalue(), "x", 20, 95)))
    assert small.size == (30, 20) and dict(small.getexif()) == {0x0112: 6}
    assert shrink(file.getvalue(), "x", 40, 95) is None


# ---- what is damaged


def message(action, *args) -> str:
    with pytest.raises(DataError) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(where, split="train"):
    source = open_source(str(where), split)
    return _read_all(source)


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_is_noticed_when_it_is_read(made):
    path = shard_paths(made[1] / "train")[0]
    image = open_source(str(made[0]), "train").bytes(0)
    flip(path, path.read_bytes().index(image) + len(image) // 2)
    text = message(read, made[1])
    assert f'The shard "{path}"' in text and "delete it and repeat" in text
    assert verify(made[1] / "train") == [f"{path.name} has another checksum"]
    assert verify(made[1] / "val") == []


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_or_cut_shard_is_noticed_when_it_is_opened(made, missing):
    path = shard_paths(made[1] / "train")[-1]
    size = path.stat().st_size
    if missing:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: size // 2])
    text = message(read, made[1])
    assert f'The shard "{path}" {"is missing" if missing else f"has {size // 2:,} bytes instead of {size:,}"}' in text
    assert len(verify(made[1] / "train")) == 1


@pytest.mark.parametrize("name", ["records.npy", "names.bin"])
def test_a_changed_index_is_noticed(made, name):
    flip(made[1] / "train" / name, -1)
    assert f'The index "{made[1]}/train/{name}"' in message(read, made[1])
    assert verify(made[1] / "train") == [f"{name} has another checksum"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a manifest of jaxkd"),
        ({"kind": "other"}, "is not a manifest of jaxkd"),
        ({"version": 2}, "have version 2, but this jaxkd reads version 1"),
        ({"format": "zip"}, 'the format "zip", but this jaxkd reads: tar, arrayrecord'),
        ({"colour": 1}, "is damaged"),
        ({"records": "9"}, "class_counts do not add up"),
        ({"class_counts": None}, "class_counts is not a list of counts"),
        ({"class_names": ["cat", "cat"]}, "a list of different names"),
        ({"class_names": ["dog", "cat"]}, "its checksum is another one"),
        ({"class_words": [1, 2]}, "class_words"),
        ({"shards": [{"file": "../x", "records": 9, "bytes": 1, "sha256": ""}]}, "shards is not a list of files"),
        ({"shards": []}, "records of its shards"),
        ({"index": {}}, "index does not hold"),
        ({"unreadable": 3}, "unreadable"),
        ({"split": 1}, "of the wrong type"),
    ],
)
def test_manifests_that_are_not_ours(folder, tmp_path, content, words):
    convert(FolderSource(folder(), "train"), tmp_path / "s" / "train", ShardOptions())
    path = tmp_path / "s" / "train" / "manifest.json"
    if isinstance(content, dict):
        content = json.loads(path.read_text()) | content
        if "format" in content and content["format"] == "zip":
            del content["checksum"]
        content = json.dumps(content)
    path.write_text(content)
    assert words in message(read, tmp_path / "s")


def test_damaged_manifests_and_indices_are_refused_in_words(folder, tmp_path):
    """Every value replaced by odd ones, and an index that does not belong to its shards, its checksum made right."""
    convert(FolderSource(folder(), "train"), tmp_path / "s" / "train", ShardOptions())
    path = tmp_path / "s" / "train" / "manifest.json"
    content = json.loads(path.read_text())
    for name in content:
        for odd in (None, -1, 2**70, 1.5, "x", [], {}, [[]], [None], {"a": 1}, True):
            path.write_text(json.dumps(content | {name: odd}))
            if odd != content[name] and (name, odd) != ("checksum", None):
                assert str(tmp_path) in message(read, tmp_path / "s"), (name, odd)
    index = tmp_path / "s" / "train" / "records.npy"
    right = np.load(index)
    del content["checksum"]  # as in the first manifests
    for field, value in (("label", 2), ("label", -1), ("shard", 7), ("offset", 2**40), ("size", 2**40)):
        records = right.copy()
        records[field][3] = value
        np.save(index, records)
        content["index"]["records.npy"] = hashlib.sha256(index.read_bytes()).hexdigest()
        path.write_text(json.dumps(content))
        assert f'The index "{index}"' in message(read, tmp_path / "s"), (field, value)
    np.save(index, right)
    content["index"]["records.npy"] = hashlib.sha256(index.read_bytes()).hexdigest()
    path.write_text(json.dumps(content))
    assert len(open_source(str(tmp_path / "s"), "train")) == 9


def test_a_folder_above_or_below_the_right_one(made):
    text = message(open_source, str(made[1] / "train"), "train")
    assert "holds the shards of one split" in text and f"the folder above it: {made[1]}" in text
    assert "does not exist" in message(open_source, str(made[1] / "trian"), "train")
    shutil.rmtree(made[1] / "val")
    assert 'have no split "val"' in message(open_source, str(made[1]), "val")


def test_an_image_folder_may_have_a_manifest_of_somebody_else(folder):
    root = folder()
    (root / "train" / "manifest.json").write_text('{"version": "1.1"}')
    assert len(open_source(str(root), "train")) == 9


def test_arrayrecord_without_its_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "array_record.python", None)
    text = message(convert, FolderSource(folder(), "train"), tmp_path / "s" / "train", ShardOptions("arrayrecord"))
    assert "pip install 'jaxkd[shards]'" in text
