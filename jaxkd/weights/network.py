"""From a config's words to a network with its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import ModelSpec
from jaxkd.models.contract import size_pair
from jaxkd.train.checkpoint import find_run, load_run_weights
from jaxkd.weights.loading import load_with_origin
from jaxkd.weights.timm import from_timm, to_timm

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
    """

    model: nn.Module
    spec: ModelSpec
    image_size: tuple[int, int]
    num_classes: int
    variables: PyTree | None
    origin: str


def build_network(name: str, args: dict[str, Any], *, compute: str = "float32", remat: bool = False) -> Network:
    """Builds `name` with timm's constructor arguments (None: the default), without weights; see `load_weights`.

    Args:
      name: a name of the zoo, perhaps with a tag.
      args: constructor arguments.
      compute: "float32" or "bfloat16".
      remat: recompute each block in the backward pass.

    Raises:
      UnknownNameError: no such network. ConfigError: an argument that it does not take.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items() if v is not None}
    spec, accepted = models.spec(name), models.arguments(name)
    for field, key, value, default in (
        ("precision.compute", "dtype", compute, "float32"),
        ("precision.remat", "remat", remat, False),
    ):
        if key in accepted:
            given[key] = DTYPES[value] if key == "dtype" else value
        elif value != default:
            raise ConfigError(
                f"{field}={value!r} is set, but {spec.name} has no argument {key}. Leave {field} at {default!r}, or "
                "add the argument to the network."
            )
    model = models.create(name, **given)
    num_classes = given.get("num_classes", spec.num_classes)
    # A network for any image size, such as those for super-resolution, has the size of its training patches only.
    size = getattr(model, "img_size", spec.input_size)
    return Network(model, spec, size_pair(size, "img_size"), int(num_classes), None, "random weights")


def load_weights(
    network: Network,
    source: str,
    *,
    variant: str = "",
    step: str = "",
    resize: bool = False,
    new_head: bool = False,
    key: jax.Array | None = None,
) -> Network:
    """`network` with the variables that `source` holds.

    Args:
      network: where they go.
      source: a file, a Hugging Face id, or a work directory of ours.
      variant: "ema" or "raw" where the source holds both.
      step: which checkpoint of a work directory: a number, "last" (default) or "best".
      resize: interpolate position embeddings and bias tables to this network's grid.
      new_head: replace a head of another size, drawn with `key`.
      key: for a new head.

    Raises:
      WeightSourceError: not found, not readable. WeightMismatchError: of another network. CheckpointError: a work
        directory without what is asked for.
    """
    options = {"resize": resize, "new_head": new_head, "key": key}
    if find_run(source) is None:
        if step:
            raise ConfigError(
                f'step="{step}" was given, but "{source}" is not a work directory of jaxkd. A file holds one set of '
                "weights. Leave the step out."
            )
        variables, said = load_with_origin(network.model, source, variant=variant or None, **options)
        return replace(network, variables=variables, origin=source if said == f'"{source}"' else said)
    saved, config, origin = load_run_weights(source, variant=variant or None, step=step)
    if _same_shapes(network, saved):  # also of a network that has no counterpart in timm
        return replace(network, variables=saved, origin=origin)
    # Through the state dict, so that a run's weights obey the same checks, resizes and diffs as a file's.
    theirs = network_from_run(config)
    state_dict = to_timm(theirs.model, saved)
    return replace(network, variables=from_timm(network.model, state_dict, **options), origin=origin)


def _same_shapes(network: Network, variables: PyTree) -> bool:
    channels = getattr(network.model, "in_chans", 3)
    images = jax.ShapeDtypeStruct((1, *network.image_size, channels), jnp.float32)
    expected = jax.eval_shape(network.model.init, jax.random.key(0), images)
    shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (expected, variables)]
    return shapes[0] == shapes[1]


def network_from_run(config: dict[str, Any]) -> Network:
    """The student of a run by its resolved config (config.json), without weights."""
    try:
        return build_network(config["student"]["name"], config["student"]["args"])
    except KeyError as error:
        raise ConfigError(
            f"config.json of the work directory has no field {error}. It was written by another version of jaxkd or "
            "changed by hand. Use the version that wrote it."
        ) from None
