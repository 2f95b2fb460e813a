"""Pairs of large and small images: parts equal the whole, files find each other, and what does not fit says so."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import imresize, open_pairs
from jaxkd.data.sources.pair_files import match_names
from jaxkd.data.sources.pairs import PairSource
from jaxkd.data.transforms.fast_decode import region_decoding
from jaxkd.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path, picture):
    """tmp/set with a PNG and JPEGs of different subsampling, none a multiple of anything, one of a single LR pixel."""
    root = tmp_path / "set"
    root.mkdir()
    picture(67, 93, 1).save(root / "a.png")
    picture(101, 59, 2).save(root / "b.jpg", quality=90)
    picture(83, 131, 3).save(root / "c.jpg", quality=80, subsampling=0)
    picture(9, 40, 4).save(root / "d.png")
    return root


def whole(path, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """HR cut to multiples and its LR, written down a second time."""
    hr = np.asarray(Image.open(path).convert("RGB"))
    height, width = (side - side % scale for side in hr.shape[:2])
    hr = hr[:height, :width]
    return hr, imresize(hr, 1 / scale)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_whole_pairs_are_cut_to_multiples_and_shrunk(images, scale):
    source = open_pairs(str(images), scale)
    assert len(source) == 4
    for pair, size in zip(source, source.sizes(), strict=True):
        hr, lr = whole(pair.name, scale)
        np.testing.assert_array_equal(pair.hr, hr)
        np.testing.assert_array_equal(pair.lr, lr)
        assert pair.hr.dtype == pair.lr.dtype == np.uint8 and pair.lr.shape[:2] == tuple(size)
        assert pair.hr.shape[0] == scale * pair.lr.shape[0] and pair.hr.shape[1] == scale * pair.lr.shape[1]


@pytest.mark.parametrize("region_decode", ["off", "on"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_the_small_image_of_a_part_is_the_part_of_the_small_image(images, scale, region_decode):
    if region_decode == "on" and "libturbojpeg" not in region_decoding():
        pytest.skip("needs the extra `turbo`")
    source = open_pairs(str(images), scale, region_decode=region_decode)
    rng = np.random.default_rng(scale)
    for index in range(len(source)):
        hr, lr = whole(source.name(index), scale)
        height, width = lr.shape[:2]
        corners = [(0, 0), (height - 1, width - 1), (0, width - 1)]  # a pixel in a corner, and parts anywhere
        boxes = [(x, y, x + 1, y + 1) for y, x in corners]
        for _ in range(20):
            x, y = rng.integers(width), rng.integers(height)
            boxes.append((int(x), int(y), int(rng.integers(x, width)) + 1, int(rng.integers(y, height)) + 1))
        together = source.regions(index, boxes)
        for box, (large, small) in zip(boxes, together, strict=True):
            left, upper, right, lower = box
            np.testing.assert_array_equal(small, lr[upper:lower, left:right])
            inside = hr[scale * upper : scale * lower, scale * left : scale * right]
            np.testing.assert_array_equal(large, inside)
            alone = source.regions(index, [box])[0]
            np.testing.assert_array_equal(alone[0], large)
            np.testing.assert_array_equal(alone[1], small)


def test_parts_equal_the_whole_on_random_pixels_at_the_scale_that_is_no_binary_fraction(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (150, 180, 3), np.uint8)).save(tmp_path / "noise.png")
    source = open_pairs(str(tmp_path), 3)
    lr = source.pair(0).lr
    for _ in range(60):
        x, y = int(rng.integers(60 - 20)), int(rng.integers(50 - 20))
        small = source.regions(0, [(x, y, x + 20, y + 20)])[0][1]
        np.testing.assert_array_equal(small, lr[y : y + 20, x : x + 20])


@pytest.mark.parametrize("box", [(0, 0, 24, 2), (0, 0, 2, 17), (-1, 0, 2, 2), (0, -1, 2, 2)])
def test_a_part_outside_is_refused(images, box):
    with pytest.raises(DataError, match=r"a.png\" gives 23 x 16 pixels at scale 4, and a part of \(.*\) lies outside"):
        open_pairs(str(images), 4).regions(0, [box])


def test_multiples_of_twelve(images):
    pair = open_pairs(str(images), 4, multiple=12).pair(0)
    assert pair.hr.shape == (60, 84, 3) and pair.lr.shape == (15, 21, 3)
    np.testing.assert_array_equal(pair.lr, imresize(pair.hr, 1 / 4))
    with pytest.raises(ConfigError, match="multiple=12 does not divide by scale=8"):
        open_pairs(str(images), 8, multiple=12)
    with pytest.raises(ConfigError, match="scale=0 is out of range"):
        open_pairs(str(images), 0)


def test_it_can_be_pickled(images):
    source = open_pairs(str(images), 4)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.pair(1).lr, source.pair(1).lr)
    assert again.name(3) == source.name(3) and again.lr_name(3) == ""


def test_small_images_of_set5_are_those_that_are_made(shared_data):
    root = shared_data("sr_set5")
    for scale in (2, 3, 4):
        made, read = open_pairs(str(root), scale, split="val"), open_pairs(f"{root}?lr=LR_bicubic", scale, split="val")
        assert len(made) == len(read) == 5
        for index in range(5):
            assert read.lr_name(index).endswith(f"x{scale}.png") and not made.lr_name(index)
            a, b = made.pair(index), read.pair(index)
            assert a.name == b.name
            np.testing.assert_array_equal(a.hr, b.hr)
            np.testing.assert_array_equal(a.lr, b.lr)


def test_the_sets_of_the_field_are_found(shared_data):
    for name, count, hr in (("sr_set14", 14, "baboon.png"), ("sr_bsd100", 100, "101085.jpg"), ("sr_t91", 91, "t1.png")):
        source = open_pairs(str(shared_data(name)), 4, split="val")
        assert len(source) == count and source.name(0).endswith(hr)
    both = open_pairs(f"{shared_data('sr_t91')},{shared_data('sr_bsd200_train')}", 4)
    assert len(both) == 291
    assert [both.name(i) for i in range(291)] == [
        s.name(i)
        for s in (open_pairs([str(shared_data(n))], 4) for n in ("sr_t91", "sr_bsd200_train"))
        for i in range(len(s))
    ]


@pytest.fixture
def read_pairs(tmp_path, picture):
    """tmp/DIV with HR and LR_bicubic/X2: two pairs, whose LR is no bicubic; HR 30 x 41, so that LR is 15 x 21."""
    for name, seed in (("0001", 1), ("0002", 2)):
        for where, file, size in (("HR", name, (30, 41)), ("LR_bicubic/X2", f"{name}x2", (15, 21))):
            folder = tmp_path / "DIV" / where
            folder.mkdir(parents=True, exist_ok=True)
            picture(*size, seed=seed).save(folder / f"{file}.png")
    return tmp_path / "DIV"


def test_small_images_are_read_where_they_are_named(read_pairs):
    source = open_pairs(f"{read_pairs}?lr=LR_bicubic", 2)
    for index, name in enumerate(("0001", "0002")):
        pair = source.pair(index)
        lr = np.asarray(Image.open(read_pairs / "LR_bicubic" / "X2" / f"{name}x2.png"))[:, :20]  # the 21st has no HR
        np.testing.assert_array_equal(pair.lr, lr)
        assert pair.hr.shape == (30, 40, 3)
        ((hr, small),) = source.regions(index, [(3, 2, 9, 7)])
        np.testing.assert_array_equal(small, lr[2:7, 3:9])
        np.testing.assert_array_equal(hr, pair.hr[4:14, 6:18])
    assert (open_pairs(str(read_pairs), 2).pair(0).lr != source.pair(0).lr).any()
    elsewhere = open_pairs(f"{read_pairs}?lr={read_pairs / 'LR_bicubic' / 'X2'}", 2)
    assert elsewhere.lr_name(1) == source.lr_name(1)


def test_small_images_of_another_scale_are_refused_at_once(read_pairs):
    with pytest.raises(DataError, match="has no folder X4, but: X2.*Choose one of these scales"):
        open_pairs(f"{read_pairs}?lr=LR_bicubic", 4)
    (read_pairs / "LR_bicubic" / "X2").rename(read_pairs / "small")
    for name in ("0001", "0002"):
        (read_pairs / "small" / f"{name}x2.png").rename(read_pairs / "small" / f"{name}.png")
    with pytest.raises(
        DataError,
        match='small/0001.png" has 21 x 15 pixels, but ".*HR/0001.png" has 41 x 30 pixels, of which scale 4 makes '
        "10 x 7 pixels.*or choose scale 2, which they fit",
    ):
        open_pairs(f"{read_pairs}?lr=small", 4)
    Image.new("RGB", (5, 15)).save(read_pairs / "small" / "0001.png")
    with pytest.raises(DataError, match="Give the small images of these large ones"):
        open_pairs(f"{read_pairs}?lr=small", 2)


def test_names_that_match(caplog):
    assert match_names(["a.png", "s/b.jpg"], ["s/b.png", "a.png"], 4) == ["a.png", "s/b.png"]
    assert match_names(["0001.png"], ["0001x4.png", "0002x4.png"], 4) == ["0001x4.png"]
    assert "1 of 2 images in LR have no matching large image" in caplog.text
    assert match_names(["0001_s012.png"], ["0001x3_s012.png"], 3) == ["0001x3_s012.png"]
    assert match_names(["0001_s012.png"], ["0001_s012.png"], 3) == ["0001_s012.png"]
    assert match_names(["matrix4.png"], ["matrix4x4.png"], 4) == ["matrix4x4.png"]


@pytest.mark.parametrize(
    ("hr", "lr", "words"),
    [
        (["0001.png", "0002.png"], ["0001x4.png"], '1 of 2 images in "HR" have no small one in "LR".*"0002x4'),
        (["0001.png"], ["0001x2.png"], 'Did you mean "0001x2"'),
        (["t/0001.png"], ["0001.png"], "have no small one"),
        (["0001.png"], ["0001.png", "0001x4.png"], "has 2 small ones.*0001.png, 0001x4.png"),
        (["0001.png", "0001.jpg"], ["0001x4.png"], "belongs to several images"),
    ],
)
def test_names_that_do_not_match(hr, lr, words):
    with pytest.raises(DataError, match=words):
        match_names(hr, lr, 4)


def test_splits_have_folders_of_their_own(tmp_path, picture):
    root = tmp_path / "DIV2K"
    for where, count in (("DIV2K_train_HR", 3), ("DIV2K_valid_HR", 2), ("DIV2K_train_LR_bicubic/X2", 3)):
        (root / where).mkdir(parents=True)
        for i in range(count):
            lr = "LR" in where
            picture(8 if lr else 16, 8 if lr else 16, i).save(root / where / f"000{i}{'x2' if lr else ''}.png")
    assert len(open_pairs(str(root), 2)) == 3 and len(open_pairs(str(root), 2, split="val")) == 2
    assert open_pairs(f"{root}?lr=LR_bicubic", 2).lr_name(0).endswith("DIV2K_train_LR_bicubic/X2/0000x2.png")
    shutil.rmtree(root / "DIV2K_valid_HR")
    with pytest.raises(DataError, match='has "DIV2K_train_HR" but no "val"'):
        open_pairs(str(root), 2, split="val")
    shutil.move(root / "DIV2K_train_HR", root / "val")
    with pytest.raises(DataError, match='has "val" but no "train"'):
        open_pairs(str(root), 2)
    shutil.rmtree(root / "val")
    (root / "0001.png").write_bytes(b"")
    shutil.move(root / "DIV2K_train_LR_bicubic", root / "LR_bicubic")
    with pytest.raises(DataError, match="holds small images beside its large ones: .LR_bicubic/X2/0000x2"):
        open_pairs(str(root), 2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", 'The data folder "nowhere" does not exist'),
        ("set,nowhere", 'The data folder "nowhere" does not exist'),
        ("sett", 'Did you mean "set"'),
        ("empty", '"empty" holds no images'),
        ("file", '"file" is a file'),
        ("set?lr=smal", r'The folder of small images in "\?lr=smal" is not in "set"'),
        ("embedded:photo", 'Did you mean "embedded:photos"'),
        ("embedded:digits", 'Use "embedded:photos", or a folder'),
    ],
)
def test_a_source_that_is_not_there(images, tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=words):
        open_pairs(spec, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set,", "train"), "has an empty part"),
        (("", "train"), "has an empty part"),
        (("set?lr=", "train"), r'names no folder of small images after "\?lr="'),
        (("set", "vall"), 'split="vall" is not possible. Did you mean "val"'),
    ],
)
def test_a_mistyped_source(images, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        open_pairs(arguments[0], 4, split=arguments[1])


def test_a_comma_in_the_name_of_a_folder(images, tmp_path):
    images.rename(tmp_path / "cats, dogs")
    assert len(open_pairs(str(tmp_path / "cats, dogs"), 4)) == 4


def test_broken_images_have_no_size_and_are_named(images):
    bad = images / "b.jpg"
    bad.write_bytes(bad.read_bytes()[:-300])
    (images / "d.png").write_bytes(b"")
    source = open_pairs(str(images), 4)
    assert source.sizes().tolist() == [[16, 23], [25, 14], [20, 32], [-1, -1]]
    with pytest.raises(DataError, match=re.escape(str(bad))):
        source.pair(1)


def test_an_image_below_the_scale(images):
    source: PairSource = open_pairs(str(images), 16)
    assert source.sizes()[3].tolist() == [0, 2]
    with pytest.raises(DataError, match='d.png" has 40 x 9 pixels, less than 16 in a direction'):
        source.pair(3)


def layout(root, files, picture):
    """Writes {path: side of a square picture} below `root`."""
    for name, side in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(side, side, 1).save(root / name)


BASICSR = {"original/a.png": 26, "GTmod12/a.png": 24, "LRbicx2/a.png": 12, "LRbicx3/a.png": 8}
SELFEXSR = {
    f"image_SRF_{s}/a_SRF_{s}_{k}.png": 24 // (s if k == "LR" else 1) for s in (2, 3) for k in ("HR", "LR", "A+")
}
SMALL = ("Set5_LR", "DIV2K_train_LR_wild", "LR_bicubic_X2_sub", "x_LRBI_x3", "LQ", "LRx8")
RCAN = {f"HR/Set5/x{s}/a_HR_x{s}.png": 24 for s in (2, 3)}


@pytest.mark.parametrize(
    ("files", "spec", "hr", "lr"),
    [
        (BASICSR, "", "GTmod12/a.png", ""),
        (BASICSR, "?lr=LRbicx2", "GTmod12/a.png", "LRbicx2/a.png"),
        (BASICSR, "?lr=LRbic", "GTmod12/a.png", "LRbicx2/a.png"),
        (SELFEXSR, "", "image_SRF_2/a_SRF_2_HR.png", ""),
        (SELFEXSR, "?lr=.", "image_SRF_2/a_SRF_2_HR.png", "image_SRF_2/a_SRF_2_LR.png"),
        (SELFEXSR, "/image_SRF_3", "image_SRF_3/a_SRF_3_HR.png", ""),
        (RCAN, "", "HR/Set5/x2/a_HR_x2.png", ""),
        *(({f"{n}/a.png": 24}, f"/{n}", f"{n}/a.png", "") for n in ("data_lr1e-4", "lr_0.2", "LRCN", "results_LR/HR")),
        ({"results_LR/HR/a.png": 24}, "/results_LR", "results_LR/HR/a.png", ""),
        ({"a_HR.png": 24, "a_LR2.png": 12, "a_LR4.png": 6}, "", "a_HR.png", ""),
        ({"HR/a.png": 24, "X2/a.png": 12}, "?lr=X2", "HR/a.png", "X2/a.png"),
        ({"original/a.png": 24, "X4/a.png": 6}, "", "original/a.png", ""),
        ({"HR/x2/a.png": 24, "HR/x3/a.png": 24, "LR/x2/a.png": 12}, "", "HR/x2/a.png", ""),
        ({"HR/a.png": 24, "HR/b.png": 12}, "/HR", "HR/a.png HR/b.png", " "),
        ({"cats/a.png": 24, "dogs/a.png": 23}, "", "cats/a.png dogs/a.png", " "),
    ],
)
def test_layouts_of_the_field(tmp_path, picture, files, spec, hr, lr):
    layout(tmp_path, files, picture)
    source = open_pairs(f"{tmp_path}{spec}", 2, split="val")
    names = [(source.name(i), source.lr_name(i)) for i in range(len(source))]
    want = [(str(tmp_path / h), str(tmp_path / n) if n else "") for h, n in zip(hr.split(), lr.split(" "), strict=True)]
    assert names == want


@pytest.mark.parametrize(
    ("files", "spec", "words"),
    [
        ({"a.png": 24, "LRbicx2/a.png": 12}, "", "holds small images beside its large ones"),
        ({"a.png": 24, "ax2.png": 12}, "", 'holds small images beside its large ones: "ax2.png"'),
        ({"a.png": 24, "X4/a.png": 6}, "", "holds small images beside its large ones"),
        ({"LRbicx2/a.png": 12, "LRbicx3/a.png": 8}, "", "holds small images only"),
        ({"LRbicx2/a.png": 12}, "/LRbicx2", "is a folder of small images by its name.*rename it or move them .*/HR"),
        *(({f"{n}/a.png": 12}, f"/{n}", "small images by its name") for n in SMALL),
        ({"LR_bicubic/X2/a.png": 12}, "/LR_bicubic/X2", "is a folder of small images by its name"),
        ({"big/a.png": 24, "half/a.png": 12}, "", "one is 2 times as large as the other"),
        ({f"image_SRF_{s}/a_HR.png": 24 for s in (3, 4)}, "", "for the scales 3, 4, and none for 2"),
    ],
)
def test_layouts_that_do_not_tell_large_from_small(tmp_path, picture, files, spec, words):
    layout(tmp_path, files, picture)
    with pytest.raises(DataError, match=words):
        open_pairs(f"{tmp_path}{spec}", 2, split="val")
