"""The photographs inside scikit-image: which, split how, and what is said where they are not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from jaxkd.data import PatchConfig, PatchPipeline, open_pairs
from jaxkd.data.sources import photos
from jaxkd.errors import DataError

HERE = importlib.util.find_spec("skimage") is not None


@pytest.mark.skipif(not HERE, reason="needs the extra `photos`")
def test_they_train_and_score():
    train, val = (open_pairs("embedded:photos", 4, split=split) for split in ("train", "val"))
    assert len(train) == 9 and len(val) == 2
    names = [s.name(i).rsplit("/", 1)[1] for s in (train, val) for i in range(len(s))]
    assert len(set(names)) == 11 and names[-2:] == ["chelsea.png", "coffee.png"]
    assert not [n for n in names[:9] if n.split("_")[0] == "chelsea"]
    assert [p.lr.shape for p in val] == [(75, 112, 3), (100, 150, 3)]
    batches = PatchPipeline(train, batch_size=8, seed=0, config=PatchConfig(size=96, visits=8))
    assert batches.steps_per_epoch == 9 and next(batches)["mask"].all()


@pytest.mark.skipif(not HERE, reason="needs the extra `photos`")
def test_scikit_image_is_not_imported():
    code = (
        "import sys; from jaxkd.data.sources import photos; photos.photo_files('val'); print('skimage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_scikit_image(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs scikit-image.*pip install 'jaxkd\[photos\]'"):
        open_pairs("embedded:photos", 4)


@pytest.mark.skipif(not HERE, reason="needs the extra `photos`")
def test_a_release_with_other_photographs(monkeypatch):
    monkeypatch.setitem(photos.PHOTOS, "val", ("chelsea.png", "dog.png"))
    with pytest.raises(DataError, match="has no dog.png. Releases of scikit-image differ"):
        open_pairs("embedded:photos", 4, split="val")
