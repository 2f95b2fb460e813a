"""Files of `jaxkd convert` that hold a whole network, ONNX and StableHLO, as something that `jaxkd.predict` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import models
from jaxkd.errors import ConfigError, WeightSourceError
from jaxkd.inference.preprocessing import Preprocessing
from jaxkd.weights.exports import classifiers, stablehlo
from jaxkd.weights.exports.onnx import INPUT, require_package
from jaxkd.weights.file_facts import FileFacts, facts_in

ENDINGS = (".onnx", ".stablehlo")


@dataclass(frozen=True)
class ExportedNetwork:
    """A program with its weights inside; called like a network of `jaxkd.models`, it has no taps.

    Attributes:
      name: registered name of the network.
      class_names: of the outputs; () where it does not classify.
      preprocessing: of a classifier, else None.
      origin: the file.
      gives_probabilities: whether the file takes uint8 pixels and gives probabilities (`--with-preprocessing`).
      run: images -> outputs, both as the file has them but with channels last.
    """

    name: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    origin: str
    gives_probabilities: bool
    run: Callable[[np.ndarray], np.ndarray]

    def apply(self, variables: Any, images: np.ndarray, *, taps: Sequence[str] = ()) -> tuple[np.ndarray, dict]:
        """The outputs for images (B, H, W, 3), and no features; the variables are inside the file and not read here."""
        if taps:
            raise ConfigError(
                f'taps={tuple(taps)}, but "{self.origin}" is an exported program, which gives its outputs alone. Load '
                "the weights that it was made from."
            )
        return np.asarray(self.run(np.asarray(images))), {}


def load_exported(path: Path) -> ExportedNetwork:
    """The network of an ONNX or StableHLO file of `jaxkd convert`.

    Raises:
      WeightSourceError: the file is missing, damaged or of another program. ConfigError: a package is missing.
    """
    if not path.is_file():
        raise WeightSourceError(f'The file "{path}" does not exist. Give the path of a file that jaxkd convert wrote.')
    run, texts = (_onnx if path.suffix == ".onnx" else _stablehlo)(path)
    facts = facts_in(texts, path)
    if not facts.model:
        raise WeightSourceError(
            f'"{path}" does not say which network it holds, so jaxkd convert did not write it, or an early one did. '
            "Export it again, or run it with onnxruntime or jax.export."
        )
    pixels = texts.get(classifiers.OUTPUT_KEY) == classifiers.PROBABILITIES
    return ExportedNetwork(
        facts.model.partition(".")[0], facts.class_names, _preprocessing(facts), str(path), pixels, run
    )


def _preprocessing(facts: FileFacts) -> Preprocessing | None:
    spec = facts.apply(models.spec(facts.model))
    if spec.task != "classification":
        return None
    size = facts.args.get("img_size", spec.input_size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    return Preprocessing(size, spec.crop_pct, spec.interpolation, tuple(spec.mean), tuple(spec.std))


def _onnx(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    require_package("onnxruntime", "ONNX")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each reason
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightSourceError(
            f'"{path}" is no ONNX file that onnxruntime runs ({reason}). Export it again.'
        ) from None

    def run(images: np.ndarray) -> np.ndarray:
        output = session.run(None, {INPUT: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0]
        return output.transpose(0, 2, 3, 1) if output.ndim == 4 else output

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _stablehlo(path: Path) -> tuple[Callable[[Any], Any], dict[str, str]]:
    return stablehlo.load_stablehlo(path), stablehlo.read_metadata(path)
