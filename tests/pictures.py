"""Small made-up pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth_pictures(root: Path, *, train: int, val: int) -> Path:
    """Writes `train` and `val` smooth RGB pictures of 38 x 45 pixels below `root`, the same every time."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir()
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
            coarse.resize((45, 38), Image.Resampling.BICUBIC).save(root / split / f"{i}.png")
    return root


def noisy_classes(root: Path, *, train: int, val: int) -> Path:
    """Writes `train` and `val` JPEG files of noise for each of two classes below `root`, and returns `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in ("cat", "dog"):
            where = root / split / label
            where.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(where / f"{i}.jpg")
    return root
