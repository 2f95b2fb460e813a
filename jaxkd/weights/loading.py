"""From the name of a source to the variables of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.models import list_models
from jaxkd.weights import formats, hub, readers
from jaxkd.weights.basicsr import from_basicsr, is_upscaler
from jaxkd.weights.timm import from_timm

PyTree = Any


def load(
    model: nn.Module,
    source: str | Path,
    *,
    variant: str | None = None,
    resize: bool = False,
    new_head: bool = False,
    key: jax.Array | None = None,
) -> PyTree:
    """Variables of `model` from a file, a folder or the Hugging Face Hub.

    A path that exists always wins. Otherwise "owner/name" (also "hf-hub:owner/name" and "...@revision") is a Hub id,
    unless it is spelt like a path: with the ending of a file of weights, beginning with a dot, a slash or a tilde, or
    below a folder that exists. What is loaded is timm's format or one of the dialects in `dialects.py`, for MDBN and
    EDSR BasicSR's.

    Args:
      model: a network of `jaxkd.models`.
      source: `.safetensors`, its `.index.json`, `.npz`, with PyTorch also `.pth`, `.pt`, `.bin`, `.tar`; a folder that
        holds one; or a Hub id such as "timm/cait_s24_224.fb_dist_in1k".
      variant: "raw" or "ema" of a training checkpoint that holds both; None takes the raw ones, of BasicSR's files
        (`params`, `params_ema`) the average, and logs it.
      resize: interpolate position embeddings and relative-bias tables to the network's image size.
      new_head: replace a classifier that is absent or of another size by one drawn with `key`; drop one that the
        network does not have.
      key: needed where `new_head` draws one.

    Returns:
      `{"params": ...}`, fp32.

    Raises:
      WeightSourceError: the source is missing, damaged, cannot be fetched or lacks the variant.
      WeightMismatchError: it does not fit the network; with a diff.
      ConfigError: another variant; `resize` or `new_head` for a network that has nothing of the kind.
    """
    options = {"resize": resize, "new_head": new_head, "key": key}
    return load_with_origin(model, source, variant=variant, **options)[0]


def load_with_origin(
    model: nn.Module,
    source: str | Path,
    *,
    variant: str | None = None,
    resize: bool = False,
    new_head: bool = False,
    key: jax.Array | None = None,
) -> tuple[PyTree, str]:
    """`load`, and in words what was loaded, e.g. `"net.pth" ("params_ema", the moving average of the weights)`.

    Args, Raises: see `load`.
    """
    if is_upscaler(model) and (resize or new_head):
        raise ConfigError(
            f"{'resize' if resize else 'new_head'}=True, but this {type(model).__name__} takes images of any size and "
            "has no classifier. There is nothing to resize or replace. Leave it out."
        )
    path = locate(source)
    state, which = formats.choose_named(readers.read(path), variant, str(source))
    file = f'The file "{path}"' if str(path) == str(source) else f'The file of "{source}" ("{path}")'
    state, origin = formats.to_timm_names(state), f"{file} ({which})" if which else file
    try:
        if is_upscaler(model):
            variables = from_basicsr(model, state, origin=origin)
        else:
            variables = from_timm(model, state, resize=resize, new_head=new_head, key=key, origin=origin)
    except WeightMismatchError as error:
        hint = formats.foreign(state)
        if not hint:
            raise
        first, *diff = str(error).split("\n", 1)
        raise WeightMismatchError("\n".join([f"{first} {hint}", *diff])) from None
    return variables, f'"{source}" ({which})' if which else f'"{source}"'


def locate(source: str | Path) -> Path:
    """The local path of a source, fetched from the Hub if it is an id; see `load` for how the two are told apart.

    Raises:
      WeightSourceError: nothing is there.
    """
    text = str(source)
    if not text:
        raise WeightSourceError(
            "The source of the weights is empty. An empty name means no file. Give a path or a Hugging Face id such as "
            '"timm/cait_s24_224.fb_dist_in1k".'
        )
    path = Path(text).expanduser()
    if path.exists():
        return path
    hub_id = hub.parse(text) if isinstance(source, str) else None
    if hub_id is not None and (hub_id.explicit or not _is_spelt_like_a_path(text)):
        return hub.fetch(hub_id)
    raise WeightSourceError(readers.not_found(text, _why_not_the_hub(text, hub_id)))


def _is_spelt_like_a_path(text: str) -> bool:
    return text[0] in "./~" or readers.is_wanted_suffix(text) or Path(text).parent.is_dir()


def _why_not_the_hub(text: str, hub_id: hub.HubId | None) -> str:
    """Why a missing path was not looked for on the Hub, and what to write if that was meant."""
    if hub_id is not None:
        why = (
            "is spelt like a path" if not Path(text).parent.is_dir() else f'lies below the folder "{Path(text).parent}"'
        )
        return (
            f'It was not looked for on the Hugging Face Hub because it {why}; write "hf-hub:{text}" if that is meant.'
        )
    name, _, tag = text.partition(".")
    known = [full for full in list_models("*.*") if full.split(".")[0] == name]
    if known:
        full = text if tag and text in known else known[0]
        return f'"{text}" names a network, not its weights; those are on the Hub as "timm/{full}".'
    return "It is not a Hugging Face id, which has the form owner/name."
