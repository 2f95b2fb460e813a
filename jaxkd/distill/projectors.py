"""Projector heads: small trained maps from features of one width to features of another, in front of a loss.

A head acts on the channels, the last axis, position by position: on a map (B, H, W, C) `linear` is a 1x1 convolution.
Its parameters are plain dicts, so that they train, are saved and resume as the other parameters of a term do.

The published ProjectorKD (arXiv 2511.06848) is `{"loss": "mse", "projector": {"student": "linear_batchnorm",
"teacher": "batchnorm"}, "frozen": True}`: its heads were created after the optimiser and never trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, UnknownNameError, check_range, did_you_mean
from jaxkd.losses.arguments import full_precision, include

PyTree = Any

# kind -> its parts in order; parts that start with "linear" are maps to the wanted width
HEADS: dict[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "linear_batchnorm": ("linear", "batchnorm"),
    "linear_layernorm": ("linear", "layernorm"),
    "mlp": ("linear_hidden", "gelu", "linear"),
    "batchnorm": ("batchnorm",),
    "layernorm": ("layernorm",),
}
SAME = {"conv1x1": "linear"}  # other names of a head
NORM_EPS = 1e-5  # PyTorch's default of both norms
MOMENTUM = 0.1  # of the running statistics, PyTorch's default


@dataclass(frozen=True)
class Projector:
    """The heads of a term on the student's and on the teacher's features.

    Attributes:
      student: a key of `HEADS`, or "" for none.
      teacher: likewise.
      width: channels that linear parts map to; 0: the other network's, and the teacher's where both are mapped.
    """

    student: str = ""
    teacher: str = ""
    width: int = 0

    @property
    def as_given(self) -> str:
        """The projector as a config writes it."""
        parts = {"student": self.student, "teacher": self.teacher, "width": self.width}
        return json.dumps({name: value for name, value in parts.items() if value})

    def widths(self, student: int, teacher: int) -> tuple[int, int]:
        """Channels of the student's and the teacher's features behind the heads, given those in front.

        Raises:
          ConfigError: a given width that only one of two different widths is mapped to.
        """
        maps = [_has_linear(self.student), _has_linear(self.teacher)]
        target = self.width or (student if maps == [False, True] else teacher)
        out = tuple(target if mapped else have for mapped, have in zip(maps, (student, teacher), strict=True))
        if any(maps) and out[0] != out[1]:
            raise ConfigError(
                f"The projector {self.as_given} gives the student {out[0]} channels and the teacher {out[1]}. Leave "
                'width out, or give both networks a linear head, e.g. {"student": "linear", "teacher": "linear", '
                '"width": 128}.'
            )
        return out[0], out[1]

    def init(self, key: jax.Array, student: int, teacher: int) -> tuple[PyTree, PyTree]:
        """Parameters and batch statistics of both heads for features of so many channels."""
        params, state = {}, {}
        widths = self.widths(student, teacher)
        for index, (side, kind) in enumerate((("student", self.student), ("teacher", self.teacher))):
            if kind:
                have = (student, teacher)[index]
                params[side], state[side] = init_head(jax.random.fold_in(key, index), kind, have, widths[index])
        return params, state

    def __call__(
        self, params: PyTree, state: PyTree, student: jax.Array, teacher: jax.Array, where: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        """(B, ..., C) features of both networks -> the same behind their heads, and the new batch statistics."""
        changed, features = {}, {"student": student, "teacher": teacher}
        for side, kind in (("student", self.student), ("teacher", self.teacher)):
            if kind:
                features[side], changed[side] = apply_head(kind, params[side], state[side], features[side], where)
        return features["student"], features["teacher"], changed


def read_projector(spec: Any) -> Projector | None:
    """The `projector` of a config's term as a Projector, None for no heads.

    Args:
      spec: "" or None; a key of `HEADS` or of `SAME`, for the student; or `{"student": ..., "teacher": ...,
        "width": ...}`, each of which may be left out.

    Raises:
      ConfigError, UnknownNameError: anything else.
    """
    if not spec:
        return None
    if isinstance(spec, Projector):
        return spec
    if isinstance(spec, str):
        spec = {"student": spec}
    if not (isinstance(spec, Mapping) or hasattr(spec, "keys")):
        raise ConfigError(
            f"projector={spec!r} is not a projector. Write the kind of the student's head, e.g. "
            '"linear_batchnorm", or {"student": "linear_batchnorm", "teacher": "batchnorm"}.'
        )
    fields = {str(key): spec[key] for key in spec}
    for name in fields:
        if name not in ("student", "teacher", "width"):
            raise ConfigError(
                f'projector={fields!r} has the key "{name}", which it does not take.'
                f"{did_you_mean(name, ('student', 'teacher', 'width'))} It takes student, teacher and width."
            )
    for side in ("student", "teacher"):
        kind = fields.get(side) or ""
        kind = SAME.get(kind, kind) if isinstance(kind, str) else kind
        if kind and (not isinstance(kind, str) or kind not in HEADS):
            raise UnknownNameError(
                f"The {side}'s projector is {kind!r}, which does not exist."
                f"{did_you_mean(str(kind), (*HEADS, *SAME))} Choose one of "
                f"{', '.join(HEADS)}; conv1x1 is another name of linear, and there is no larger convolution."
            )
        fields[side] = kind
    check_range("projector width", fields.get("width", 0), 0, 2**20, whole=True)
    projector = Projector(**fields)
    if projector.width and not (_has_linear(projector.student) or _has_linear(projector.teacher)):
        raise ConfigError(
            f"projector={fields!r} has a width, but no head that maps to it. Add a linear head or leave width out."
        )
    return projector if projector.student or projector.teacher else None


def _has_linear(kind: str) -> bool:
    return any(part.startswith("linear") for part in HEADS.get(kind, ()))


def init_linear(key: jax.Array, channels_in: int, channels_out: int) -> dict[str, jax.Array]:
    """Kernel (in, out) and bias (out,), uniform in +-1/sqrt(in), as PyTorch's Linear."""
    bound = channels_in**-0.5
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, (channels_in, channels_out), jnp.float32, -bound, bound),
        "bias": jax.random.uniform(bias, (channels_out,), jnp.float32, -bound, bound),
    }


def apply_linear(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """(..., in) -> (..., out), in at least fp32."""
    return jnp.matmul(full_precision(x), params["kernel"]) + params["bias"]


def init_head(key: jax.Array, kind: str, channels_in: int, channels_out: int) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of one head.

    Args:
      key: of the random kernels.
      kind: a key of `HEADS`.
      channels_in: of the features.
      channels_out: of the result; that of a head without a linear part is `channels_in`.

    Returns:
      `{part: {...}}` of the parts with parameters, and `{"batchnorm": {"mean", "var"}}` of a head with BatchNorm.
    """
    params, state, width = {}, {}, channels_in
    for index, part in enumerate(HEADS[kind]):
        if part.startswith("linear"):
            params[part] = init_linear(jax.random.fold_in(key, index), width, channels_out)
            width = channels_out
        elif part != "gelu":
            params[part] = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        if part == "batchnorm":
            state[part] = {"mean": jnp.zeros(width), "var": jnp.ones(width)}
    return params, state


def apply_head(
    kind: str, params: PyTree, state: PyTree, x: jax.Array, where: jax.Array | None = None
) -> tuple[jax.Array, PyTree]:
    """One head on (B, ..., C) features.

    Args:
      kind: a key of `HEADS`.
      params: of `init_head`.
      state: likewise.
      x: any float type; computed in at least fp32.
      where: (B,) bool, False for examples that do not count, neither in the statistics of BatchNorm.

    Returns:
      (B, ..., width), and the new batch statistics.
    """
    (x,), changed = include(where, full_precision(x)), {}
    for part in HEADS[kind]:
        if part.startswith("linear"):
            x = apply_linear(params[part], x)
        elif part == "gelu":
            x = jax.nn.gelu(x, approximate=False)
        elif part == "layernorm":
            centred = x - x.mean(axis=-1, keepdims=True)
            x = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
            x = x * params[part]["scale"] + params[part]["bias"]
        else:
            x, changed[part] = _batch_norm(params[part], state[part], x, where)
    return x, changed


def _batch_norm(params: PyTree, state: PyTree, x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, PyTree]:
    """BatchNorm by the statistics of the batch (biased variance), and the running ones (unbiased), as in PyTorch.

    A head works only in training, so nothing reads the running statistics; they describe the features, and a saved
    head can be applied with them. Under jit the batch is the global one: the means are over all devices.
    """
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    if where is None:
        count = jnp.asarray(rows.shape[0] * rows.shape[1], x.dtype)
        weights = None
    else:
        weights = where.astype(x.dtype)[:, None, None]
        count = jnp.sum(weights) * rows.shape[1]

    def mean_of(values: jax.Array) -> jax.Array:
        if weights is not None:
            values = values * weights
        return jnp.sum(values, axis=(0, 1)) / jnp.maximum(count, 1.0)

    mean = mean_of(rows)
    centred = rows - mean
    variance = mean_of(jnp.square(centred))
    out = centred * jax.lax.rsqrt(variance + NORM_EPS) * params["scale"] + params["bias"]
    new = {"mean": mean, "var": variance * count / jnp.maximum(count - 1.0, 1.0)}

    def moved(old: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(count > 0, (1.0 - MOMENTUM) * old + MOMENTUM * jax.lax.stop_gradient(value), old)

    return out.reshape(x.shape), jax.tree.map(moved, dict(state), new)
