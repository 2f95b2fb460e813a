"""Networks by name, and their weights from files, the Hugging Face Hub and work directories."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxkd import models
from jaxkd.errors import ConfigError, WeightMismatchError
from jaxkd.models import ModelSpec
from jaxkd.models.contract import size_pair
from jaxkd.models.eeg_words import EegWords
from jaxkd.train.checkpoint import find_run, load_run_weights
from jaxkd.train.run_folder import read_config
from jaxkd.weights import candidates, formats, readers
from jaxkd.weights.basicsr import from_basicsr, is_upscaler
from jaxkd.weights.file_facts import READOUT, FileFacts, log_unknown_readout, read_facts
from jaxkd.weights.hub import locate
from jaxkd.weights.timm import StateDict, from_timm, manifest, require_finite, to_timm

PyTree = Any
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Network:
    """A network, its preprocessing constants and, where it was given any, its weights.

    Attributes:
      model: the linen module.
      spec: mean, std, crop and interpolation, as the checkpoint's own.
      image_size: (height, width) that it takes.
      num_classes: outputs.
      variables: `{"params": ...}`, or None for random weights.
      origin: where the variables came from, for people.
      args: constructor arguments that it was built with.
      class_names: of the outputs, where the weights say so.
    """

    model: nn.Module
    spec: ModelSpec
    image_size: tuple[int, int]
    num_classes: int
    variables: PyTree | None
    origin: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()


def build_network(
    name: str,
    args: dict[str, Any],
    *,
    compute: str = "float32",
    remat: bool | str = False,
    scan_blocks: bool | str = False,
) -> Network:
    """Builds `name` with timm's constructor arguments (None: the default), without weights; see `load_weights`.

    Args:
      name: a name of the zoo, perhaps with a tag.
      args: constructor arguments.
      compute: "float32" or "bfloat16".
      remat: what the backward pass recomputes: False, True (each block), "attention" or "dots".
      scan_blocks: compute equal blocks in a loop; a word counts as True and stands in the error.

    Returns:
      A `Network` whose variables are None.

    Raises:
      UnknownNameError: no such network. ConfigError: an argument that it does not take.
    """
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items() if v is not None}
    named = dict(given)
    spec, accepted = models.spec(name), models.arguments(name)
    for field, key, value, default in (
        ("precision.compute", "dtype", compute, "float32"),
        ("precision.remat", "remat", remat, False),
        ("precision.scan_blocks", "scan_blocks", scan_blocks, False),
    ):
        if key in accepted:
            given[key] = DTYPES[str(value)] if key == "dtype" else bool(value) if key == "scan_blocks" else value
        elif value != default:
            raise ConfigError(
                f"{field}={value!r} is set, but {spec.name} has no argument {key}. Leave {field} at {default!r}, or "
                "add the argument to the network."
            )
    model = models.create(name, **given)
    num_classes = given.get("num_classes", spec.num_classes)
    # A network for any image size, such as those for super-resolution, has the size of its training patches only.
    size = getattr(model, "img_size", spec.input_size)
    return Network(model, spec, size_pair(size, "img_size"), int(num_classes), None, "random weights", named)


def load(
    model: nn.Module,
    source: str | Path,
    *,
    variant: str | None = None,
    step: str = "",
    resize: bool = False,
    old_grid: tuple[int, int] | None = None,
    new_head: bool = False,
    key: jax.Array | None = None,
    on_host: bool = False,
) -> PyTree:
    """Variables of `model` from a file, a folder, a work directory of jaxkd or the Hugging Face Hub.

    A path that exists always wins. Otherwise "owner/name" (also "hf-hub:owner/name" and "...@revision") is a Hub id,
    unless it is spelt like a path: with the ending of a file of weights, beginning with a dot, a slash or a tilde, or
    below a folder that exists. Files are in timm's format, one of those in `formats.py`, or BasicSR's
    (MDBN and EDSR), in any container and behind any prefix; what lies beside the network is left out and logged.

    Args:
      model: a network of `jaxkd.models`.
      source: `.safetensors`, its `.index.json`, `.npz`, with PyTorch also `.pth`, `.pt`, `.ckpt`, `.bin`, `.tar`; a
        folder that holds one; a work directory; or a Hub id such as "timm/cait_s24_224.fb_dist_in1k".
      variant: "raw" or "ema", where the source holds both; None takes the raw weights, of BasicSR's files (`params`,
        `params_ema`) the average, and logs it.
      step: which checkpoint of a work directory: a number, "last" (default) or "best".
      resize: interpolate position embeddings and relative-bias tables to the network's image size.
      old_grid: (rows, columns) of patches that a file was made for; None: as its metadata, its `config.json` or the
        work directory says, else a square where `resize` needs one.
      new_head: replace a classifier that is absent or of another size by one drawn with `key`; drop one that the
        network does not have.
      key: needed where `new_head` draws one.
      on_host: leave the arrays in NumPy, for weights that go to several devices: else the first one holds all of them.

    Returns:
      `{"params": ...}`, fp32 arrays of JAX, or of NumPy with `on_host`.

    Raises:
      WeightSourceError: the source is missing, damaged, cannot be fetched, lacks the variant, or holds NaN or infinity.
      WeightMismatchError: it does not fit the network; with a diff.
      CheckpointError: a work directory without what is asked for.
      ConfigError: another variant; a step of a file; `resize` or `new_head` for a network that has nothing of the kind.
    """
    fitting = {"resize": resize, "old_grid": old_grid, "new_head": new_head, "key": key, "on_host": on_host}
    return load_with_origin(model, source, variant=variant, step=step, **fitting)[0]


def load_with_origin(
    model: nn.Module, source: str | Path, *, variant: str | None = None, step: str = "", **fitting: Any
) -> tuple[PyTree, str]:
    """`load`, and in words what was loaded, e.g. `"net.pth" ("params_ema", the moving average of the weights)`.

    Args:
      model: see `load`, as for `source`, `variant` and `step`.
      source: a file, a folder, a work directory of jaxkd or a Hub id.
      variant: "raw", "ema" or None.
      step: of a work directory: a number, "last" or "best"; "": the last.
      **fitting: resize, old_grid, new_head, key and on_host of `load`.

    Returns:
      (variables, words for the log).

    Raises:
      WeightSourceError, WeightMismatchError, ConfigError: see `load`.
    """
    for option in ("resize", "old_grid", "new_head"):
        if isinstance(model, EegWords) and fitting.get(option):
            raise ConfigError(
                f"{option}={fitting[option]}, but {model.title} has no grid of patches and no classifier. Leave it out."
            )
        if is_upscaler(model) and fitting.get(option):
            raise ConfigError(
                f"{option}={fitting[option]}, but this {type(model).__name__} takes images of any size and has no "
                "classifier. Leave it out."
            )
    if source and find_run(source) is not None:
        return _load_run(model, source, variant, step, fitting)
    if step:
        raise ConfigError(
            f'step="{step}" was given, but "{source}" is not a work directory of jaxkd. Leave the step out.'
        )
    return _load_file(model, source, variant, fitting)


def _load_run(
    model: nn.Module, source: str | Path, variant: str | None, step: str, fitting: dict[str, Any]
) -> tuple[PyTree, str]:
    """`load_with_origin` of a work directory."""
    on_host = fitting.get("on_host", False)
    saved, config, origin = load_run_weights(source, variant=variant or None, step=step, on_host=on_host)
    subject = f"The network of {origin}"
    require_finite(flatten_dict(saved["params"], sep="/"), subject)
    trained = network_from_run(config).model
    if hasattr(trained, READOUT):
        FileFacts(args={READOUT: trained.readout}, origin="config.json").log_differences(model, subject)
    if _same_shapes(model, saved) and _grid(model) == _grid(trained):  # also of a network that timm does not have
        return saved, origin
    # Through the state dict, so that a run's weights obey the same checks, resizes and diffs as a file's.
    state = to_timm(trained, saved)
    return _from_state(
        model, state, subject, _made_for(_grid(trained), getattr(trained, "window_size", None), fitting)
    ), origin


def _load_file(
    model: nn.Module, source: str | Path, variant: str | None, fitting: dict[str, Any]
) -> tuple[PyTree, str]:
    """`load_with_origin` of a file, a folder or the Hub."""
    path = locate(source)
    content, facts = readers.read(path), read_facts(path)
    plain = model.clone(merged=False) if getattr(model, "merged", False) else model
    expected = {name: entry.shape for name, entry in manifest(plain).items()}
    chosen = candidates.choose(content, expected, variant or None, str(source))
    subject = f'The file "{path}"' if str(path) == str(source) else f'The file of "{source}" ("{path}")'
    origin = f'"{source}"'
    if chosen.description:
        subject, origin = f"{subject} ({chosen.description})", f"{origin} ({chosen.description})"
    if facts is not None:
        facts.log_differences(model, subject)
        if facts.grid and hasattr(model, "grid_size"):
            fitting = _made_for(facts.grid, facts.args.get("window_size"), fitting)
    state = candidates.require_numbers(chosen.state, expected, subject)
    try:
        variables = _from_state(model, state, subject, fitting)
        log_unknown_readout(facts, model, subject)
        return variables, origin
    except WeightMismatchError as error:
        hint = formats.unsupported(state)
        if not hint:
            raise
        first, *diff = str(error).split("\n", 1)
        raise WeightMismatchError("\n".join([f"{first} {hint}", *diff])) from None


def _from_state(model: nn.Module, state: StateDict, subject: str, fitting: dict[str, Any]) -> PyTree:
    if is_upscaler(model):
        variables = from_basicsr(model, state, origin=subject)  # small, so that they may pass through a device
        return jax.device_get(variables) if fitting.get("on_host") else variables
    return from_timm(model, state, origin=subject, **fitting)


def _made_for(grid: tuple[int, int] | None, window: Any, fitting: dict[str, Any]) -> dict[str, Any]:
    """`fitting` with the grid and window that the weights were made for, where it does not say another grid."""
    return {"old_grid": grid, "old_window": window} | {k: v for k, v in fitting.items() if v is not None}


def _grid(model: nn.Module) -> tuple[int, int] | None:
    return getattr(model, "grid_size", None)


def load_weights(network: Network, source: str, **options: Any) -> Network:
    """`network` with the variables that `source` holds; `options` and errors are those of `load`.

    Args:
      network: as `build_network` returns it.
      source: a file, a folder, a work directory of jaxkd or a Hub id.
      **options: of `load`: variant, step, resize, old_grid, new_head, key, on_host.

    Returns:
      A copy with variables, and with the words that say where they came from.
    """
    variables, origin = load_with_origin(network.model, source, **options)
    facts = None if find_run(source) else read_facts(Path(source).expanduser())
    if facts is not None:
        facts.log_other_colours(network.spec, origin)
    return replace(network, variables=variables, origin=source if origin == f'"{source}"' else origin)


def _same_shapes(model: nn.Module, variables: PyTree) -> bool:
    size = size_pair(getattr(model, "img_size", 8), "img_size")
    shape = getattr(model, "example_shape", (1, *size, getattr(model, "in_chans", 3)))
    expected = models.abstract_variables(model, shape)
    shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (expected, variables)]
    return shapes[0] == shapes[1]


def recorded_network(source: str) -> tuple[str, dict[str, Any]] | None:
    """The network that a source of weights records.

    Args:
      source: as in `load`.

    Returns:
      (name, constructor arguments) of a work directory or of a file of jaxkd; None for other sources, also for ids of
      the Hugging Face Hub, of which nothing is fetched.

    Raises:
      CheckpointError: see `train.read_config`.
    """
    run = find_run(source) if source else None
    if run is not None:
        student = read_config(run)["student"]
        return student["name"], {k: v for k, v in student["args"].items() if v is not None}
    path = Path(source).expanduser()
    facts = read_facts(path) if source and path.is_file() else None
    return (facts.model, facts.args) if facts is not None and facts.model else None


def network_from_run(config: dict[str, Any]) -> Network:
    """The student of a run by its resolved config (config.json), without weights.

    Args:
      config: content of the file as a dict.

    Returns:
      A `Network` whose variables are None.

    Raises:
      ConfigError: a field is missing, or the network cannot be built.
    """
    try:
        return build_network(config["student"]["name"], config["student"]["args"])
    except KeyError as error:
        raise ConfigError(
            f"config.json of the work directory has no field {error}. Use the version of jaxkd that wrote it."
        ) from None
