"""SpectralKD: squared error between the spatial spectra of two feature maps (arXiv 2412.19055)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd.errors import UnknownNameError, check_choice
from jaxkd.losses.arguments import check_features, exclude, include
from jaxkd.losses.features import difference
from jaxkd.losses.splitting import on_examples

# The default method of `spectral` and the presets. Both methods give the same number; "closed" has no FFT, hence no
# transposes and no complex intermediates, and a sharded batch is not gathered. benchmarks/step_time.py times both.
DEFAULT_METHOD = "closed"


def _squares_fft(d: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B,) squares of real and imaginary parts of the half spectrum, summed."""
    spectrum = jnp.fft.rfft2(d.transpose(0, 3, 1, 2), norm="ortho")
    return jnp.sum(jnp.square(spectrum.real) + jnp.square(spectrum.imag), axis=(1, 2, 3))


def _squares_closed(d: jax.Array) -> jax.Array:
    """The same sum by Parseval's theorem, without an FFT.

    The full spectrum has the energy SSE of the map. Of each pair of mirrored columns rfft2 keeps one, but column 0 and,
    for even W, column W / 2 are their own mirror image: (SSE + E_0 + E_N) / 2. W = 1 has column 0 only, W = 2 columns 0
    and 1 only; the sum is then SSE, as the formula says.
    """
    w = d.shape[2]
    rows = jnp.sum(jnp.square(d), axis=2) + jnp.square(jnp.sum(d, axis=2)) / w
    if w % 2 == 0:
        alternating = jnp.sum(d[:, :, 0::2], axis=2) - jnp.sum(d[:, :, 1::2], axis=2)
        rows = rows + jnp.square(alternating) / w
    return jnp.sum(rows, axis=(1, 2)) / 2


_FORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "closed": _squares_closed,
    "fft": lambda d: on_examples(_squares_fft, d),
}
METHODS = tuple(_FORMS)


def spectral(
    student_map: jax.Array,
    teacher_map: jax.Array,
    *,
    where: jax.Array | None = None,
    method: str = DEFAULT_METHOD,
) -> jax.Array:
    """SpectralKD loss of one layer.

    Mean squared difference of the orthonormal rfft2 of both maps over height and width, over all C H (W // 2 + 1) 2
    real and imaginary parts. It equals a squared error in space with more weight on the columns that rfft2 does not
    halve: for W = 14 between 0.4375 and 0.875 times `feature_mse`, the latter for differences that are constant in
    space.

    Args:
      student_map: (B, H, W, C_s), any float type; computed in at least fp32.
      teacher_map: (B, H, W, C_t); the feature with more channels is pooled.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.
      method: "closed" (without an FFT) or "fft"; equal to 1e-12 in float64.

    Returns:
      (B,); the mean over the batch is the published value.

    Raises:
      ShapeError: another rank, batch or grid.
      UnknownNameError: another method.
    """
    check_method(method)
    check_features(student_map.shape, teacher_map.shape, rank=4)
    d = difference(*include(where, student_map, teacher_map))
    _, h, w, c = d.shape
    return exclude(where, _FORMS[method](d) / (c * h * (w // 2 + 1) * 2))


def check_method(method: str) -> None:
    """Raises UnknownNameError unless `method` is one of METHODS."""
    check_choice("method", method, METHODS, error=UnknownNameError)
