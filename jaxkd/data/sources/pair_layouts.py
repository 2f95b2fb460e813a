"""Layouts of published super-resolution sets: which files of a folder are large images and which are small ones.

| set or code                  | large images                        | small images
| ---------------------------- | ----------------------------------- | -----------------------------------------
| DIV2K, EDSR, SwinIR          | `HR/`, `DIV2K_train_HR/`            | `LR_bicubic/X2/0001x2.png`
| BasicSR                      | `GTmod12/`, else `original/`        | `LRbicx2/`
| SelfExSR                     | `image_SRF_2/img_001_SRF_2_HR.png`  | `image_SRF_2/img_001_SRF_2_LR.png`
| RealSR, RCAN                 | `Canon_001_HR.png`, `x2/a_HR_x2.png`| `Canon_001_LR2.png`, `x2/a_LRBI_x2.png`

A small image that is taken for a large one gives scores of another task without any sign of it. So what the names leave
open is refused.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from jaxkd.errors import DataError

_LOG = logging.getLogger(__name__)
_LARGE = re.compile(r"(?:^|[_\-. ])(?:HR|GT)(?:$|[_\-. ]|mod\d+|x?\d)|^originals?$|^high[_-]?res", re.IGNORECASE)
_SMALL = re.compile(r"(?:^|[_\-. ])(?:LR|LQ)(?:$|[_\-. ]|bi|bd|dn|x?\d)|^low[_-]?res", re.IGNORECASE)
_SMALL_FOLDER = re.compile(  # "Set5_LR", "LRbicx2", "DIV2K_train_LR_wild"; not a learning rate ("data_lr1e-4")
    r"(?:^|[_\-. ])(?:LR|LQ)(?:[_\-. ]?(?:bic|bicubic|bi|bd|dn|mild|wild|difficult|unknown))?(?:[_\-. ]?x?[2348])?"
    r"(?:[_\-. ]sub)?$|^low[_-]?res",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"(.+)[_\-](HR|GT|LR|LQ|LRBI|LRBD|LRDN)(?:[_\-]?x?\d+)?", re.IGNORECASE)  # of a file's stem
_SCALE = re.compile(r"(?:^|[_\-])(?:x|SRF_)(\d+)$", re.IGNORECASE)
_FOLLOWED_BY_SCALE = re.compile(r"(.+?)_?[xX]\d+")
_PREFERRED = ("gtmod12", "hr", "gt", "original")  # of several folders with the same large images
_CHECKED = 50  # pairs of files of one name whose sizes are compared


def large_images(folder: Path, names: Sequence[str], scale: int) -> tuple[Path, list[str]]:
    """The large images among all images of a folder.

    Args:
      folder: what was named.
      names: paths of its images, relative to it.
      scale: that is scored or trained; where a set has large images for each scale, those of another are left out.

    Returns:
      The folder below `folder` that holds all of them, where its name marks them, and their paths relative to it.

    Raises:
      DataError: the names do not tell large images from small ones, or there are only small ones.
    """
    stems = {os.path.splitext(n)[0] for n in names}
    marked = any(_LARGE.search(part) for part in folder.absolute().parts[-2:])
    kinds = {n: _kind(n, stems, marked) for n in names}
    small = [n for n in names if kinds[n] == "small"]
    large = [n for n in names if kinds[n] == "large"]
    plain = [n for n in names if not kinds[n]]
    if small and large:  # results of published methods lie beside the images that they belong to
        prefixes = {found[1] for n in large if (found := _SUFFIX.fullmatch(os.path.splitext(n)[0]))}
        plain = [n for n in plain if not any(n.startswith(p) for p in prefixes)]
    if small and (plain or not large):
        beside = "beside its large ones" if plain or large else "only"
        raise DataError(
            f'"{folder}" holds small images {beside}: "{small[0]}". Put the large ones into '
            f"{folder}{os.sep}HR, or name their folder."
        )
    chosen = _of_scale(folder, _preferred(large), scale) if large and not plain else [*names]
    if len(chosen) < len(names):
        _LOG.warning(
            '"%s": %d of %d images are large ones, the first is "%s"', folder, len(chosen), len(names), chosen[0]
        )
    _check_sizes(folder, chosen)
    parts = os.path.commonpath([os.path.dirname(n) for n in chosen]).split(os.sep) if chosen else [""]
    if any(_LARGE.search(p) or _SCALE.search(p) for p in parts):
        inside = os.path.join(*parts)
        return folder / inside, [os.path.relpath(n, inside) for n in chosen]
    return folder, chosen


def refuse_small_folder(folder: Path) -> None:
    """Raises DataError for a folder that is named as one of small images, such as LRbicx2 or LR_bicubic/X4."""
    name, above = folder.name, folder.absolute().parent.name
    small = _SMALL_FOLDER.search(name) and not _LARGE.search(name)
    if small or (_SCALE.fullmatch(name) and _SMALL_FOLDER.search(above)):
        raise DataError(
            f'"{folder}" is a folder of small images by its name, and large ones are needed. Name the folder of the '
            f'large images; add "?lr={name}" to read the small ones from here. If it holds the large images, rename it '
            f"or move them into {folder}{os.sep}HR."
        )


def small_stems(stem: str) -> list[str]:
    """Stems that the small image of a large one may have, e.g. "a_LR" for "a_HR"."""
    found = re.fullmatch(r"(.+[_\-])(HR|GT)((?:[_\-]?x?\d+)?)", stem, re.IGNORECASE)
    if not found:
        return []
    kinds = ("LR", "LQ", "LRBI", "LRBD", "LRDN")
    return [found[1] + (k if found[2].isupper() else k.lower()) + found[3] for k in kinds]


def _kind(name: str, stems: set[str], marked: bool) -> str:
    """ "large", "small" or "" where the name does not say."""
    stem = os.path.splitext(name)[0]
    folders, file = stem.split(os.sep)[:-1], stem.split(os.sep)[-1]
    suffix = _SUFFIX.fullmatch(file)
    if suffix:
        return "large" if suffix[2].upper() in ("HR", "GT") else "small"
    for part in reversed(folders):
        if _LARGE.search(part):
            return "large"
        if _SMALL.search(part):
            return "small"
    followed = _FOLLOWED_BY_SCALE.fullmatch(stem)
    if followed and followed[1] in stems:
        return "small"
    if marked:  # the folder that was named is one of large images
        return "large"
    return "small" if any(re.fullmatch(r"[xX]\d+", p) for p in folders) else ""


def _preferred(names: list[str]) -> list[str]:
    """Without folders that hold the same large images as another beside them: GTmod12, then HR, GT, original."""
    siblings: dict[str, set[str]] = {}
    marked: dict[str, tuple[str, str]] = {}
    for name in names:
        parts = name.split(os.sep)
        at = next((i for i, p in enumerate(parts[:-1]) if _LARGE.search(p)), None)
        if at is not None:
            marked[name] = (os.sep.join(parts[:at]), parts[at])
            siblings.setdefault(marked[name][0], set()).add(parts[at])
    best = {
        parent: min(found, key=lambda f: (_PREFERRED.index(f.lower()) if f.lower() in _PREFERRED else 9, f))
        for parent, found in siblings.items()
        if any(f.lower() in _PREFERRED for f in found)
    }
    return [n for n in names if n not in marked or best.get(marked[n][0], marked[n][1]) == marked[n][1]]


def _of_scale(folder: Path, names: list[str], scale: int) -> list[str]:
    """Without large images that were cut for another scale."""
    scales = {n: {int(f[1]) for p in os.path.splitext(n)[0].split(os.sep) if (f := _SCALE.search(p))} for n in names}
    found = set().union(*scales.values())
    if len(found) < 2:
        return names
    if scale not in found:
        raise DataError(
            f'"{folder}" holds large images for the scales {", ".join(map(str, sorted(found)))}, and none for {scale}. '
            "Name the folder of one scale."
        )
    return [n for n in names if not scales[n] or scale in scales[n]]


def _check_sizes(folder: Path, names: list[str]) -> None:
    """Raises DataError where files of one name in several folders have sizes of which one is a multiple."""
    first: dict[str, str] = {}
    left = _CHECKED
    for name in names:
        other = first.setdefault(os.path.splitext(os.path.basename(name))[0], name)
        if other == name or not left:
            continue
        left -= 1
        try:
            sizes = sorted(Image.open(folder / n).size for n in (name, other))
        except Exception:  # a damaged file is named when it is read
            continue
        (w, h), (wide, high) = sizes
        ratio = round(wide / max(w, 1))
        if ratio > 1 and abs(wide - ratio * w) < ratio and abs(high - ratio * h) < ratio:
            raise DataError(
                f'"{folder}" holds "{name}" and "{other}", of which one is {ratio} times as large as the other. Name '
                "the folder of the large images."
            )
