"""From a config's words to a network with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd import models, weights
from jaxkd.errors import ConfigError
from jaxkd.models import ModelSpec
from jaxkd.train.checkpoint import find_run, load_run_weights

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


def _size(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def build_network(
    name: str,
    args: dict[str, Any],
    *,
    source: str = "",
    variant: str = "",
    resize: bool = False,
    new_head: bool = False,
    compute: str = "float32",
    remat: bool = False,
    key: jax.Array | None = None,
    load: bool = True,
) -> Network:
    """Builds `name` with timm's constructor arguments (None: the default) and loads `source` into it.

    Args:
      name: a name of the zoo, perhaps with a tag.
      args: constructor arguments.
      source: file, Hugging Face id or work directory of ours; "" leaves the weights to be drawn.
      variant: "ema" or "raw" where the source holds both.
      resize: resize position embeddings and bias tables.
      new_head: replace a head of another size.
      compute: "float32" or "bfloat16".
      remat: recompute each block in the backward pass.
      key: for a new head.
      load: False only builds (a resume brings its own weights).
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items() if v is not None}
    model = models.create(name, **given, dtype=DTYPES[compute], remat=remat)
    spec = models.spec(name)
    image_size = _size(given.get("img_size", spec.input_size))
    variables, origin = None, "random weights"
    if source and load:
        options = {"resize": resize, "new_head": new_head, "key": key}
        if find_run(source) is not None:
            # Through the state dict, so that a run's weights obey the same checks, resizes and diffs as a file's.
            saved, config, origin = load_run_weights(source, variant=variant or None)
            theirs = network_from_run(config, load=False)
            variables = weights.from_timm(model, weights.to_timm(theirs.model, saved), **options)
        else:
            variables = weights.load(model, source, variant=variant or None, **options)
            origin = source
    num_classes = given.get("num_classes", spec.num_classes)
    return Network(model, spec, image_size, int(num_classes), variables, origin)


def network_from_run(config: dict[str, Any], *, load: bool = True, compute: str = "float32") -> Network:
    """The student of a run by its resolved config (config.json), without weights of its own."""
    try:
        student = config["student"]
        return build_network(student["name"], student["args"], compute=compute, load=load)
    except KeyError as error:
        raise ConfigError(
            f"config.json of the work directory has no field {error}. It was written by another version of jaxkd or changed "
            "by hand. Use the version that wrote it."
        ) from None
