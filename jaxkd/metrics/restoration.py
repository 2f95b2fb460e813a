"""PSNR and SSIM by the conventions of super-resolution papers (BasicSR's formulas).

The name of a metric holds its convention: `psnr_y_crop4` is PSNR on luma after cropping 4 pixels from each side. The
formulas are BasicSR's `calculate_psnr` and `calculate_ssim`: 8-bit images; luma as in MATLAB's `rgb2ycbcr` (BT.601, 16
to 235), not rounded; a peak of 255 also for luma; SSIM with an 11x11 Gaussian of 1.5 pixels, without padding, averaged
over the channels for RGB. The PSNR of a data set is the mean of the decibels of its images.

Both run on the host in fp64. Luma is computed as a sum of integers times 219/255000, so that images of equal luma
compare as equal.
"""

from __future__ import annotations

import numpy as np

from jaxkd.errors import ShapeError, UnknownNameError, check_range, did_you_mean

PEAK = 255.0
# 65.481, 128.553 and 24.966, MATLAB's weights of red, green and blue in [0, 1], are 219 times these thousandths.
LUMA_THOUSANDTHS = (299, 587, 114)
LUMA_STEP = 219.0 / 255_000.0
LUMA_BLACK = 16.0
RADIUS = 5  # of the SSIM window, pixels
WINDOW = 2 * RADIUS + 1
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
ROWS = 16  # rows per step on the host, so that intermediate results stay in the cache
METRICS = ("psnr", "ssim")


def _gaussian() -> tuple[float, ...]:
    """Window weights along one axis from the edge to the centre; all eleven sum to one."""
    weights = np.exp(-((np.arange(WINDOW) - RADIUS) ** 2) / (2 * 1.5**2))
    return tuple(float(w) for w in (weights / weights.sum())[: RADIUS + 1])


GAUSSIAN = _gaussian()


def name_of(metric: str, crop_border: int, luma: bool) -> str:
    """`psnr_y_crop4` of ("psnr", 4, True); RGB is called `rgb`.

    Args:
      metric: "psnr" or "ssim".
      crop_border: pixels left out at each side.
      luma: whether luma is compared; False: RGB.

    Returns:
      The name under which results hold the metric.

    Raises:
      UnknownNameError: a metric that is neither psnr nor ssim.
      ConfigError: a negative border.
    """
    if metric not in METRICS:
        raise UnknownNameError(
            f'There is no metric "{metric}" of images.{did_you_mean(metric, METRICS)} Use {" or ".join(METRICS)}.'
        )
    _check_border(crop_border)
    return f"{metric}_{'y' if luma else 'rgb'}_crop{crop_border}"


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma, 16 (black) to 235 (white), not rounded.

    Args:
      image: (..., 3) uint8 RGB.

    Returns:
      (...) fp64.

    Raises:
      ShapeError: other than uint8 with three channels.

    Source: MATLAB's rgb2ycbcr, ITU-R BT.601.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim < 1 or image.shape[-1] != 3:
        raise ShapeError(f"The image is {image.dtype} of shape {image.shape}. Pass uint8 RGB of shape (..., 3).")
    return LUMA_BLACK + LUMA_STEP * _weighted(image.astype(np.int32))


def _weighted(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) of whole numbers -> (...) thousandths of luma, 0 to 255,000, exact in int32."""
    red, green, blue = LUMA_THOUSANDTHS
    return red * rgb[..., 0] + green * rgb[..., 1] + blue * rgb[..., 2]


def _check_border(crop_border: int) -> None:
    check_range("crop_border", crop_border, 0, whole=True, hint="papers crop the super-resolution factor")


def _cropped(a: np.ndarray, b: np.ndarray, crop_border: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Checks both images and returns them as (B, h, w, 3) without their border."""
    _check_border(crop_border)
    if a.shape != b.shape or a.ndim not in (3, 4) or a.shape[-1] != 3:
        raise ShapeError(
            f"The images have shapes {a.shape} and {b.shape}. Pass two of the same shape, (height, width, 3) or "
            "(batch, height, width, 3); repeat a greyscale channel three times."
        )
    if (a.dtype, b.dtype) != (np.uint8, np.uint8):
        raise ShapeError(
            f"The images are {a.dtype} and {b.dtype}, but the published metrics compare 8-bit images. Pass uint8: a "
            "network's output as np.rint(255 * np.clip(output, 0, 1)).astype(np.uint8)."
        )
    height, width = a.shape[-3] - 2 * crop_border, a.shape[-2] - 2 * crop_border
    if min(height, width) < least:
        raise ShapeError(
            f"The images of {a.shape[-3]}x{a.shape[-2]} pixels leave {max(height, 0)}x{max(width, 0)} after "
            f"crop_border={crop_border}, and this metric needs {least}x{least}. Compare larger images or crop less."
        )
    rows, columns = slice(crop_border, crop_border + height), slice(crop_border, crop_border + width)
    pair = tuple(image if image.ndim == 4 else image[None] for image in (a, b))
    return pair[0][:, rows, columns], pair[1][:, rows, columns]


def _returned(values: list[float], ndim: int) -> float | np.ndarray:
    return np.asarray(values, np.float64) if ndim == 4 else values[0]


def psnr(a: np.ndarray, b: np.ndarray, crop_border: int = 4, luma: bool = True) -> float | np.ndarray:
    """Peak signal-to-noise ratio, in decibels.

    Args:
      a: (H, W, 3) or (B, H, W, 3) uint8 RGB.
      b: the same shape; the order of the two does not matter.
      crop_border: pixels to leave out on each side; papers crop the super-resolution factor.
      luma: compare BT.601 luma; False for all three channels together.

    Returns:
      A float, or (B,) fp64 for a batch. Images of equal luma (or RGB) give inf.

    Raises:
      ShapeError: other shapes or kinds, or nothing left after cropping.
      ConfigError: a negative border.

    Source: BasicSR, calculate_psnr.
    """
    a, b = np.asarray(a), np.asarray(b)
    values = []
    for x, y in zip(*_cropped(a, b, crop_border, 1), strict=True):
        total = 0.0
        for row in range(0, len(x), ROWS):
            difference = (x[row : row + ROWS].astype(np.int16) - y[row : row + ROWS]).astype(np.float64)
            if luma:
                difference = _weighted(difference)
            difference *= difference  # whole numbers, so that their sum is nearly exact
            total += float(difference.sum())
        error = total * LUMA_STEP**2 / x[..., 0].size if luma else total / x.size
        values.append(float(10.0 * np.log10(PEAK**2 / error)) if error else float("inf"))
    return _returned(values, a.ndim)


def _blur(x: np.ndarray) -> np.ndarray:
    """(..., H, W) -> (..., H - 10, W - 10) mean over the SSIM window; as sums of slices."""
    height, width = x.shape[-2] - 2 * RADIUS, x.shape[-1] - 2 * RADIUS
    blurred = GAUSSIAN[RADIUS] * x[..., RADIUS : RADIUS + height, :]
    for i in range(RADIUS):
        blurred += GAUSSIAN[i] * (x[..., i : i + height, :] + x[..., WINDOW - 1 - i : WINDOW - 1 - i + height, :])
    x, blurred = blurred, GAUSSIAN[RADIUS] * blurred[..., RADIUS : RADIUS + width]
    for i in range(RADIUS):
        blurred += GAUSSIAN[i] * (x[..., i : i + width] + x[..., WINDOW - 1 - i : WINDOW - 1 - i + width])
    return blurred


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., H, W) of values in 0..255 -> (..., H - 10, W - 10) SSIM of each window.

    The two factors of SSIM are written as one minus a squared difference over a sum of squares: algebraically the
    usual quotients, but exactly 1 for equal windows.
    """
    middle = PEAK / 2  # a shift does not change variances, and their rounding error is smallest around zero
    a, b = a - middle, b - middle
    difference = a - b
    mean_a, mean_difference = _blur(a), _blur(difference)
    mean_b = mean_a - mean_difference
    variances = _blur(a * a + b * b) - mean_a * mean_a - mean_b * mean_b
    mean_a, mean_b = mean_a + middle, mean_b + middle
    squared = mean_difference * mean_difference
    brightness = 1.0 - squared / (mean_a * mean_a + mean_b * mean_b + C1)
    return brightness * (1.0 - (_blur(difference * difference) - squared) / (variances + C2))


def ssim(a: np.ndarray, b: np.ndarray, crop_border: int = 4, luma: bool = True) -> float | np.ndarray:
    """Structural similarity, at most 1.

    Args:
      a: (H, W, 3) or (B, H, W, 3) uint8 RGB; 11x11 pixels at least must remain after cropping.
      b: the same shape; the order of the two does not matter.
      crop_border: pixels to leave out on each side; papers crop the super-resolution factor.
      luma: compare BT.601 luma; False for the mean of the three channels' similarities.

    Returns:
      A float, or (B,) fp64 for a batch. Equal images give 1.

    Raises:
      ShapeError: other shapes or kinds, or too little left after cropping.
      ConfigError: a negative border.

    Source: BasicSR, calculate_ssim; Wang et al. 2004.
    """
    a, b = np.asarray(a), np.asarray(b)
    values = []
    for pair in zip(*_cropped(a, b, crop_border, WINDOW), strict=True):
        total, windows = 0.0, len(pair[0]) - 2 * RADIUS
        for row in range(0, windows, ROWS):
            pieces = (image[row : row + ROWS + 2 * RADIUS].astype(np.float64) for image in pair)
            total += float(_similarity(*(np.ascontiguousarray(_planes(piece, luma)) for piece in pieces)).sum())
        values.append(total / (windows * (pair[0].shape[1] - 2 * RADIUS) * (1 if luma else 3)))
    return _returned(values, a.ndim)


def _planes(rgb: np.ndarray, luma: bool) -> np.ndarray:
    """(..., H, W, 3) of whole numbers -> (..., 1 or 3, H, W) to be compared by SSIM."""
    if luma:
        return (LUMA_BLACK + LUMA_STEP * _weighted(rgb))[..., None, :, :]
    return rgb.swapaxes(-1, -2).swapaxes(-2, -3)
