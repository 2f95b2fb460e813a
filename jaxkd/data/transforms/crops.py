"""Geometry of training and evaluation crops, with timm's and torchvision's rules, on Pillow images."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from jaxkd.data.transforms.decode import MAX_PIXELS

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # left, upper, right, lower, as Pillow has it

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def random_resized_box(
    size: Size, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """The box of a RandomResizedCrop (timm/data/transforms.py; Szegedy et al. 2015).

    Area uniform in `scale` of the image's, aspect ratio log-uniform in `ratio`, position uniform. After ten boxes that
    do not fit, the largest central box whose ratio is allowed.
    """
    height, width = size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return (left, top, left + w, top + h)
    w, h = width, height
    if width / height < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


def resize_to_cover(image: Image.Image, target: Size, resample: Image.Resampling) -> Image.Image:
    """Resizes, keeping the aspect ratio, to the smallest size that covers `target`.

    A square target follows torchvision's Resize(int), which truncates the long side; any other follows timm's
    ResizeKeepRatio, which rounds both. Where that would be more than 89 megapixels, which takes an image hundreds of
    times longer than wide, only the middle is resized.
    """
    width, height = image.size
    if target[0] == target[1]:
        short, long = min(width, height), max(width, height)
        other = int(target[0] * long / short)
        size = (target[0], other) if width <= height else (other, target[0])
    else:
        ratio = min(height / target[0], width / target[1])
        size = (max(round(width / ratio), 1), max(round(height / ratio), 1))
    if size[0] * size[1] > MAX_PIXELS:
        # An image 1 pixel wide and 10,000 high would become 224 x 2,240,000. Only its middle is ever shown.
        keep = 16 * min(width, height) * max(target) // min(target)
        return resize_to_cover(centre_crop(image, (min(height, keep), min(width, keep))), target, resample)
    return image if size == image.size else image.resize(size, resample)


def centre_crop(image: Image.Image, size: Size) -> Image.Image:
    """The central (height, width) of an image, black where it is smaller (torchvision's CenterCrop)."""
    height, width = size
    if image.width < width or image.height < height:
        canvas = Image.new(image.mode, (max(image.width, width), max(image.height, height)))
        canvas.paste(image, (max(width - image.width, 0) // 2, max(height - image.height, 0) // 2))
        image = canvas
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
