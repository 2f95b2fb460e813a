"""A folder as the Hugging Face Hub keeps a network: weights, `config.json` of timm, and a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxkd import models, train, weights
from jaxkd.data.files import write_atomic
from jaxkd.errors import StorageError, WeightSourceError
from jaxkd.inference.class_names import output_names
from jaxkd.inference.model_card import model_card

WEIGHTS, CONFIG, CARD, RUN = "model.safetensors", "config.json", "README.md", "training_config.json"
# Arguments of jaxkd's networks that say how they compute, or that timm spells otherwise.
_NOT_TIMM = ("dtype", "remat", "scan_blocks", "num_classes", "img_size")
_UNKNOWN_TO_TIMM = ("norm_eps", "act_layer")  # which change the outputs: a network with one is no network of timm

_FOLDERS = re.compile(r"""(?<![\w./])(?:/|~/)(?:[^\s"'/]+/)*(?=[^\s"'/])""")


def write_folder(
    network: weights.Network, folder: str | Path, *, source: str, repository: str = "", overwrite: bool = False
) -> list[Path]:
    """Writes what the Hub needs of a network: `model.safetensors`, `config.json` and `README.md`.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` and `jaxkd.load("FOLDER")` read it. Where the source is a
    work directory, `training_config.json` holds the resolved config of its run.

    Args:
      network: with its variables.
      folder: made where it is missing.
      source: the work directory, file or id that it was loaded from.
      repository: "USER/NAME" in the card; "" writes the folder's name there.
      overwrite: replace files that are there.

    Returns:
      The files.

    Raises:
      WeightSourceError: a file is there already, or the folder is a work directory.
      StorageError: the folder cannot be written.
    """
    folder, run = Path(folder).expanduser(), train.find_run(source)
    if train.find_run(folder) is not None:
        raise WeightSourceError(
            f'"{folder}" is the work directory of a run, whose {CONFIG} would be lost. Choose another folder.'
        )
    network = replace(network, origin=without_folders(network.origin))
    texts = {CONFIG: json.dumps(timm_config(network, of_run=run is not None), indent=2) + "\n"}
    facts = _run_facts(run) if run is not None else {}
    if run is not None:
        texts[RUN] = json.dumps(facts["config"], indent=2, default=str) + "\n"
    texts[CARD] = model_card(network, repository or folder.name, is_timm=is_timm(network), **facts)
    there = [name for name in (WEIGHTS, *texts) if (folder / name).exists()]
    if there and not overwrite:
        raise WeightSourceError(
            f'"{folder}" holds {", ".join(there)} already. Choose another folder or pass overwrite=True (--overwrite).'
        )
    about = {"model": network.spec.name, "weights": network.origin}
    metadata = about | weights.to_metadata(network)
    weights.save_safetensors(folder / WEIGHTS, network.model, network.variables, metadata, overwrite=True)
    for name, text in texts.items():
        try:
            write_atomic(folder / name, text.encode())
        except OSError as error:
            raise StorageError(
                f'"{folder / name}" cannot be written ({error.strerror or error}). Free space, repair permissions or '
                "choose another folder."
            ) from None
    return [folder / WEIGHTS, *(folder / name for name in texts)]


def is_timm(network: weights.Network) -> bool:
    """Whether timm has this network, so that its `create_model` reads the folder."""
    return bool(models.spec(network.spec.name).tag) and not any(network.args.get(k) for k in _UNKNOWN_TO_TIMM)


def timm_call(network: weights.Network, file: str | Path) -> str | None:
    """The call of `timm.create_model` that makes this network with the weights of `file`; None where timm has it not.

    Args:
      network: a network; its arguments are written as timm's.
      file: its safetensors.
    """
    if not is_timm(network) or network.spec.task != "classification":
        return None
    args = {"num_classes": network.num_classes, **_timm_args(network), "checkpoint_path": str(file)}
    shown = [f"{k}={json.dumps(v) if isinstance(v, str) else repr(v)}" for k, v in args.items()]
    return f"timm.create_model({', '.join([json.dumps(network.spec.name), *shown])})"


def _timm_args(network: weights.Network) -> dict[str, Any]:
    """Arguments of a classifier as timm spells them, without the number of classes."""
    args = {k: v for k, v in network.args.items() if k not in _NOT_TIMM and v is not None}
    if tuple(network.image_size) != tuple(models.spec(network.spec.name).input_size):
        args["img_size"] = network.image_size
    return args


def timm_config(network: weights.Network, *, of_run: bool) -> dict[str, Any]:
    """`config.json` in the form of timm 1.0; of a network that timm does not have, with `library_name` jaxkd.

    Args:
      network: a network; its arguments are written as timm's.
      of_run: see `output_names`.
    """
    spec, model = network.spec, network.model
    if spec.task != "classification":
        args = {k: v for k, v in network.args.items() if k not in _NOT_TIMM and v is not None}
        return {"architecture": spec.name, "library_name": "jaxkd", "model_args": args}
    names = output_names(network, of_run=of_run)
    heads = ["head", "head_dist"] if getattr(model, "distillation_token", False) else "head"
    config: dict[str, Any] = {
        "architecture": spec.name,
        "num_classes": network.num_classes,
        "num_features": getattr(model, "embed_dim", None),
        "global_pool": getattr(model, "global_pool", None),
        "model_args": _timm_args(network),
        "pretrained_cfg": {
            "tag": "jaxkd",
            "custom_load": False,
            "input_size": [getattr(model, "in_chans", 3), *network.image_size],
            "fixed_input_size": True,
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": network.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
    }
    if not is_timm(network):
        config["library_name"] = "jaxkd"
    if names and names != tuple(map(str, range(len(names)))):
        config["label_names"] = list(names)
    return {k: v for k, v in config.items() if v is not None}


def _run_facts(run: Path) -> Mapping[str, Any]:
    """The config and the result of a run; {} as the result of one that has not finished."""
    try:
        result = json.loads((run / "result.json").read_bytes())
    except (OSError, ValueError):
        result = {}
    config = without_folders(train.read_config(run))
    return {"config": config, "result": result if isinstance(result, dict) else {}}


def without_folders(value: Any) -> Any:
    """`value` with absolute paths cut down to their last part, so that nothing of this machine is published."""
    if isinstance(value, Mapping):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value
