"""State of an installation: versions against their bounds, extras, folders, disk and memory. Imports no JAX."""

from __future__ import annotations

import contextlib
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any


def requirements() -> dict[str, list[Any]]:
    """Extra -> its `packaging` requirements that count on this platform; those of the base installation under "".

    Raises:
      importlib.metadata.PackageNotFoundError: jaxkd runs from a folder and was never installed.
    """
    extras = metadata.metadata("jaxkd").get_all("Provides-Extra") or ()
    return {"": _required("jaxkd")} | {extra: _required("jaxkd", extra) for extra in extras}


def _required(package: str, extra: str = "") -> list[Any]:
    """Requirements of an installed package; with `extra`, only those that this extra adds."""
    from packaging.requirements import Requirement

    found = []
    for one in map(Requirement, metadata.requires(package) or ()):
        of_base = one.marker is None or one.marker.evaluate({"extra": ""})
        if not of_base if extra else of_base:
            found += [one] if not extra or one.marker.evaluate({"extra": extra}) else []
    return found


def version_of(package: str) -> str:
    """The installed version; "" where the package is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def shortcoming(requirement: Any) -> str:
    """ "jax is 0.9, and jaxkd needs >=0.10", "jax is missing", or "" where a requirement and its extras are met."""
    version = version_of(requirement.name)
    if not version:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, and jaxkd needs {requirement.specifier}"
    further = [one for extra in requirement.extras for one in _required(requirement.name, extra)]  # jax[cuda]
    return next((f"{one.name} is missing" for one in further if not version_of(one.name)), "")


def folder_facts(folder: Path | None, *, count: bool = True) -> dict[str, Any]:
    """Path, bytes that its files take (with `count`), free bytes of its disk, and whether it can be written or made."""
    if folder is None:
        return {"path": None, "bytes": 0, "free": 0, "writable": False}
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return {
        "path": str(folder),
        "bytes": _bytes_below(folder) if count else None,
        "free": shutil.disk_usage(there).free,
        "writable": os.access(there, os.W_OK | os.X_OK),
    }


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # other processes remove files meanwhile
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def free_memory() -> int | None:
    """Bytes that programs can still get, or None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        return int(text.split("MemAvailable:")[1].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
