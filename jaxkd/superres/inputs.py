"""Image files of paths, folders and patterns, and the paths of their results."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import features

from jaxkd.data.sources.folder import visible_files
from jaxkd.errors import ConfigError, DataError, did_you_mean
from jaxkd.superres.image_io import FORMATS, READ_ONLY, format_of

_MAGIC = "*?["
_OF_PICTURES = (*FORMATS, *READ_ONLY, ".heic", ".heif", ".jxl", ".psd", ".svg", ".exr", ".ico", ".pdf", ".eps")


@dataclass
class Sources:
    """Pictures of a command line.

    Attributes:
      files: path of a picture -> the folder that its result's path is relative to.
      one: whether a single file was named, so that the result may have a name of its own.
      others: ending -> how many files with it were met and are not read.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    one: bool = False
    others: Counter[str] = field(default_factory=Counter)


def readable_endings() -> tuple[str, ...]:
    """Endings of the files that are read."""
    return tuple(e for e in (*FORMATS, *READ_ONLY) if e != ".avif" or features.check("avif"))


def find_pictures(sources: Sequence[str]) -> Sources:
    """The pictures that `sources` name, sorted within each, each once.

    Args:
      sources: files; folders, whose subfolders count too; or patterns such as "photos/**/*.jpg", in which a folder
        whose own name has brackets may stand. In a folder and of a pattern's matches only files with a readable ending
        count, hidden files and folders do not, and a folder that links lead to twice counts once.
    """
    found, endings = Sources(), readable_endings()
    for source in sources:
        path = Path(source).expanduser()
        if os.path.isfile(path):
            found.files.setdefault(path, path.parent)
            found.one = len(sources) == 1
            continue
        files, root = _matches(source, path)
        pictures = [f for f in files if f.suffix.lower() in endings]
        others = Counter(f.suffix.lower() or "no ending" for f in files if f.suffix.lower() not in endings)
        if not pictures:
            instead = f" It has files of other kinds: {counted(others)}." if others else ""
            raise DataError(
                f'--in="{source}" {"holds" if os.path.isdir(path) else "matches"} no pictures.{instead} Files ending '
                f"in {', '.join(endings)} are read; check the path.{_bracket_hint(source)}"
            )
        found.others += others
        for picture in sorted(pictures):
            found.files.setdefault(picture, root)
    return found


def _matches(source: str, path: Path) -> tuple[list[Path], Path]:
    """All files of a folder or pattern, and the folder that they are relative to."""
    if os.path.isdir(path):
        return [Path(where, name) for where, names in visible_files(path) for name in names], path
    if not any(c in source for c in _MAGIC):
        near = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        raise DataError(
            f'--in="{source}" does not exist.{did_you_mean(path.name, near)} Give a picture, a folder of pictures, '
            "or a pattern in quotation marks."
        )
    parts = list(path.parts)
    root = Path(parts.pop(0)) if path.is_absolute() else Path()
    while len(parts) > 1 and (not any(c in parts[0] for c in _MAGIC) or os.path.isdir(root / parts[0])):
        root /= parts.pop(0)
    files: dict[tuple[str, str], Path] = {}
    for match in sorted(_expanded(parts, root)):
        file = root / match
        if os.path.isfile(file):
            files.setdefault((os.path.realpath(file.parent), file.name), file)
    return list(files.values()), root


def _expanded(parts: Sequence[str], root: Path) -> Iterator[str]:
    """Paths, relative to `root`, that a pattern of these parts matches.

    "**" stands for any number of folders. `glob` would follow links in it for ever where they lead in circles.
    """
    if "**" not in parts:
        yield from glob.iglob(os.path.join(*parts), root_dir=root)
        return
    first = parts.index("**")
    for start in glob.iglob(os.path.join(*parts[:first], ""), root_dir=root) if first else ("",):
        for where, names in visible_files(root / start):
            below = os.path.relpath(where, root / start)
            folders = () if below == os.curdir else tuple(below.split(os.sep))
            yield from (os.path.join(start, *folders, name) for name in names if _fits((*folders, name), parts[first:]))


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatch(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _bracket_hint(source: str) -> str:
    if "[" not in source:
        return ""
    return " In a pattern, [...] stands for one of the characters inside; write [[] for a bracket that is meant."


def counted(others: Counter[str]) -> str:
    """{".txt": 2, ".heic": 1} -> "2 .txt, 1 .heic"."""
    return ", ".join(f"{count} {ending}" for ending, count in others.most_common())


def place(found: Sources, out: str, *, ending: str = "") -> tuple[dict[Path, Path], Path]:
    """Paths of the results, and the folder of all of them.

    Args:
      found: the pictures.
      out: a folder; where one file was named, the result's own name is taken too, if it ends like a picture.
      ending: of the results, such as ".png"; "" keeps each file's own, and takes ".png" for those that are only read.

    Returns:
      {file: target}, without files that lie in `out` already (earlier results, below the folder that is read), and the
      folder.
    """
    folder = Path(out).expanduser()
    if folder.suffix.lower() in _OF_PICTURES and not os.path.isdir(folder):
        targets, folder = {next(iter(found.files)): _result_file(found, out, ending)}, folder.parent
    else:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError(f'--out="{out}" is a file. Name a folder for the results.')
        inside, targets = folder.resolve(), {}
        # Files that keep their ending first: "a.bmp" becomes "a.bmp.png" beside "a.png".
        for file, root in sorted(found.files.items(), key=lambda item: item[0].suffix.lower() not in FORMATS):
            below = inside != root.resolve() and inside.is_relative_to(root.resolve())
            if not (below and file.resolve().is_relative_to(inside)):
                target = folder / file.relative_to(root)
                if ending:
                    target = target.with_suffix(ending)
                elif target.suffix.lower() not in FORMATS:
                    other = target.with_suffix(".png")
                    target = target.with_name(f"{target.name}.png") if other in targets.values() else other
                targets[file] = target
        targets = {file: targets[file] for file in found.files if file in targets}
    seen: dict[Path, Path] = {}
    for file, target in targets.items():
        if target.resolve() == file.resolve():
            raise ConfigError(f'The result of "{file}" would replace the picture itself. Choose another --out.')
        if target in seen:
            advice = "Leave --format out" if ending else "Put a pattern into quotation marks so that subfolders stay"
            raise ConfigError(
                f'The results of "{seen[target]}" and "{file}" would both be "{target}". {advice}, or rename one of '
                "them."
            )
        seen[target] = file
    return targets, folder


def _result_file(found: Sources, out: str, ending: str) -> Path:
    """`out`, the name of one result."""
    target = Path(out).expanduser()
    kind = format_of(target)
    if not found.one:
        raise ConfigError(f'--out="{out}" is the name of one picture, and --in may name several. Name a folder.')
    if ending and kind != FORMATS[ending]:
        raise ConfigError(
            f'--out="{out}" and --format={ending[1:]} name different formats. Leave --format out, or change the name.'
        )
    return target


def make_folder(folder: Path) -> None:
    """Makes the folder of the results. Raises ConfigError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'--out="{folder}" cannot be made ({error.strerror or error}). Check the path and its permissions.'
        ) from None
