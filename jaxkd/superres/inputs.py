"""Image files of a path, folder or pattern, and the paths of their results."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from jaxkd.errors import ConfigError, DataError, did_you_mean
from jaxkd.superres.image_io import FORMATS

_MAGIC = "*?["


def find_pictures(source: str) -> tuple[list[Path], Path]:
    """The pictures that `source` names, sorted, and the folder that their paths are relative to.

    Args:
      source: a file; a folder, whose subfolders count too; or a pattern such as "photos/**/*.jpg". In a folder and of
        a pattern's matches only files with an ending of `FORMATS` count, and hidden ones do not.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        found = [Path(where) / name for where, _, names in os.walk(path, followlinks=True) for name in names]
        root = path
    elif any(c in source for c in _MAGIC):
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p)]
        first = next(i for i, part in enumerate(path.parts) if any(c in part for c in _MAGIC))
        root = Path(*path.parts[:first])
    else:
        near = os.listdir(path.parent) if path.parent.is_dir() else []
        raise DataError(
            f'--in="{source}" does not exist.{did_you_mean(path.name, near)} Give a picture, a folder of pictures, '
            "or a pattern in quotation marks."
        )
    found = sorted(p for p in found if p.suffix.lower() in FORMATS and not p.name.startswith("."))
    if not found:
        raise DataError(
            f'--in="{source}" {"holds" if path.is_dir() else "matches"} no pictures. Files ending in '
            f"{', '.join(FORMATS)} are read; check the path."
        )
    return found, root


def place(files: list[Path], root: Path, out: str, *, source: str, ending: str = "") -> tuple[dict[Path, Path], Path]:
    """Paths of the results, and the folder of all of them.

    Args:
      files, root: what `find_pictures` gave.
      out: a folder; where `source` is one file, the result's own name is taken too, if it ends like a picture.
      source: what was asked for.
      ending: of the results, such as ".png"; "" keeps each file's own.

    Returns:
      {file: target}, without files that lie in `out` already (earlier results, below the folder that is read), and the
      folder.
    """
    folder = Path(out).expanduser()
    if Path(source).expanduser().is_file() and folder.suffix.lower() in FORMATS and not folder.is_dir():
        if ending and FORMATS[folder.suffix.lower()] != FORMATS[ending]:
            raise ConfigError(
                f'--out="{out}" and --format={ending[1:]} name different formats. Leave --format out, or change the '
                "name."
            )
        targets = {files[0]: folder}
        folder = folder.parent
    else:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f'--out="{out}" is a file. Name a folder for the results.')
        inside = folder.resolve()
        if inside != root.resolve() and inside.is_relative_to(root.resolve()):
            files = [f for f in files if not f.resolve().is_relative_to(inside)]
        targets = {f: folder / f.relative_to(root) for f in files}
        targets = {f: t.with_suffix(ending) if ending else t for f, t in targets.items()}
    seen: dict[Path, Path] = {}
    for file, target in targets.items():
        if target.resolve() == file.resolve():
            raise ConfigError(f'The result of "{file}" would replace the picture itself. Choose another --out.')
        if target in seen:
            raise ConfigError(
                f'The results of "{seen[target]}" and "{file}" would both be "{target}". Leave --format '
                "out, or rename one of them."
            )
        seen[target] = file
    return targets, folder


def make_folder(folder: Path) -> None:
    """Makes the folder of the results. Raises ConfigError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'--out="{folder}" cannot be made ({error.strerror or error}). Check the path and its permissions.'
        ) from None
