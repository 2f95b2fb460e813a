"""Facts about a network that stand in or beside its file of weights: name, arguments, grid, classes, preprocessing.

jaxkd writes them into the header of its own files (`to_metadata`); of Hugging Face transformers they are read from the
`config.json` and `preprocessor_config.json` beside the file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import linen as nn

from jaxkd.errors import WeightSourceError
from jaxkd.models import ModelSpec
from jaxkd.weights import readers

if TYPE_CHECKING:
    from jaxkd.weights.network import Network

_KEYS = ("model", "args", "grid", "class_names", "preprocessing")
_PREPROCESSING = ("mean", "std", "crop_pct", "interpolation")
# Arguments that change what a network computes and that no shape shows.
_INVISIBLE: tuple[str, ...] = ("num_heads", "norm_eps", "act_layer", "global_pool", "window_size", "no_embed_class")
_INVISIBLE += ("res_scale", "img_range", "rgb_mean", "global_skip")  # of super-resolution networks
READOUT = "readout"  # of a Lift
_INVISIBLE += (READOUT, "wide_heads")  # of Lift and WideLast

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileFacts:
    """Facts about the network of a file of weights; what is not known is empty.

    Attributes:
      model: registered name, perhaps with a tag.
      args: constructor arguments.
      grid: (rows, columns) of patches.
      class_names: in the order of the outputs.
      preprocessing: some of mean, std, crop_pct and interpolation.
      origin: where the facts stand.
    """

    model: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def apply(self, spec: ModelSpec) -> ModelSpec:
        """`spec` with the preprocessing of the file."""
        return dataclasses.replace(spec, **self.preprocessing)

    def log_differences(self, model: nn.Module, subject: str) -> None:
        """Warns of arguments that differ from the file's and that no shape shows."""
        for name in _INVISIBLE:
            mine = getattr(model, name, None)
            if name in self.args and mine is not None and not _equal(self.args[name], mine):
                _log.warning(
                    "%s was made with %s=%s (%s), and this network has %s=%s: its outputs will differ. Create it with "
                    "%s=%s (--model-arg=%s=%s) for the file's own.",
                    subject,
                    name,
                    self.args[name],
                    self.origin,
                    name,
                    mine,
                    name,
                    self.args[name],
                    name,
                    str(self.args[name]).replace(" ", ""),
                )

    def log_other_colours(self, spec: ModelSpec, subject: str) -> None:
        """Warns where images are normalised with another mean or standard deviation than the file's."""
        for name in ("mean", "std"):
            if name in self.preprocessing and not np.allclose(self.preprocessing[name], getattr(spec, name), atol=1e-4):
                _log.warning(
                    "%s was trained with %s=%s (%s), and %s normalises images with %s. Name the tag that the file "
                    "belongs to: models.create(NAME.TAG), --model=NAME.TAG.",
                    subject,
                    name,
                    self.preprocessing[name],
                    self.origin,
                    spec.name,
                    getattr(spec, name),
                )


def log_unknown_readout(facts: FileFacts | None, model: nn.Module, subject: str) -> None:
    """Warns where `model` is a Lift and the file does not say which tokens its classifier was trained on."""
    mine = getattr(model, READOUT, None)
    if mine is None or (facts is not None and READOUT in facts.args):
        return
    tokens = {"gap": "the mean of the lifted patch tokens", "cls": "the lifted class token"}
    other = next(name for name in tokens if name != mine)
    _log.warning(
        "%s does not say which readout its Lift was trained with. This network has readout=%s, %s; if that is wrong, "
        "its outputs are too: create it with readout=%s, %s (--model-arg=readout=%s, student.args.readout).",
        subject,
        mine,
        tokens[mine],
        other,
        tokens[other],
        other,
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, int | float) and isinstance(b, int | float) and math.isclose(a, b, rel_tol=1e-9)
    return (tuple(a) if isinstance(a, list) else a) == (tuple(b) if isinstance(b, list) else b)


def to_metadata(network: Network) -> dict[str, str]:
    """Texts for the header of a file, from which `read_facts` gives the same facts.

    Args:
      network: as `build_network` returns it.

    Returns:
      `{"jaxkd.model": ..., ...}`: name, arguments, classes and preprocessing.
    """
    model, spec = network.model, network.spec
    facts: dict[str, Any] = {
        "model": f"{spec.name}.{spec.tag}" if spec.tag else spec.name,
        "args": {
            k: v
            for k, v in network.args.items()
            if k not in ("dtype", "remat", "scan_blocks", "strip_pixels") and v is not None
        },
        "preprocessing": {name: getattr(spec, name) for name in _PREPROCESSING},
    }
    if spec.task == "classification":
        facts["args"] |= {
            name: getattr(model, name) for name in ("img_size", "num_classes", READOUT) if hasattr(model, name)
        }
    if network.class_names:
        facts["class_names"] = network.class_names
    return {f"jaxkd.{name}": json.dumps(value) for name, value in facts.items()} | grid_metadata(model)


def grid_metadata(model: nn.Module) -> dict[str, str]:
    """The grid of patches alone, as a part of `to_metadata`; nothing for a network without one."""
    return {"jaxkd.grid": json.dumps(model.grid_size)} if hasattr(model, "grid_size") else {}


def read_facts(path: Path) -> FileFacts | None:
    """Facts in or beside a file or folder of weights, or None where there are none.

    Args:
      path: a file, or a folder with weights; it need not exist.

    Returns:
      What the header of a safetensors file of jaxkd, or the `config.json` of transformers beside it, says.

    Raises:
      WeightSourceError: the facts are damaged.
    """
    if not path.exists() or (path.is_dir() and not readers.holds_weights(path)):
        return None
    texts = readers.read_metadata(path)
    if any(f"jaxkd.{name}" in texts for name in _KEYS):
        return facts_in(texts, path)
    folder = path if path.is_dir() else path.parent
    source = folder / "config.json"
    # One of timm's files, or of a run, may lie beside it too.
    if not source.is_file() or not readers.mentions(path, _TRANSFORMERS_NAME):
        return None
    config = _read_json(source)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        return None
    images = folder / "preprocessor_config.json"
    facts = _from_transformers(config, _read_json(images) if images.is_file() else {}, source)
    _log_use(source, path, facts.model)
    return facts


@cache  # a command reads the facts of one file several times
def _log_use(source: Path, path: Path, model: str) -> None:
    _log.warning(
        '"%s" says that "%s" is a %s, its arguments, its classes and its preprocessing, which were used where nothing '
        "else was asked for.",
        source,
        path,
        model,
    )


def facts_in(texts: Mapping[str, str], path: Path) -> FileFacts:
    """The facts of `to_metadata`; `path` is for errors."""

    def damaged(name: str) -> WeightSourceError:
        return WeightSourceError(
            f'The metadata of "{path}" is damaged: jaxkd.{name}={texts[f"jaxkd.{name}"]!r:.80} is not what jaxkd '
            "writes there. Write the file again with jaxkd convert."
        )

    values: dict[str, Any] = {}
    for name in _KEYS:
        if f"jaxkd.{name}" not in texts:
            continue
        try:
            values[name] = json.loads(texts[f"jaxkd.{name}"])
        except (ValueError, RecursionError):
            raise damaged(name) from None
        if not _CHECKS[name](values[name]):
            raise damaged(name)
    return FileFacts(
        model=values.get("model", ""),
        args={k: tuple(v) if isinstance(v, list) else v for k, v in values.get("args", {}).items()},
        grid=tuple(values["grid"]) if "grid" in values else None,
        class_names=tuple(values.get("class_names", ())),
        preprocessing={k: tuple(v) if isinstance(v, list) else v for k, v in values.get("preprocessing", {}).items()},
        origin="its metadata",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_preprocessing(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= set(_PREPROCESSING):
        return False
    colours = [value[k] for k in ("mean", "std") if k in value]
    return (
        all(isinstance(c, list) and len(c) and all(map(_is_number, c)) for c in colours)
        and all(s > 0 for s in value.get("std", ()))
        and (_is_number(value.get("crop_pct", 1)) and value.get("crop_pct", 1) > 0)
        and value.get("interpolation", "bicubic") in ("bicubic", "bilinear")
    )


_CHECKS = {
    "model": lambda v: isinstance(v, str) and v != "",
    "args": lambda v: isinstance(v, dict),
    "grid": lambda v: isinstance(v, list) and len(v) == 2 and all(type(n) is int and n > 0 for n in v),
    "class_names": lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    "preprocessing": _is_preprocessing,
}


# A name in every file of the networks of `_FAMILIES`, below any prefix.
_TRANSFORMERS_NAME = "embeddings.patch_embeddings.projection.weight"


def _read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      WeightSourceError: it is no such file.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        reason = f"it holds a {type(content).__name__} and no object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise WeightSourceError(
        f'"{path}" belongs to the weights beside it and cannot be read ({reason}). Fetch it again, or move it away and '
        "describe the network with --model and --model-arg."
    )


# model_type of transformers -> (name, its defaults of the arguments that config.json may leave out).
_VIT = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_base_patch16_224", {**_VIT, "layer_norm_eps": 1e-12}),
    "deit": ("deit_base_distilled_patch16_224", {**_VIT, "layer_norm_eps": 1e-12}),
    "dinov2": ("vit_base_patch14_dinov2", {**_VIT, "patch_size": 14, "layer_norm_eps": 1e-6}),
    "dinov2_with_registers": (
        "vit_base_patch14_reg4_dinov2",
        {**_VIT, "layer_norm_eps": 1e-6, "num_register_tokens": 4},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"image_size": 224, "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    ),
}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def _from_transformers(config: Mapping[str, Any], images: Mapping[str, Any], path: Path) -> FileFacts:
    """jaxkd's name and arguments of a network of transformers."""
    family = config["model_type"]
    name, defaults = _FAMILIES[family]
    config = defaults | dict(config)
    try:
        args = {
            "img_size": _pair(config["image_size"]),
            "patch_size": _pair(config["patch_size"]),
            "in_chans": config.get("num_channels", 3),
            "act_layer": _ACTIVATIONS[config.get("hidden_act", "gelu")],
            "qkv_bias": config.get("qkv_bias", True),
            "num_classes": _num_classes(config),
        }
        if family == "swin":
            args |= {key: tuple(config[key]) for key in ("depths", "num_heads")}
            args |= {"embed_dim": config["embed_dim"], "window_size": config.get("window_size", 7)}
            args["mlp_ratio"] = float(config.get("mlp_ratio", 4.0))
        else:
            width = config["hidden_size"]
            hidden = (
                config.get("intermediate_size", 3072) if "dino" not in family else width * config.get("mlp_ratio", 4)
            )
            args |= {
                "embed_dim": width,
                "depth": config["num_hidden_layers"],
                "num_heads": config["num_attention_heads"],
            }
            args |= {"mlp_ratio": hidden / width, "norm_eps": config["layer_norm_eps"]}
            if family == "dinov2_with_registers":
                args["reg_tokens"] = config["num_register_tokens"]
        grid = tuple(size // patch for size, patch in zip(args["img_size"], args["patch_size"], strict=True))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise WeightSourceError(
            f'"{path}" describes a {family} that jaxkd cannot build ({type(error).__name__}: {error}). Check its '
            "fields, or move it away and describe the network with --model and --model-arg."
        ) from None
    preprocessing: dict[str, Any] = {}
    for key, given in (("mean", images.get("image_mean")), ("std", images.get("image_std"))):
        if isinstance(given, list) and given and all(map(_is_number, given)):
            preprocessing[key] = tuple(map(float, given))
    if any(number <= 0 for number in preprocessing.get("std", ())):
        raise WeightSourceError(
            f'"{path.with_name("preprocessor_config.json")}" has image_std={images["image_std"]}, by which images '
            "cannot be divided. Fetch it again, or correct it to three numbers above 0."
        )
    resample = images.get("resample")
    if isinstance(resample, int) and resample in _RESAMPLING:
        preprocessing["interpolation"] = _RESAMPLING[resample]
    # Its labels are words for people, not the names of folders that a run of jaxkd records.
    return FileFacts(name, args, grid, (), preprocessing, origin=path.name)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return (int(height), int(width))


def _num_classes(config: Mapping[str, Any]) -> int:
    """Outputs of the classifier: transformers writes the labels only where they are not its two defaults."""
    if not any("ForImageClassification" in str(name) for name in config.get("architectures") or ()):
        return 0
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2))
