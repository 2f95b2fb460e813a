"""File lists of a super-resolution data set: large images and the small image of each."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxkd.config.paths import user_path
from jaxkd.data.sources.folder import image_files, missing_folder
from jaxkd.data.sources.pair_layouts import large_images, refuse_small_folder, small_stems
from jaxkd.data.sources.photos import photo_files
from jaxkd.data.sources.registry import EMBEDDED, SPLITS
from jaxkd.errors import ConfigError, DataError, check_choice, did_you_mean, first_few

_LOG = logging.getLogger(__name__)

_LR = "?lr="
_DIV2K = {"train": "DIV2K_train_", "val": "DIV2K_valid_"}  # how its archives unpack
_SUB_IMAGE = re.compile(r"(.*)(_s\d{3,})")  # what subimages.py appends


class PairFiles(NamedTuple):
    """Paths of large images, and of the small image of each; "" where it is to be made from the large one."""

    hr: list[str]
    lr: list[str]


def find_pairs(spec: str | Sequence[str], scale: int, split: str) -> PairFiles:
    """The files that `spec` names; see `pairs.open_pairs`."""
    check_choice("split", split, SPLITS)
    found = PairFiles([], [])
    for one in _split_specs(spec):
        part = _embedded(one, split) if one.startswith(EMBEDDED) else _folder(one, scale, split)
        found.hr.extend(part.hr)
        found.lr.extend(part.lr)
    return found


def _split_specs(spec: str | Sequence[str]) -> list[str]:
    if isinstance(spec, str):  # a comma may be part of the name of a folder that is there
        spec = [spec] if user_path(spec.split(_LR)[0], "the data source").is_dir() else spec.split(",")
    specs = [one.strip() for one in spec]
    if not specs or not all(specs):
        raise ConfigError(
            f'The data source "{",".join(specs)}" has an empty part. Write several folders with one comma between '
            'them, for example "data/DIV2K_train_HR,data/Flickr2K_HR".'
        )
    return specs


def _embedded(spec: str, split: str) -> PairFiles:
    if spec != f"{EMBEDDED}photos":
        raise DataError(
            f'The data source "{spec}" does not exist.{did_you_mean(spec, [f"{EMBEDDED}photos"])} Use '
            f'"{EMBEDDED}photos", or a folder of images.'
        )
    files = photo_files(split)
    return PairFiles(files, [""] * len(files))


def _folder(spec: str, scale: int, split: str) -> PairFiles:
    name, _, lr_name = spec.partition(_LR)
    if _LR in spec and not lr_name:
        raise ConfigError(
            f'The data source "{spec}" names no folder of small images after "{_LR}". Write one, for example '
            f'"data/Set5{_LR}LR_bicubic", or leave the mark out to make them by bicubic downscaling.'
        )
    root = user_path(name, "the data source")
    if not root.is_dir():
        advice = f'Give a folder of large images, or "{EMBEDDED}photos" to try without data.'
        raise missing_folder(f'The data folder "{root}"', root, advice)
    folder = _hr_folder(root, split)
    refuse_small_folder(folder)
    folder, names = large_images(folder, image_files(folder), scale)
    if not names:
        raise DataError(f'"{folder}" holds no images. Give a folder of large PNG or JPEG files.')
    hr = [os.path.join(folder, n) for n in names]
    if not lr_name:
        return PairFiles(hr, [""] * len(hr))
    lr_folder = folder if lr_name == "." else _lr_folder(root, lr_name, scale, split)
    small = image_files(lr_folder)
    if lr_folder == folder:
        large = set(names)
        small = [n for n in small if n not in large]
    lr = match_names(names, small, scale, str(folder), str(lr_folder))
    return PairFiles(hr, [os.path.join(lr_folder, n) for n in lr])


def _hr_folder(root: Path, split: str) -> Path:
    own = (root / split / "HR", root / split, root / f"{_DIV2K[split]}HR")
    for folder in own:
        if folder.is_dir():
            return folder
    other = next(s for s in SPLITS if s != split)
    for folder in (root / other, root / f"{_DIV2K[other]}HR"):
        if folder.is_dir():
            raise DataError(
                f'The data folder "{root}" has "{folder.name}" but no "{split}". Make {own[1]}, or name the folder of '
                "images itself."
            )
    return root / "HR" if (root / "HR").is_dir() else root


def _lr_folder(root: Path, name: str, scale: int, split: str) -> Path:
    candidates = [root / split / name, root / f"{_DIV2K[split]}{name}", root / name, user_path(name, "the data source")]
    candidates += [root / f"{name}{x}{scale}" for x in "xX"]  # LRbic for LRbicx2
    folder = next((c for c in candidates if c.is_dir()), None)
    if folder is None:
        near = [p.name for p in root.iterdir() if p.is_dir()]
        raise DataError(
            f'The folder of small images in "{_LR}{name}" is not in "{root}", which has: '
            f"{first_few(sorted(near), 8) or 'no folders'}.{did_you_mean(name, near)} Correct the name, or leave it "
            "out to make small images by bicubic downscaling."
        )
    scales = {p.name.lower(): p for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"[xX]?\d+", p.name)}
    for key in (f"x{scale}", str(scale)):
        if key in scales:
            return scales[key]
    if scales:
        raise DataError(
            f'"{folder}" has no folder X{scale}, but: {", ".join(sorted(p.name for p in scales.values()))}. Choose one '
            f'of these scales, or leave "{_LR}{name}" out to make small images by bicubic downscaling.'
        )
    return folder


def match_names(hr: Sequence[str], lr: Sequence[str], scale: int, hr_folder: str = "HR", lr_folder: str = "LR") -> list:
    """The small image of each large one, by names: equal ones, or as DIV2K "0001.png" and "0001x4.png".

    Args:
      hr: paths of large images, relative to their folder; subfolders belong to the name, endings do not.
      lr: likewise of small ones.
      scale: the number in "x4". It may also stand before the number of a sub-image: "0001x4_s001.png".
      hr_folder: what errors call the folder of `hr`.
      lr_folder: what they call that of `lr`.

    Returns:
      The element of `lr` for each of `hr`. Those that belong to none are left out, and their number is logged.
    """
    small: dict[str, list[str]] = {}
    for name in lr:
        small.setdefault(os.path.splitext(name)[0], []).append(name)
    matched: list[str] = []
    missing: list[str] = []
    for name in hr:
        keys = _small_keys(os.path.splitext(name)[0], scale)
        found = [n for key in keys for n in small.get(key, ())]
        if len(found) > 1:
            raise DataError(
                f'The image "{name}" in "{hr_folder}" has {len(found)} small ones in "{lr_folder}": '
                f"{', '.join(found)}. Keep one of them."
            )
        matched += found
        missing += [] if found else [name]
    if missing:
        stem = os.path.splitext(missing[0])[0]
        raise DataError(
            f'{len(missing)} of {len(hr)} images in "{hr_folder}" have no small one in "{lr_folder}", the first is '
            f'"{missing[0]}".{did_you_mean(stem, small)} Add small images with the names "{stem}.*" or '
            f'"{stem}x{scale}.*", or remove the large ones.'
        )
    if len(set(matched)) < len(matched):
        twice = next(n for n, count in Counter(matched).items() if count > 1)
        raise DataError(
            f'The small image "{twice}" in "{lr_folder}" belongs to several images in "{hr_folder}" whose names differ '
            "only in the ending. Rename or remove one of them."
        )
    if len(lr) > len(matched):
        _LOG.warning("%d of %d images in %s have no matching large image", len(lr) - len(matched), len(lr), lr_folder)
    return matched


def _small_keys(stem: str, scale: int) -> list[str]:
    keys = [stem, f"{stem}x{scale}", f"{stem}X{scale}", *small_stems(stem)]
    part = _SUB_IMAGE.fullmatch(stem)
    if part:
        keys += [f"{part[1]}{x}{scale}{part[2]}" for x in "xX"]
    return keys
