"""Names of the commands, and how the user started the one that runs. Imports nothing of jaxkd."""

from __future__ import annotations

import sys
from pathlib import PurePath

# command -> (module below jaxkd, one line of `jaxkd --help`)
COMMANDS = {
    "train": ("main", "train what a config says; the same command continues a stopped run"),
    "evaluate": ("evaluate", "score a network on a validation split or on super-resolution sets"),
    "analyze": ("analyze", "spectra, entropy, ranks, SEP, similarity and saliency of features"),
    "upscale": ("upscale", "enlarge pictures by a super-resolution network"),
    "convert": ("convert", "write a network as safetensors, ONNX or StableHLO, or put it on the Hugging Face Hub"),
    "shards": ("shards", "put an image folder into few large files with checksums"),
    "subimages": ("subimages", "cut large images into overlapping ones for faster training"),
    "study": ("study", "train and compare a declared grid of runs, with intervals and tests"),
    "plan": ("plan", "memory, FLOPs and traffic of a train step on a machine that is not here"),
    "decode": ("decode", "retrieval, controls and sentences of an EEG run"),
    "report": ("report.__main__", "one page about one or several runs"),
    "doctor": ("doctor", "check this installation: versions, devices, caches, a short computation"),
}


def _starter() -> str:
    """ "jaxkd" or "python -m jaxkd" where a command was named after it; "" for `python -m jaxkd.evaluate` and tests."""
    program = PurePath(sys.argv[0])
    if program.stem == "jaxkd":
        return "jaxkd"
    return "python -m jaxkd" if program.parts[-2:] == ("jaxkd", "__main__.py") else ""


def program(name: str) -> str:
    """The words that start the command `name` as the user started this process: "jaxkd train"."""
    starter = _starter()
    module = "jaxkd." + COMMANDS[name][0].removesuffix(".__main__")
    return f"{starter} {name}" if starter else f"python -m {module}"


def error_prefix() -> str:
    """Beginning of an error message: "jaxkd train" where the user typed that, else "jaxkd"."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    return f"jaxkd {name}" if _starter() and name in COMMANDS else "jaxkd"
