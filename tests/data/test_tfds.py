"""TFDS data sets: a tiny one, prepared and read without TensorFlow, and what is said when something is missing."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import AugmentConfig, TrainPipeline, open_source
from jaxkd.data.sources.tfds import TfdsSpec
from jaxkd.errors import DataError

ROOT = Path(__file__).resolve().parent.parent.parent


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8 + index, 6, 3), 10 * index, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets", reason="needs the extra `tfds`")


@pytest.fixture(scope="module")
def prepare(tfds, tmp_path_factory):
    """`prepare("name", {"train": 6})` -> the data_dir of a new data set "name" of cats and dogs."""
    folder = tmp_path_factory.mktemp("tfds")

    def build(name: str, splits: dict[str, int], *, features=None, labels=None, supervised=True):
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = "unused"
            VERSION = tfds.core.Version("1.2.3")
            __module__ = "jaxkd_tests"

            def _info(self):
                shown = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "coarse": tfds.features.ClassLabel(num_classes=3),
                    "file_name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features or shown),
                    supervised_keys=("image", "label") if supervised else None,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(count) for split, count in splits.items()}

            def _generate_examples(self, count):
                for i in range(count):
                    label = i % 2 if labels is None else labels
                    row = {"image": png(i), "label": label, "coarse": 2, "file_name": f"{i}.png"}
                    yield str(i), {k: row[k] for k in features or row}

        Tiny.name = name
        Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare()
        return str(folder)

    return build


@pytest.fixture(scope="module")
def tiny(prepare):
    return f"tfds:tiny?data_dir={prepare('tiny', {'train': 6, 'test': 3, 'validation': 4})}"


def message(spec: str, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        source = open_source(spec, split)
        [source.label(i) for i in range(len(source))]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_records_are_what_was_put_in(tiny):
    source = open_source(tiny, "train")
    assert len(source) == 6 and source.class_names == ("cat", "dog") and source.class_counts.tolist() == [3, 3]
    heights = []
    for i in range(6):
        assert source.name(i) == f"tfds:tiny/train:{i}"
        image = source.image(i)
        number = image.height - 8
        heights.append(number)
        assert source.bytes(i) == png(number) and source.label(i) == number % 2 and image.mode == "RGB"
    assert sorted(heights) == list(range(6))
    for i in reversed(range(6)):
        assert source.bytes(i) == png(heights[i])
    with pytest.raises(IndexError):
        source.name(6)


def test_val_is_the_best_held_out_split_that_there_is(tiny, prepare):
    assert len(open_source(tiny, "val")) == 4  # validation, not test
    folder = prepare("tested", {"train": 2, "test": 3})
    assert len(open_source(f"tfds:tested?data_dir={folder}", "val")) == 3


def test_splits_may_be_cut(tiny):
    train, val = (open_source(f"{tiny}&train=train[:4]&val=train[4:]", s) for s in ("train", "val"))
    whole = open_source(tiny, "train")
    assert [train.bytes(i) for i in range(4)] + [val.bytes(i) for i in range(2)] == [whole.bytes(i) for i in range(6)]


def test_another_label_may_be_chosen(tiny):
    source = open_source(f"{tiny}&label=coarse", "train")
    assert source.class_names == ("0", "1", "2") and source.label(0) == 2 and source.class_counts.tolist() == [0, 0, 6]


def test_workers_and_threads_read_the_same(tiny):
    source = open_source(tiny, "train")
    expected = [(source.bytes(i), source.label(i)) for i in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000
    assert [(copy.bytes(i), copy.label(i)) for i in range(6)] == expected
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: (source.bytes(i), source.label(i)), list(range(6)) * 40))
    assert got == expected * 40


def test_it_feeds_training(tiny):
    options = {"batch_size": 3, "image_size": (4, 4), "seed": 0, "augment": AugmentConfig(kind="none", hflip=0)}
    batch = next(TrainPipeline(open_source(tiny, "train"), **options))
    assert (batch["image"][:, 0, 0, 0] // 10 % 2).tolist() == batch["label"].tolist()


def test_tensorflow_is_never_imported_even_where_it_is_installed(tiny, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = (
        "import sys, importlib.util; assert importlib.util.find_spec('tensorflow')\n"
        "from jaxkd.data import open_source\n"
        f"source = open_source({tiny!r}, 'train')\n"
        "print(source.image(0).mode, source.label(0), source.class_counts.sum(), 'tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mode, _, count, imported = done.stdout.split()
    assert (mode, count, imported) == ("RGB", "6", "False")


# ---- what is missing


def test_a_data_set_that_is_not_prepared(tiny):
    folder = TfdsSpec.parse(tiny).data_dir
    text = message(f"tfds:cifar10?data_dir={folder}")
    assert f'tfds:cifar10 is not prepared: there is nothing in "{folder}/cifar10' in text
    assert f"tfds.builder('cifar10', data_dir='{folder}', file_format='array_record').download_and_prepare()" in text
    assert "No module named 'tensorflow'" in text and "by a program" not in text


def test_a_data_set_that_must_be_fetched_by_hand(tiny):
    folder = TfdsSpec.parse(tiny).data_dir
    text = message(f"tfds:imagenet2012?data_dir={folder}")
    assert f"put its files into {folder}/downloads/manual first" in text and "ILSVRC2012_img_train.tar" in text


def test_a_data_set_that_nobody_knows(tiny):
    folder = TfdsSpec.parse(tiny).data_dir
    text = message(f"tfds:cifar1O?data_dir={folder}")
    assert 'TFDS knows no data set "cifar1O"' in text and 'Did you mean "cifar10"' in text


def test_a_data_set_without_random_access(prepare):
    # Other formats need TensorFlow to be written, so only the metadata say it.
    folder = prepare("flat", {"train": 2})
    info = Path(folder) / "flat" / "1.2.3" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    text = message(f"tfds:flat?data_dir={folder}")
    assert "is stored as tfrecord, which has no random access" in text and "/OTHER/FOLDER" in text


def test_missing_splits_and_features(prepare, tiny):
    folder = prepare("lonely", {"train": 4})
    spec = f"tfds:lonely?data_dir={folder}"
    assert "has no held-out split; it has: train. " in message(spec, "val")
    assert 'no split "trian". Did you mean "train"?' in message(f"{spec}&train=trian[:2]")
    assert '"train[:x]" is not a split' in message(f"{spec}&train=train[:x]")
    assert 'no label "lable"' in message(f"{spec}&label=lable")
    assert "file_name (Text)" in message(f"{spec}&label=file_name")


def test_data_that_are_not_labelled_images(prepare, tfds):
    words = {"file_name": tfds.features.Text()}
    folder = prepare("words", {"train": 2}, features=words, supervised=False)
    assert "0 features that could be the image" in message(f"tfds:words?data_dir={folder}")
    folder = prepare("twice", {"train": 2}, supervised=False)
    assert "2 features that could be the label" in message(f"tfds:twice?data_dir={folder}")
    assert len(open_source(f"tfds:twice?data_dir={folder}&label=label", "train")) == 2


def test_records_without_a_label(prepare):
    folder = prepare("hidden", {"train": 2, "test": 2}, labels=-1)
    assert "has the label -1, which is none of the 2 classes" in message(f"tfds:hidden?data_dir={folder}", "val")


def test_a_damaged_record(prepare):
    folder = prepare("damaged", {"train": 6})
    file = next((Path(folder) / "damaged" / "1.2.3").glob("*.array_record*"))
    data = bytearray(file.read_bytes())
    start = data.index(b"\x89PNG")
    data[start + 30] ^= 255
    file.write_bytes(data)
    assert "cannot be read" in message(f"tfds:damaged?data_dir={folder}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tfds:", "names no data set"),
        ("tfds:cifar10?data_dri=/x", 'Did you mean "data_dir"?'),
        ("tfds:cifar10?data_dir", '"data_dir", which is not an option'),
        ("tfds:cifar10?val=", '"val=", which is not an option'),
    ],
)
def test_mistyped_specs(spec, words):
    assert words in message(spec)


def test_tfds_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install 'jaxkd[tfds]'" in message("tfds:cifar10")
