"""Terms on the features of layer pairs, position by position, one value per example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.pair_features import feature_mean
from jaxkd.distill.pair_terms import register_pair_loss, register_parametric_loss
from jaxkd.distill.pairing import Pair
from jaxkd.distill.projectors import init_linear
from jaxkd.distill.terms import register_term
from jaxkd.errors import ShapeError, check_range
from jaxkd.losses.spectral import DEFAULT_METHOD, check_method


def _check_spectral(*, method: str = DEFAULT_METHOD, **_: Any) -> None:
    check_method(method)


@register_term("spectral", check=_check_spectral)
def spectral(
    student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...], method: str = DEFAULT_METHOD
) -> jax.Array:
    """Mean over pairs of the SpectralKD loss; `method` is "closed" or "fft"."""
    return feature_mean(student, teacher, batch, loss=partial(losses.spectral, method=method), pairs=pairs)


@register_term("mse")
def mse(student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...]) -> jax.Array:
    """Mean over pairs of the MSE between features."""
    return feature_mean(student, teacher, batch, loss=losses.feature_mse, pairs=pairs)


register_pair_loss("feature_cosine", losses.feature_cosine, projector="linear")
register_pair_loss("normalized_mse", losses.normalized_mse, projector="linear")
register_pair_loss("attention_transfer", losses.attention_transfer)
register_pair_loss("nst", losses.nst)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A kernel whose last axis is the output, uniform in +-1/sqrt(fan in), as PyTorch's Linear and Conv2d."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _init_linear(key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], **_: Any) -> dict[str, jax.Array]:
    return init_linear(key, student[-1], teacher[-1])


def _hint(
    params: dict[str, jax.Array], student: jax.Array, teacher: jax.Array, *, where: jax.Array | None
) -> jax.Array:
    """FitNet's hint (arXiv 1412.6550): squared error after a linear map of the student."""
    return losses.hint(student, teacher, params["kernel"], params["bias"], where=where)


register_parametric_loss("hint", _hint, _init_linear)


_INITIAL_VARIANCE = 5.0  # of vid, the published start


def _init_vid(
    key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], *, eps: float = 1e-5
) -> dict[str, jax.Array]:
    widths = (student[-1], *[teacher[-1]] * 3)
    check_range("eps of vid", eps, above=0, below=_INITIAL_VARIANCE, hint="the published code uses 1e-5")
    kernels = {f"kernel_{i}": _uniform(jax.random.fold_in(key, i), pair) for i, pair in enumerate(pairwise(widths))}
    return kernels | {"log_scale": jnp.full(teacher[-1], math.log(math.expm1(_INITIAL_VARIANCE - eps)))}


def _vid(
    params: dict[str, jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    *,
    eps: float = 1e-5,
    where: jax.Array | None,
) -> jax.Array:
    """Variational information distillation (arXiv 1904.05835), with a trained variance per channel."""
    kernels = [params[f"kernel_{i}"] for i in range(3)]
    return losses.vid(student, teacher, kernels, params["log_scale"], eps=eps, where=where)


register_parametric_loss("vid", _vid, _init_vid)


def _init_generator(
    key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], **_: Any
) -> dict[str, jax.Array]:
    width = teacher[-1]
    align = init_linear(jax.random.fold_in(key, 0), student[-1], width)
    params = {"align_kernel": align["kernel"], "align_bias": align["bias"]}
    for i in range(2):
        kernel, bias = jax.random.split(jax.random.fold_in(key, 1 + i))
        params[f"conv_{i}_kernel"] = _uniform(kernel, (3, 3, width, width))
        bound = (9 * width) ** -0.5
        params[f"conv_{i}_bias"] = jax.random.uniform(bias, (width,), jnp.float32, -bound, bound)
    return params


def _mgd(
    params: dict[str, jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    *,
    drop: str = "channels",
    ratio: float | None = None,
    alpha: float = 7e-5,
    key: jax.Array,
    where: jax.Array | None,
) -> jax.Array:
    """Masked generative distillation (arXiv 2205.01529), with a new mask in every step."""
    if teacher.ndim != 4:
        raise ShapeError(f"mgd needs maps (batch, height, width, channels), not {tuple(teacher.shape)}.")
    mask = losses.mgd_mask(key, teacher.shape, ratio=ratio, drop=drop)
    return losses.mgd(student, teacher, mask, params, alpha=alpha, where=where)


register_parametric_loss("mgd", _mgd, _init_generator, needs_key=True)


def _vitkd_mimic(
    params: dict[str, jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    *,
    alpha: float = 3e-5,
    where: jax.Array | None,
) -> jax.Array:
    """ViTKD's mimicking (arXiv 2209.02432), a sum over the pairs: the first two layers in the paper."""
    kernel, bias = params["kernel"][None], params["bias"][None]
    return losses.vitkd_mimic(student[:, None], teacher[:, None], kernel, bias, alpha=alpha, where=where)


register_parametric_loss("vitkd_mimic", _vitkd_mimic, _init_linear, reduce="sum")


def _init_vitkd_generation(
    key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], **_: Any
) -> dict[str, jax.Array]:
    token = 0.02 * jax.random.normal(jax.random.fold_in(key, 3), (teacher[-1],))
    return _init_generator(key, student, teacher) | {"mask_token": token}


def _vitkd_generation(
    params: dict[str, jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    *,
    beta: float = 3e-6,
    ratio: float = 0.5,
    key: jax.Array,
    where: jax.Array | None,
) -> jax.Array:
    """ViTKD's generation of the last layer's tokens (arXiv 2209.02432), with a new mask in every step."""
    mask = losses.vitkd_mask(key, teacher.shape[0], math.prod(teacher.shape[1:-1]), ratio=ratio)
    return losses.vitkd_generation(student, teacher, mask, params, beta=beta, ratio=ratio, where=where)


register_parametric_loss("vitkd_generation", _vitkd_generation, _init_vitkd_generation, needs_key=True)


def _init_simkd(
    key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], *, pooled: bool = False, **_: Any
) -> dict[str, jax.Array]:
    if pooled:
        return init_linear(key, student[-1], teacher[-1])
    middle = max(1, teacher[-1] // 2)
    widths, params = (student[-1], middle, middle, teacher[-1]), {}
    for i, window in enumerate((1, 3, 1)):
        shape = (window, window, widths[i], widths[i + 1])
        params[f"conv_{i}_kernel"] = _uniform(jax.random.fold_in(key, i), shape)
        params |= {f"bn_{i}_scale": jnp.ones(widths[i + 1]), f"bn_{i}_bias": jnp.zeros(widths[i + 1])}
    return params


def _simkd(
    params: dict[str, jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    *,
    pooled: bool = False,
    last_relu: bool = False,
    where: jax.Array | None,
) -> jax.Array:
    """SimKD's feature loss (arXiv 2203.14001), with the projector's BatchNorm on the batch.

    `pooled` compares means over positions. `last_relu` is the paper's, whose teachers end in a ReLU; ViTs do not.
    """
    return losses.simkd(student, teacher, params, last_relu=last_relu, where=where)


def _predict_simkd(
    params: dict[str, Any],
    student: ModelOutput,
    classifier: Mapping[str, jax.Array],
    *,
    pairs: tuple[Pair, ...],
    **_: Any,
) -> jax.Array:
    """(B, K) logits of SimKD's student: its feature, the projector, the teacher's classifier."""
    projected = losses.simkd_project(student[1][pairs[0][0]], params["pair_0"])[0]
    return losses.simkd_logits(projected, classifier["kernel"], classifier["bias"])


register_parametric_loss("simkd", _simkd, _init_simkd, predict=_predict_simkd)
