"""Checks this installation, and says what is wrong with it.

    jaxkd doctor
    jaxkd doctor --json > installation.json      (for a bug report)

Versions against the lowest that jaxkd works with, extras, devices, folders, disk and memory, and a computation of some
seconds: one step of distillation, and a loss against NumPy. Downloads nothing.
Exit code 0: all is well, perhaps with notes; 1: something does not work.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd import __version__
from jaxkd.cli import compile_cache, console, installation
from jaxkd.cli.commands import program
from jaxkd.cli.layout import fit
from jaxkd.config.packaged import recipes

LEAST_DISK, LEAST_MEMORY = 2 * 10**9, 2 * 10**9  # bytes below which a note is printed
TOLERANCE = {"cpu": 1e-4}  # of the loss against NumPy; other devices round the products of float32
OTHER_DEVICES = 1e-2


class Checkup:
    """Facts of the installation, printed as they are found, with the problems and notes about them."""

    def __init__(self, *, silent: bool):
        self.facts: dict[str, Any] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._silent = silent

    def say(self, title: str, text: str) -> None:
        """Prints a line of the report."""
        if not self._silent:
            print(fit(f"{title:<15}{text}"), flush=True)

    def packages(self) -> None:
        """Python, jaxkd, what every installation needs, and the extras."""
        self.facts["versions"] = {"python": platform.python_version(), "jaxkd": __version__}
        self.say("jaxkd", f"{__version__} in {Path(__file__).parent}")
        self.say("python", f"{platform.python_version()} on {platform.platform()}")
        recorded = installation.version_of("jaxkd")
        if not recorded:
            self.notes.append("jaxkd runs from its folder and is not installed, so no versions were compared.")
            return
        if recorded != __version__:
            self.notes.append(f"What is installed is called {recorded}. Repeat pip install (-e . in a source tree).")
        needed = installation.requirements()
        base = {one.name: installation.version_of(one.name) for one in needed.pop("")}
        self.facts["versions"] |= base
        self.say("packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in base.items()))
        self.problems += [s for s in map(installation.shortcoming, installation.requirements()[""]) if s]
        short = {extra: [s for s in map(installation.shortcoming, ones) if s] for extra, ones in needed.items()}
        self.facts["extras"] = {extra: not found for extra, found in short.items()}
        self.say("extras", ", ".join(extra for extra, found in short.items() if not found) or "none")
        self.notes += [f"Extra {e}: {s}." for e, found in short.items() for s in found if not s.endswith("missing")]
        if not recipes():
            self.problems.append("the recipes (package jaxkd_recipes) are missing")

    def machine(self) -> None:
        """Folders, disk and memory."""
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        folders = {
            "compile cache": Path(compiled) if compiled else compile_cache.default_folder(),
            "this folder": Path.cwd(),
        }
        with contextlib.suppress(ImportError):  # said with the packages
            from huggingface_hub.constants import HF_HUB_CACHE

            folders["hub cache"] = Path(HF_HUB_CACHE)
        for title, folder in folders.items():
            found = installation.folder_facts(folder, count=title != "this folder")
            self.facts[title.replace(" ", "_")] = found
            size = "" if found["bytes"] is None else f"{found['bytes'] / 1e6:,.0f} MB, "
            self.say(title, f"{found['path']}: {size}{found['free'] / 1e9:,.1f} GB free")
            if not found["writable"]:
                self.notes.append(f"The {title} {found['path'] or '(no home folder)'} cannot be written.")
            elif found["free"] < LEAST_DISK:
                self.notes.append(f"The disk of the {title} has {found['free'] / 1e9:.1f} GB left.")
        self.facts["free_memory"] = memory = installation.free_memory()
        if memory is not None:
            self.say("memory", f"{memory / 1e9:,.1f} GB available, {os.cpu_count()} cores")
            if memory < LEAST_MEMORY:
                self.notes.append(f"Only {memory / 1e9:.1f} GB of memory are available.")

    def devices(self, *, cached: bool) -> str:
        """Devices that JAX uses, with or without the compile cache; returns their platform, or "" without any."""
        try:
            compile_cache.use_compile_cache(cached)
            import jax

            found = jax.devices()
        except Exception as error:  # versions that do not fit each other fail in many ways, some on import
            said = " ".join(str(error).split())
            self.problems.append(f"JAX cannot be used or finds no device: {type(error).__name__}: {said}")
            return ""
        kinds = [device.device_kind for device in found]
        words = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
        limit = (found[0].memory_stats() or {}).get("bytes_limit")
        self.facts["devices"] = {"platform": found[0].platform, "kinds": kinds, "bytes_limit": limit}
        self.say("devices", f"{found[0].platform}: {', '.join(words)}{f', {limit / 1e9:.0f} GB each' if limit else ''}")
        unused = found[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS") and Path("/dev/nvidia0").exists()
        if unused:
            self.notes.append("An NVIDIA GPU is here and JAX does not use it. Run pip install 'jaxkd[cuda]'.")
        return found[0].platform

    def computation(self, where: str) -> None:
        """One step of distillation, and the spectral loss against NumPy."""
        from jaxkd.experiment import self_test

        begin = time.perf_counter()
        try:
            loss, difference = self_test.train_step()["loss"], self_test.spectral_difference()
        except Exception as error:  # whatever a broken installation raises is the finding
            self.problems.append(
                f"the short computation failed: {type(error).__name__}: {' '.join(str(error).split())}"
            )
            return
        seconds = time.perf_counter() - begin
        self.facts["computation"] = {"loss": loss, "spectral_difference": difference, "seconds": seconds}
        self.say("computation", f"loss {loss:.4f}, spectral loss within {difference:.1g} of NumPy ({seconds:.1f} s)")
        if not difference <= TOLERANCE.get(where, OTHER_DEVICES):
            self.problems.append(f"the spectral loss differs from NumPy's by {difference:.2g} of its value")


def _parser() -> console.Parser:
    parser = console.Parser(prog=program("doctor"), description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    compile_cache.add_option(parser)
    return parser


@console.command()
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0 all is well, 1 something does not work, 2 user error."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    checkup = Checkup(silent=args.json)
    checkup.packages()
    checkup.machine()
    # With a package missing or too old, anything below may fail in its own words.
    if not checkup.problems:
        console.quiet()
        where = checkup.devices(cached=not args.no_compile_cache)
        if where:
            checkup.computation(where)
    if args.json:
        console.print_json(checkup.facts | {"problems": checkup.problems, "notes": checkup.notes})
    else:
        print(*(fit(f"note: {note}") for note in checkup.notes), sep="\n", end="\n" * bool(checkup.notes))
        print(
            *(fit(f"PROBLEM: {problem}") for problem in checkup.problems), sep="\n", end="\n" * bool(checkup.problems)
        )
        print("jaxkd does not work here." if checkup.problems else "jaxkd works here.")
    return 1 if checkup.problems else 0


if __name__ == "__main__":
    sys.exit(main())
