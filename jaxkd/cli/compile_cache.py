"""Compiled programs kept between starts, by JAX's persistent compilation cache in the user's cache folder."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from jaxkd.config.paths import user_cache_folder

OPTION = "--no-compile-cache"
MOST_BYTES = 5 * 10**9  # of a folder; the programs that were used longest ago go first
LEAST_SECONDS = 0.0  # of compiling: a start compiles a hundred small programs, which together count
_FAILED = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '([^']*)': (.*)", re.DOTALL)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-compile-cache` to a command that compiles."""
    parser.add_argument(OPTION, action="store_true", help="neither keep nor load compiled programs")


def use_compile_cache(wanted: bool = True) -> None:
    """Lets JAX keep what it compiles in the user's cache folder and load it at the next start.

    JAX_COMPILATION_CACHE_DIR, if given, names the folder, which is then not limited in size. Several processes may
    share one. The processes of a distributed run keep nothing unless that variable is set: only the first of them
    writes, and where the others cannot read its folder they would compile alone what it does not. A folder that cannot
    be written is said on stderr; nothing that happens to it ends a command.

    Args:
      wanted: False turns the cache off, whatever the environment says.
    """
    # XLA's loader of programs for CPUs calls settings of the compiler missing instructions, once for each program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.jax_enable_compilation_cache:
        return
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        if jax.distributed.is_initialized():
            return
        folder, reason = default_folder(), "there is no home folder"
        if folder is not None:
            reason = _prepare(folder)
        if reason:
            _say(folder or "the user's cache folder", reason)
            return
        _set(jax_compilation_cache_dir=str(folder), jax_compilation_cache_max_size=MOST_BYTES)
    _set(jax_persistent_cache_min_compile_time_secs=LEAST_SECONDS)
    _watch_failures(Path(folder))


def default_folder() -> Path | None:
    """~/.cache/jaxkd/compiled/<processor>, or below XDG_CACHE_HOME; None where there is no home folder.

    A program for a CPU uses instructions that another processor may lack, so each type has a folder.
    """
    base = user_cache_folder()
    return None if base is None else base / "compiled" / _processor()


def _processor() -> str:
    """Name of a type of processor: equal where model and instruction sets are."""
    words = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        of_type = r"^(?:model name|cpu family|model|flags|Features|CPU \w+)\s*:.*$"
        words += re.findall(of_type, first, re.MULTILINE)
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}"


def _set(**settings: Any) -> None:
    """Sets options of JAX, except those that the environment sets."""
    import jax

    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _prepare(folder: Path) -> str:
    """Makes the folder and removes what a killed process or a full disk left in it; returns why not, or ""."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with filelock.FileLock(folder / ".lockfile", timeout=10):  # JAX's own
            # An entry is written before the time of its last use. JAX would fail at every entry without one.
            for entry in folder.glob("*-cache"):
                if not _used(entry).exists():
                    entry.unlink(missing_ok=True)
    except (OSError, NotImplementedError) as error:  # of a file system without locks
        return getattr(error, "strerror", None) or str(error)
    return ""


def _used(entry: Path) -> Path:
    """The file with the time of an entry's last use."""
    return entry.with_name(entry.name.removesuffix("-cache") + "-atime")


def _watch_failures(folder: Path) -> None:
    """Says the first failure of JAX to read or write an entry in one line, and none of the others.

    What cannot be read is removed: JAX compiles it, but would not replace a damaged entry.
    """
    show, said = warnings.showwarning, []

    def show_once(message: Warning | str, *args: Any, **options: Any) -> None:
        failed = _FAILED.match(str(message))
        if failed is None:
            return show(message, *args, **options)
        if "Error reading" in failed[0]:
            with contextlib.suppress(OSError):
                for entry in folder.glob(f"{failed[1]}-*-cache"):
                    entry.unlink(missing_ok=True)
                    _used(entry).unlink(missing_ok=True)
        if not said:
            said.append(failed)
            _say(folder, failed[2])

    warnings.showwarning = show_once


def _say(folder: Path | str, reason: str) -> None:
    print(
        f"jaxkd: compiled programs cannot be kept in or read from {folder} ({' '.join(reason.split())[:200]}), so some "
        f"are compiled again. JAX_COMPILATION_CACHE_DIR names another folder; {OPTION} uses none.",
        file=sys.stderr,
    )
