"""The starts of a run: when, by which command, on which machine and with which versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxkd import __version__
from jaxkd.data.files import write_atomic

FILE = "environment.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow")
MOST_STARTS = 200  # of a run that is requeued; the first and the newest are kept


def command_line() -> str:
    """The command of this process in the words of a person: `jaxkd ...`, `python -m jaxkd.main ...` or as it stands."""
    program, *rest = sys.argv or [""]
    path = Path(program)
    if path.name == "jaxkd":
        return shlex.join(["jaxkd", *rest])
    if path.suffix == ".py" and path.parent.name == "jaxkd":
        module = f"jaxkd.{path.stem}".removesuffix(".__main__")
        return shlex.join(["python", "-m", module, *rest])
    return shlex.join([program, *rest])


def start_lines(workdir: Path) -> tuple[str, str]:
    """First lines of a start in `log.txt`."""
    checkpoints = any((workdir / "checkpoints").glob("[0-9]*"))
    return (
        f"==== {'continued' if checkpoints else 'started'}: {command_line()}",
        f"jaxkd {__version__} on {socket.gethostname()}, in {os.getcwd()}",
    )


def this_start(*, continues_after: int | None = None, total_steps: int | None = None) -> dict[str, Any]:
    """Facts of this process and its machine, as `environment.json` holds them."""
    versions = {"jaxkd": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command_line(),
        "folder": os.getcwd(),
        "continues_after": continues_after,
        "total_steps": total_steps,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def record_start(workdir: Path, *, continues_after: int | None = None, total_steps: int | None = None) -> None:
    """Adds this start to `workdir/environment.json`: `{"starts": [...]}`, oldest first.

    Raises:
      OSError: the disk refuses it.
    """
    path = workdir / FILE
    try:
        starts = json.loads(path.read_bytes())["starts"]
        starts = starts if isinstance(starts, list) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged, or none
        starts = []
    starts.append(this_start(continues_after=continues_after, total_steps=total_steps))
    if len(starts) > MOST_STARTS:
        del starts[1 : len(starts) - MOST_STARTS + 1]
    write_atomic(path, json.dumps({"starts": starts}, indent=1))
