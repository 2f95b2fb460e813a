"""`jaxkd.load`: a trained network from wherever it lies, with its name, its class names and its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from jaxkd import models, train, weights
from jaxkd.errors import ConfigError
from jaxkd.inference import network_args
from jaxkd.inference.class_names import output_names
from jaxkd.inference.exported import ENDINGS, load_exported
from jaxkd.inference.preprocessing import preprocessing_of

PyTree = Any


def load(
    source: str | Path,
    *,
    model: str = "",
    model_args: Mapping[str, Any] | None = None,
    variant: str = "",
    step: int | str = "",
    resize: bool = False,
    old_grid: tuple[int, int] | None = None,
    compute: str = "float32",
) -> tuple[Any, PyTree]:
    """A trained network and its variables.

        model, variables = jaxkd.load("runs/first_light/teacher", variant="ema")
        model, variables = jaxkd.load("timm/deit_tiny_patch16_224.fb_in1k")
        model, variables = jaxkd.load("deit.pth", model="deit_tiny_patch16_224", model_args={"num_classes": 10})
        logits, features = model.apply(variables, images, taps=("block_0",))   # (B, H, W, 3), normalised

    Args:
      source: work directory of a run, file or folder of weights, or Hugging Face id; see `weights.load`. Or an ONNX or
        StableHLO file of `jaxkd convert`: then the model is an `ExportedNetwork`, which has `apply`, but no taps, and
        the variables are {}.
      model: name of the network, one of `models.list_models()`. Work directories, files that `jaxkd convert` wrote,
        folders of transformers and ids of timm say which network they hold.
      model_args: constructor arguments; they replace those that the source records.
      variant: "raw" or "ema" weights, where the source holds both; "" takes the raw ones, of BasicSR's files the
        average.
      step: of a work directory: a number, "last" ("") or "best".
      resize: interpolate position embeddings and bias tables to the network's image size.
      old_grid: (rows, columns) of patches that the weights were made for, where the source does not say it.
      compute: type of the arithmetic, "float32" or "bfloat16".

    Returns:
      (model, variables). The model is the network of `models.create`, and has besides

      - `name`: registered name;
      - `class_names`: one for each output, by the labels of the run's data, ImageNet's words, or else "0", "1", ...;
        () where it does not classify;
      - `preprocessing`: a `Preprocessing`, a function of one photograph; None where it does not classify;
      - `origin`: which weights these are, for people.

      `model.clone(...)` gives a network without them. The variables are `{"params": ...}`, fp32.

    Raises:
      WeightSourceError, CheckpointError: the source is missing, damaged, or cannot be fetched.
      WeightMismatchError: the weights do not fit the network. UnknownNameError: no network has this name.
      ConfigError: the source does not name its network and `model` is empty, or an argument has a wrong value.
    """
    source, path = str(source), Path(source).expanduser()
    if path.suffix in ENDINGS and not path.is_dir():
        chosen = {"model": model, "model_args": model_args, "variant": variant, "step": step, "old_grid": old_grid}
        chosen |= {"resize": resize, "compute": compute if compute != "float32" else ""}
        given = [f"{name}={value!r}" for name, value in chosen.items() if value]
        if given:
            raise ConfigError(f'{", ".join(given)}, but "{source}" is an exported program as it is. Leave it out.')
        return load_exported(path), {}
    if compute not in weights.DTYPES:
        raise ConfigError(f'compute="{compute}" is no type of arithmetic. Use one of {", ".join(weights.DTYPES)}.')
    if model:
        models.spec(model)  # a wrong name, before anything is fetched
    if train.find_run(source) is None and not _holds_runs(source):
        weights.locate(source)
    grid = "x".join(map(str, old_grid)) if old_grid else None
    wanted = network_args.NetworkArgs(
        model, source, dict(model_args or {}), variant=variant, step=str(step), old_grid=grid
    )
    network = network_args.load(wanted, compute=compute, resize=resize)
    return _with_facts(network, of_run=train.find_run(source) is not None)


def _with_facts(network: weights.Network, *, of_run: bool) -> tuple[nn.Module, PyTree]:
    model = network.model.clone(name=network.spec.name)
    facts = {
        "class_names": output_names(network, of_run=of_run),
        "preprocessing": preprocessing_of(network),
        "origin": network.origin,
    }
    for name, value in facts.items():
        object.__setattr__(model, name, value)  # a linen module lets nobody set an attribute outside of `setup`
    return model, network.variables


def _holds_runs(source: str) -> bool:
    """Whether `source` is a folder of work directories, of which one is to be chosen."""
    return any(Path(source).expanduser().glob("*/config.json")) and not Path(source, "config.json").exists()
