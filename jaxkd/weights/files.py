"""Exported files: written whole or not at all, and never over another file unasked."""

from __future__ import annotations

import os
from pathlib import Path

from jaxkd.errors import WeightSourceError


def checked_path(path: str | Path, ending: str, *, overwrite: bool) -> Path:
    """`path`, if a file of this format may be written there; asked before the work starts.

    Args:
      path: "~" means the home folder.
      ending: e.g. ".onnx".
      overwrite: replace a file that is there.

    Raises:
      WeightSourceError: another ending, a file that exists, or a folder.
    """
    path = Path(path).expanduser()
    if path.suffix != ending:
        raise WeightSourceError(
            f'"{path}" does not end in {ending}. The ending tells readers the format. Write e.g. '
            f'"{path.with_suffix(ending)}".'
        )
    if path.is_dir():
        raise WeightSourceError(f'"{path}" is a folder. The export is one file. Name a file in it.')
    if path.exists() and not overwrite:
        raise WeightSourceError(
            f'"{path}" exists already. Files are not overwritten unasked. Choose another name or pass overwrite=True '
            "(--overwrite)."
        )
    return path


def write_whole(path: Path, content: bytes) -> Path:
    """Writes `content` beside `path` and renames it, so that no reader sees half a file; makes the folder.

    Raises:
      WeightSourceError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WeightSourceError(
            f'"{path}" cannot be written ({error.strerror or error}). Nothing was changed. Free space, mend '
            "permissions or choose another folder."
        ) from None
    return path
