"""Sub-images: their places, their names, and that a folder of them is never half of one thing and half of another."""

from __future__ import annotations

import fcntl
import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import open_pairs
from jaxkd.data.prepare.subimages import SETTINGS, CutOptions, cut_boxes, cut_folder
from jaxkd.errors import ConfigError, DataError

OPTIONS = CutOptions(size=32, step=16)


@pytest.fixture
def images(tmp_path, picture):
    root = tmp_path / "in"
    (root / "more").mkdir(parents=True)
    picture(50, 64, 1).save(root / "0001.png")
    picture(40, 33, 2).save(root / "more" / "0002.jpg")
    return root


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_places_by_hand():
    # 50: 0, 16 end at 48, 2 are left, so one more starts at 18; 64: 0, 16, 32 end at 64
    assert cut_boxes((50, 64), OPTIONS) == [
        (0, 0, 32, 32),
        (16, 0, 48, 32),
        (32, 0, 64, 32),
        (0, 16, 32, 48),
        (16, 16, 48, 48),
        (32, 16, 64, 48),
        (0, 18, 32, 50),
        (16, 18, 48, 50),
        (32, 18, 64, 50),
    ]
    assert len(cut_boxes((50, 64), CutOptions(32, 16, thresh=2))) == 6
    assert len(cut_boxes((50, 64), CutOptions(32, 16, thresh=1))) == 9
    assert cut_boxes((20, 64), OPTIONS) == [(0, 0, 32, 20), (16, 0, 48, 20), (32, 0, 64, 20)]
    assert cut_boxes((32, 32), OPTIONS) == [(0, 0, 32, 32)]
    assert cut_boxes((3, 2), OPTIONS) == [(0, 0, 2, 3)]
    # the first image of DIV2K, 1404 x 2040, gives 5 x 8
    assert len(cut_boxes((1404, 2040), CutOptions())) == 40


def test_they_show_what_the_image_has_there(images, tmp_path):
    out, seen = tmp_path / "out", []
    result = cut_folder(images, out, OPTIONS, report=lambda *args: seen.append(args))
    assert (result.images, result.subimages, result.written, result.small, result.failed) == (2, 9 + 4, 13, 0, [])
    assert seen == [(1, 2, 9), (2, 2, 4)]
    names = [f"0001_s{n:03d}.png" for n in range(1, 10)] + [f"more/0002_s{n:03d}.png" for n in range(1, 5)]
    assert sorted(files(out)) == sorted([*names, SETTINGS])
    for name in ("0001.png", "more/0002.jpg"):
        pixels = np.asarray(Image.open(images / name).convert("RGB"))
        for number, (left, upper, right, lower) in enumerate(cut_boxes(pixels.shape[:2], OPTIONS), 1):
            part = np.asarray(Image.open(out / f"{name[:-4]}_s{number:03d}.png"))
            np.testing.assert_array_equal(part, pixels[upper:lower, left:right])


def test_a_small_image_is_kept_whole(images, tmp_path, picture):
    picture(20, 30, 3).save(images / "small.png")
    result = cut_folder(images, tmp_path / "out", OPTIONS)
    assert result.small == 1 and (tmp_path / "out" / "small_s001.png").exists()
    assert Image.open(tmp_path / "out" / "small_s001.png").size == (30, 20)


def test_what_is_missing_is_written_and_nothing_else_touched(images, tmp_path):
    out = tmp_path / "out"
    cut_folder(images, out, OPTIONS)
    before = files(out)
    (out / "0001_s004.png").unlink()
    (out / "more" / ".0002_s001.png.99.partial").write_bytes(b"half a sub-im")  # what a killed process leaves
    (out / "more" / "0002_s001.png").unlink()
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*_s*.png")}
    result = cut_folder(images, out, OPTIONS)
    assert (result.subimages, result.written) == (13, 2)
    assert files(out) == before
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_killed_between_any_two_files_and_continued_it_writes_the_same(images, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    cut_folder(images, whole, OPTIONS)
    real, count = os.replace, len(files(whole))

    class Killed(BaseException):
        """Nothing in the code can catch it for an error."""

    for kill_at in range(count):
        done = 0

        def replace(a, b, kill_at=kill_at):
            nonlocal done
            done += 1
            if done > kill_at:
                raise Killed
            real(a, b)

        out = tmp_path / f"out_{kill_at}"
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            cut_folder(images, out, OPTIONS, workers=1)
        monkeypatch.setattr(os, "replace", real)
        assert len(files(out)) == kill_at
        cut_folder(images, out, OPTIONS, workers=2)
        assert files(out) == files(whole)


def test_images_that_cannot_be_read_are_named_and_the_rest_done(images, tmp_path):
    (images / "0000.png").write_bytes(b"")
    cut = (images / "0001.png").read_bytes()
    (images / "0003.png").write_bytes(cut[: len(cut) // 2])
    result = cut_folder(images, tmp_path / "out", OPTIONS)
    assert (result.images, result.subimages) == (2, 13) and len(result.failed) == 2
    assert "0000.png" in result.failed[0] and "0003.png" in result.failed[1]


def test_another_cutting_is_refused(images, tmp_path, picture):
    out = tmp_path / "out"
    cut_folder(images, out, OPTIONS)
    before = files(out)
    with pytest.raises(DataError, match="step was 16 and is now 8"):
        cut_folder(images, out, CutOptions(32, 8))
    picture(40, 40).save(images / "0009.png")
    with pytest.raises(DataError, match="images was 2 and is now 3, fingerprint was"):
        cut_folder(images, out, OPTIONS)
    (images / "0009.png").unlink()
    (out / SETTINGS).write_text("[]")
    with pytest.raises(DataError, match="was not written by this version"):
        cut_folder(images, out, OPTIONS)
    (out / SETTINGS).write_bytes(before[SETTINGS])
    assert files(out) == before and json.loads(before[SETTINGS])["size"] == 32


def test_folders_that_cannot_be_used(images, tmp_path):
    for out in (images / "out", images, tmp_path):
        with pytest.raises(DataError, match="lie in one another"):
            cut_folder(images, out, OPTIONS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match='holds "thesis.tex", and no subimages.json'):
        cut_folder(images, other, OPTIONS)
    with pytest.raises(DataError, match="is a file, or lies in one"):
        cut_folder(images, other / "thesis.tex", OPTIONS)
    with pytest.raises(DataError, match='"thesis.tex" is a file|is a file'):
        cut_folder(other / "thesis.tex", tmp_path / "out", OPTIONS)
    with pytest.raises(DataError, match="holds no images"):
        cut_folder(other, tmp_path / "out", OPTIONS)
    with pytest.raises(DataError, match='does not exist. Did you mean "other"'):
        cut_folder(tmp_path / "othr", tmp_path / "out", OPTIONS)
    (images / "0001.jpg").write_bytes((images / "0001.png").read_bytes())
    with pytest.raises(DataError, match='has "0001.jpg" and "0001.png"'):
        cut_folder(images, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists() and [*files(other)] == ["thesis.tex"]


def test_two_at_once(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="Another process is writing"):
        cut_folder(images, out, OPTIONS)
    os.close(handle)
    assert cut_folder(images, out, OPTIONS).written == 13


def test_options_out_of_range():
    for options in ({"size": 0}, {"step": 0}, {"thresh": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}=.* is out of range"):
            CutOptions(**options)


def test_sub_images_of_both_sizes_are_pairs(tmp_path, picture):
    for name, size in (("HR/0001", (64, 96)), ("LR/X2/0001x2", (32, 48))):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True)
        picture(*size).save(path)
    cut_folder(tmp_path / "HR", tmp_path / "sub" / "HR", OPTIONS)
    cut_folder(tmp_path / "LR" / "X2", tmp_path / "sub" / "LR" / "X2", CutOptions(16, 8))
    source = open_pairs(f"{tmp_path / 'sub'}?lr=LR", 2)
    assert len(source) == 3 * 5
    assert source.name(3).endswith("0001_s004.png")
    assert source.lr_name(3).endswith("0001x2_s004.png")
    assert source.pair(3).lr.shape == (16, 16, 3)
