"""Shards in an object store: the same records as from a folder, few requests, and every failure in words."""

from __future__ import annotations

import pickle
import shutil
import sys

import fsspec
import numpy as np
import pytest
from stores import BrokenStore, CountedStore

from jaxkd import main, shards
from jaxkd.data import AugmentConfig, EvalBatches, EvalPreprocess, TrainPipeline, open_source, storage, take_subset
from jaxkd.data.prepare.shards import ShardOptions, convert
from jaxkd.data.sources.folder import FolderSource
from jaxkd.data.sources.images import open_images
from jaxkd.errors import ConfigError, DataError, StorageError

OPTIONS = {"batch_size": 4, "image_size": (12, 16), "seed": 3, "augment": AugmentConfig()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of what was read."""
    monkeypatch.setenv("JAXKD_DATA_CACHE", str(tmp_path / "cache"))
    for store in (CountedStore, BrokenStore):
        fsspec.register_implementation(store.protocol, store, clobber=True)
    return tmp_path / "cache"


@pytest.fixture
def where(folder, tmp_path):
    """Shards of both splits in a folder, three or more of train."""
    root = folder()
    for split in ("train", "val"):
        convert(FolderSource(root, split), tmp_path / "shards" / split, ShardOptions("tar", shard_bytes=20_000))
    assert len(list((tmp_path / "shards" / "train").glob("*.tar"))) >= 3
    return tmp_path / "shards"


@pytest.fixture
def counted(where):
    """Their address in a store that counts."""
    CountedStore.reset(where.parent)
    return "counted://shards"


def read_all(source):
    return [source.bytes(i) for i in range(len(source))]


@pytest.mark.parametrize("protocol", ["file", "memory", "counted"])
def test_records_are_those_of_the_folder(where, counted, protocol, cache):
    address = {"file": f"file://{where}", "counted": counted, "memory": "memory://bucket/shards/"}[protocol]
    if protocol == "memory":
        fsspec.filesystem("memory").put(str(where), "/bucket/shards", recursive=True)
    for split in ("train", "val"):
        ours, theirs = open_source(address, split), open_source(str(where), split)
        assert (ours.class_names, ours.class_words) == (theirs.class_names, theirs.class_words)
        np.testing.assert_array_equal(ours.class_counts, theirs.class_counts)
        assert read_all(ours) == read_all(theirs) == read_all(pickle.loads(pickle.dumps(ours)))
        assert [ours.label(i) for i in range(len(ours))] == [theirs.label(i) for i in range(len(theirs))]
        assert ours.name(0) == theirs.name(0).replace(str(where), address.rstrip("/"))
        np.testing.assert_array_equal(np.asarray(ours.image(0)), np.asarray(theirs.image(0)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_evaluation_see_the_same(where, workers):
    """Worker processes open the store themselves."""
    batches = []
    for root in (f"file://{where}", str(where)):
        source = take_subset(open_source(root, "train"), 3, 0)
        pipeline = TrainPipeline(source, workers=workers, repeats=2, **OPTIONS)
        scored = EvalBatches(open_source(root, "val"), EvalPreprocess((8, 8), 1.0, "bicubic"), batch_size=3)
        batches.append([next(pipeline) for _ in range(5)] + list(scored))
        pipeline.close()
    for ours, theirs in zip(*batches, strict=True):
        assert ours["mask"].all() == theirs["mask"].all()
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_record_and_the_index_are_requested_once(counted):
    pipeline = TrainPipeline(open_source(counted, "train"), **OPTIONS)
    asked = len(CountedStore.requests)
    assert sorted(name for name, _ in CountedStore.requests) == ["manifest.json", "names.bin", "records.npy"]
    for _ in range(8):  # four epochs of nine records
        next(pipeline)
    records = CountedStore.requests[asked:]
    assert len(records) == len(set(records)) == 9
    again = open_source(counted, "train")
    read_all(again)
    assert CountedStore.requests[asked + 9 :] == [("manifest.json", 0)]


def test_without_a_cache_each_batch_is_requested_together(counted, monkeypatch):
    monkeypatch.setenv("JAXKD_DATA_CACHE_GB", "0")
    source = open_source(counted, "train")
    CountedStore.reset(CountedStore.root, 0.05)
    source.fetch([0, 5, 5, 7, 8])
    assert (CountedStore.most, len(CountedStore.requests)) == (4, 4)
    expected = open_source(str(CountedStore.root / "shards"), "train")
    assert [source.bytes(i) for i in (5, 0, 8, 5, 7)] == [expected.bytes(i) for i in (5, 0, 8, 5, 7)]
    assert len(CountedStore.requests) == 4
    source.bytes(5)  # used as often as it was asked for
    assert len(CountedStore.requests) == 5


def test_the_cache_keeps_the_shards_that_fit(where, counted, cache, monkeypatch, caplog):
    sizes = [path.stat().st_size for path in sorted((where / "train").glob("*.tar"))]
    monkeypatch.setenv("JAXKD_DATA_CACHE_GB", str((sizes[0] + sizes[1] + 1) / 1e9))
    source = open_source(counted, "train")
    read_all(source)
    assert sum(path.stat().st_size for path in (cache / "shards").iterdir()) <= sizes[0] + sizes[1] + 1
    assert f"2 of its {len(sizes)} shards is kept" in caplog.text
    asked = len(CountedStore.requests)
    assert read_all(source) == read_all(open_source(str(where), "train"))
    again = {name for name, _ in CountedStore.requests[asked:]}
    assert again == {f"train-{i:05d}.tar" for i in range(2, len(sizes))}
    open_source(counted, "val")  # for which there is no room
    assert len(list((cache / "shards").iterdir())) == 2
    monkeypatch.setenv("JAXKD_DATA_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="JAXKD_DATA_CACHE_GB='much' is out of range"):
        open_source(counted, "train")


def spoil(*paths):
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))


def test_damage_of_the_cache_is_read_again_and_damage_of_the_store_is_said(where, counted, cache):
    source, expected = open_source(counted, "train"), open_source(str(where), "train")
    read_all(source)
    spoil(*(cache / "shards").iterdir(), *(cache / "index").rglob("records.npy"))
    again = open_source(counted, "train")
    assert read_all(again) == read_all(expected)
    spoil(*(cache / "shards").iterdir(), where / "train" / "train-00000.tar")
    damaged = open_source(counted, "train")
    damaged.fetch([0, 8])
    with pytest.raises(DataError, match=r"counted://shards/train/train-00000.tar\" has another checksum at record"):
        damaged.bytes(0)
    assert damaged.bytes(8) == expected.bytes(8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda w: shutil.rmtree(w),
            '"counted://shards" is not there, or is empty. Check bucket and path. Make',
        ),
        (
            lambda w: (w / "train/manifest.json").unlink(),
            'holds no shards of split "train": there is no counted://',
        ),
        (lambda w: (w / "train/manifest.json").rename(w / "train/conversion.json"), "conversion that is not finished"),
        (lambda w: (w / "train/train-00001.tar").unlink(), 'shard "counted://shards/train/train-00001.tar" is missing'),
        (lambda w: (w / "train/train-00001.tar").write_bytes(b"12"), "has 2 bytes instead of"),
        (
            lambda w: (w / "train/records.npy").write_bytes(b"12"),
            '"counted://shards/train/records.npy" is missing',
        ),
        (lambda w: (w / "train/names.bin").unlink(), '"counted://shards/train/names.bin" is missing'),
        (
            lambda w: (w / "train/manifest.json").write_text("{"),
            'counted://shards/train/manifest.json" cannot be read',
        ),
        (lambda w: (w / "manifest.json").write_text("{}") and shutil.rmtree(w / "train"), "the shards of one split"),
    ],
)
def test_what_is_not_there_or_not_whole(where, counted, spoil, words):
    spoil(where)
    with pytest.raises(DataError) as raised:
        open_source(counted, "train")
    assert words in str(raised.value) and str(CountedStore.root) not in str(raised.value)


def test_array_records_are_read_from_folders(folder, tmp_path, counted):
    pytest.importorskip("array_record", reason="needs the extra `shards`")
    convert(FolderSource(folder("other"), "train"), tmp_path / "a" / "train", ShardOptions("arrayrecord"))
    with pytest.raises(DataError, match='format "arrayrecord", which is read from folders only'):
        open_source("counted://a", "train")


FAILURES = [
    (PermissionError("Forbidden"), "may not be read with the credentials of this machine (PermissionError: Forbidden)"),
    (OSError("Anonymous caller does not have storage.objects.list access"), "Log in (gcloud auth application-default"),
    (ConnectionError("no route to host"), "cannot be read (ConnectionError: no route to host). Check the address and"),
    (5.0, "did not answer within 0.3 seconds. Check the address and the network"),
]


@pytest.mark.parametrize(("error", "words"), FAILURES)
def test_a_store_that_fails(where, monkeypatch, error, words):
    monkeypatch.setattr(storage, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(BrokenStore, "error", error)
    with pytest.raises(StorageError) as raised:
        open_source(f"broken://{where}", "train")
    text = str(raised.value)
    assert words in text and f'"broken://{where}/train"' in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_store_that_fails_later_ends_the_run_instead_of_skipping_images(where, monkeypatch, workers):
    address = f"broken://{where}" if not workers else f"file://{where}"
    pipeline = TrainPipeline(open_source(address, "train"), max_broken=1.0, workers=workers, **OPTIONS)
    if workers:  # worker processes import no class of a test
        shutil.rmtree(where)
    else:
        monkeypatch.setattr(BrokenStore, "error", ConnectionError("gone"))
    with pytest.raises(StorageError, match=r"/train\" (cannot be read \(ConnectionError: gone\)|is not there)"):
        next(pipeline)
    pipeline.close()


def test_missing_packages_name_the_extra(where, monkeypatch):
    fsspec.register_implementation("nodriver", "no_such_package.Store", errtxt="Install no_such_package", clobber=True)
    with pytest.raises(StorageError, match=r"driver for nodriver://.*pip install 'jaxkd\[storage\]'"):
        open_source("nodriver://bucket/a", "train")
    with pytest.raises(StorageError, match=r'gss://, which fsspec does not know. Did you mean "gs"'):
        open_source("gss://bucket/a", "train")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    storage._connect.cache_clear()
    with pytest.raises(StorageError, match=r"fsspec.*pip install 'jaxkd\[storage\]'"):
        open_source(f"file://{where}", "train")


@pytest.mark.parametrize(
    ("command", "argv", "option"),
    [
        (main.main, ["--config=configs/supervised.py", "--workdir=gs://b/run"], "--workdir"),
        (shards.main, ["--in=images", "--out=gs://b/shards"], "--out"),
        (shards.main, ["--in=s3://b/images", "--out=shards"], "--in"),
        (shards.main, ["--verify=s3://b/shards"], "--verify"),
    ],
)
def test_other_addresses_are_refused_and_make_no_folder(command, argv, option, capsys):
    with pytest.raises(SystemExit) as left:
        command([*argv])
    said = capsys.readouterr().err
    assert left.value.code == 2 and f'{option}="' in said and "is an address, and" in said
    assert "gcloud storage cp -r or aws s3 cp --recursive" in said and len(said.splitlines()) == 1


def test_an_analysis_reads_the_validation_split(counted):
    source, labelled = open_images(counted)
    assert labelled and len(source) == 4 and source.name(0).startswith("counted://shards/val/val-00000.tar")
