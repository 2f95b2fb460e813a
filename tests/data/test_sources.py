"""Folders and embedded digits: labels, order, and every way in which a folder can be wrong."""

from __future__ import annotations

import csv
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import check_same_classes, open_source
from jaxkd.data.sources.labels import PackedNames, order_classes
from jaxkd.data.sources.shards import MANIFEST
from jaxkd.errors import ConfigError, DataError


def test_labels_are_the_sorted_folder_names_of_train(folder):
    root = folder()
    train, val = open_source(str(root), "train"), open_source(str(root), "val")
    assert train.class_names == val.class_names == ("cat", "dog")
    assert [train.label(i) for i in range(len(train))] == [0] * 5 + [1] * 4
    assert [val.label(i) for i in range(len(val))] == [0, 0, 1, 1]
    assert train.image(0).size == (69, 43) and train.image(0).mode == "RGB"


def test_a_val_split_with_fewer_classes_keeps_the_labels_of_train(folder):
    root = folder()
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat").rmdir()
    val = open_source(str(root), "val")
    assert [val.label(i) for i in range(len(val))] == [1, 1]


def test_a_class_that_is_empty_in_val_only_is_named_and_ignored(folder, caplog):
    root = folder()
    (root / "train" / "emu").mkdir()
    (root / "val" / "emu").mkdir()
    Image.new("RGB", (4, 4)).save(root / "train" / "emu" / "a.png")
    val = open_source(str(root), "val")
    assert val.class_names == ("cat", "dog", "emu") and val.class_counts.tolist() == [2, 2, 0]
    assert "1 of 3 class folders" in caplog.text and "are ignored" in caplog.text and "emu" in caplog.text


NUMBERED = ["1", "10", "2", "Class9", "class10"]


def test_numbered_classes_are_ordered_as_in_timm_with_a_warning(tmp_path, caplog):
    for split in ("train", "val"):
        for name in NUMBERED:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / name / "a.png")
    natural = open_source(str(tmp_path), "train")
    assert natural.class_names == ("1", "2", "10", "Class9", "class10")
    assert [natural.relative_names[i] for i in (1, 2)] == ["2/a.png", "10/a.png"] and natural.label(2) == 2
    assert caplog.text.count("label 1 is") == 1 and 'class_order="text"' in caplog.text
    caplog.clear()
    assert open_source(str(tmp_path), "val").class_names == natural.class_names
    text = open_source(str(tmp_path), "val", class_order="text")
    assert text.class_names == ("1", "10", "2", "Class9", "class10") and not caplog.text  # train has said it
    with pytest.raises(ConfigError, match='class_order="size".*natural'):
        open_source(str(tmp_path), "val", class_order="size")


@pytest.mark.parametrize("source", ["embedded:digits", "tfds:mnist", "shards"])
def test_an_order_of_class_folders_that_there_are_not(tmp_path, source):
    (tmp_path / "shards" / "val").mkdir(parents=True)
    (tmp_path / "shards" / "val" / MANIFEST).write_text("{}")
    spec, words = source, 'class_order="text" orders class folders.* Leave it out.$'
    if source == "shards":
        spec, words = (
            str(tmp_path / source),
            r"shards keep the order .*--class-order=text of jaxkd shards\).$",
        )
    with pytest.raises(ConfigError, match=words):
        open_source(spec, "val", class_order="text")


@pytest.mark.parity
def test_natural_order_is_that_of_timms_folder_reader(timm):
    from timm.data.readers.reader_image_folder import natural_key

    names = [*NUMBERED, "n02", "n1", "a-1", "a1b2", "a1b10", "Zebra", "ant", "007", "-1"]
    assert order_classes(names, "natural") == sorted(sorted(names), key=natural_key)


def test_other_classes_than_the_weights_were_trained_on():
    check_same_classes((), ("a",), "run", "data")  # nothing recorded
    check_same_classes(["a", "b"], ("a", "b"), "run", "data")
    with pytest.raises(DataError, match=r'another order .*label 1 is "10" there and "2" in the weights'):
        check_same_classes(["1", "2", "10"], ["1", "10", "2"], "run", "data")
    with pytest.raises(DataError, match="it lacks b and it has c besides"):
        check_same_classes(["a", "b"], ["a", "c"], "run", "data")


def test_nested_and_hidden_files(folder, picture):
    root = folder()
    deeper = root / "train" / "cat" / "more"
    deeper.mkdir()
    picture(8, 8).save(deeper / "x.JPEG")
    (root / "train" / "cat" / ".hidden.jpg").write_text("no image")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    assert len(open_source(str(root), "train")) == 10


def test_a_source_survives_the_way_to_a_worker(folder):
    source = open_source(str(folder()), "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(np.asarray(copy.image(3)), np.asarray(source.image(3)))


def test_the_embedded_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, val = open_source("embedded:digits", "train"), open_source("embedded:digits", "val")
    assert (len(train), len(val)) == (1438, 359)
    assert [val.label(i) for i in range(4)] == digits.target[4:20:5].tolist()
    assert [train.label(i) for i in range(5)] == digits.target[[0, 1, 2, 3, 5]].tolist()
    pixels = np.asarray(val.image(1))
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    np.testing.assert_array_equal(pixels[..., 0], np.round(digits.images[9] / 16 * 255).astype(np.uint8))


def test_records_have_names_bytes_and_counts(folder):
    root = folder()
    train, val = open_source(str(root), "train"), open_source(str(root), "val")
    assert train.name(0) == str(root / "train" / "cat" / "0.jpg")
    assert train.bytes(8) == (root / "train" / "dog" / "3.png").read_bytes()
    assert train.class_counts.tolist() == [5, 4] and val.class_counts.tolist() == [2, 2]
    digits = open_source("embedded:digits", "val")
    assert digits.bytes(0) is None and digits.name(3) == "embedded:digits/val:3" and digits.class_counts.sum() == 359


def test_counts_of_a_class_without_validation_images(folder):
    root = folder()
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat").rmdir()
    assert open_source(str(root), "val").class_counts.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "dog\tdog, domestic dog\ncat\tcat\n"),
        ("synset_words.txt", "cat cat\ndog dog, domestic dog\n"),
        ("LOC_synset_mapping.txt", "\ufeffcat cat\nemu emu\ndog dog, domestic dog\n\n"),
        ("words.txt", "dog\tdog, domestic dog\n"),
    ],
)
def test_words_for_the_classes_come_along(folder, file, content):
    root = folder()
    assert open_source(str(root), "val").class_words == ("cat", "dog")
    (root / file).write_text(content, encoding="utf-8")
    source = open_source(str(root), "val")
    assert source.class_words == ("cat", "dog, domestic dog") and source.class_names == ("cat", "dog")


def test_words_of_another_naming_are_left_alone(folder):
    root = folder()
    (root / "classes.txt").write_text("n01 tench\nn02 goldfish\n")
    (root / "words.txt").write_text("cat a cat\n")
    assert open_source(str(root), "train").class_words == ("a cat", "dog")


def test_imagenet_labels_are_those_of_published_networks(shared_data, tmp_path):
    # Output i of every published ImageNet network is row i of the index; the folders are made in another order.
    with (shared_data("imagenet1k_sample_256") / "index.csv").open() as file:
        wnids = [row["wnid"] for row in csv.DictReader(file)]
    for label in np.random.default_rng(0).permutation(1000):
        (tmp_path / "val" / wnids[label]).mkdir(parents=True)
        (tmp_path / "val" / wnids[label] / "ILSVRC2012_val_00000001.JPEG").touch()
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    source = open_source(str(tmp_path), "val")
    assert source.class_names == tuple(wnids) and source.class_words[:2] == ("tench, Tinca tinca", "n01443537")
    assert all(wnids[source.label(i)] in source.name(i) for i in range(1000))


def test_exif_rotation_is_an_option_of_the_source(tmp_path):
    where = tmp_path / "train" / "cat"
    where.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(where / "a.jpg", exif=exif)
    assert open_source(str(tmp_path), "train").image(0).size == (30, 20)
    turned = pickle.loads(pickle.dumps(open_source(str(tmp_path), "train", exif=True)))
    assert turned.exif and turned.image(0).size == (20, 30)


def test_a_million_names_are_pickled_as_what_they_are():
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(20_000)]
    packed = PackedNames.pack(names)
    assert (
        len(packed) == 20_000 and packed[12_345] == names[12_345] and packed[-1] == names[-1] and packed[0] == names[0]
    )
    assert len(pickle.dumps(packed)) < 1.35 * sum(map(len, names))
    with pytest.raises(IndexError):
        packed[20_000]


def test_any_file_name_is_kept():
    names = ["a b.jpg", "größe\n.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    assert [PackedNames.pack(names)[i] for i in range(3)] == names
    assert len(PackedNames.pack([])) == 0


def _message(spec, split="train") -> str:
    with pytest.raises(DataError) as caught:
        source = open_source(str(spec), split)
        for i in range(len(source)):
            source.image(i)
    return str(caught.value)


def test_a_missing_folder_names_its_neighbour(folder):
    root = folder("imagenet")
    text = _message(root.parent / "imagnet")
    assert f'"{root.parent / "imagnet"}" does not exist' in text and 'Did you mean "imagenet"?' in text
    assert "train/<label>" in text


def test_a_missing_split_names_what_is_there(folder):
    root = folder()
    (root / "val").rename(root / "validation")
    text = _message(root, "val")
    assert 'has no folder "val"' in text and "train, validation" in text


def test_an_empty_class(folder):
    root = folder()
    (root / "train" / "emu").mkdir()
    text = _message(root)
    assert f'The class folder "{root / "train" / "emu"}" holds no images' in text


def test_a_class_that_only_val_has(folder):
    root = folder()
    (root / "val" / "dog").rename(root / "val" / "dogs")
    text = _message(root, "val")
    assert 'has the class "dogs"' in text and 'Did you mean "dog"?' in text


def test_a_folder_of_images_without_labels(folder, picture):
    root = folder()
    flat = root.parent / "flat"
    (flat / "train").mkdir(parents=True)
    picture(8, 8).save(flat / "train" / "a.png")
    assert "has no class folders" in _message(flat)


@pytest.mark.parametrize("content", [b"this is text", b"", None])
def test_a_file_that_is_no_image_is_named(folder, content):
    root = folder()
    path = root / "train" / "cat" / "2.jpg"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    text = _message(root)
    assert f'The file "{path}" cannot be read as an image' in text and "\n" not in text


def test_unknown_splits_and_embedded_sets():
    assert 'Did you mean "val"?' in _message("embedded:digits", "vall")
    assert 'Did you mean "embedded:digits"?' in _message("embedded:digit")
