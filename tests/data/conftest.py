"""Small image folders that tests can spoil."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """`picture(40, 60)` -> an RGB image of that height and width without any symmetry."""

    def draw(height: int, width: int, seed: int = 0) -> Image.Image:
        y, x = np.mgrid[:height, :width]
        rng = np.random.default_rng(seed)
        waves = [np.sin(x / (3 + i) + rng.uniform(0, 6)) + np.cos(y / (5 - i) + x / 29) for i in range(3)]
        pixels = np.stack([127 + 50 * w for w in waves], axis=-1) + rng.normal(0, 8, (height, width, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return draw


@pytest.fixture
def folder(tmp_path, picture):
    """`folder()` -> tmp/data with train (cat: 5, dog: 4 images) and val (2 each), all of different sizes."""

    def make(name: str = "data"):
        root = tmp_path / name
        seed = 0
        for split, counts in (("train", {"cat": 5, "dog": 4}), ("val", {"cat": 2, "dog": 2})):
            for label, count in counts.items():
                where = root / split / label
                where.mkdir(parents=True)
                for i in range(count):
                    seed += 1
                    picture(40 + 3 * seed, 70 - seed, seed).save(where / f"{i}.{'png' if i % 2 else 'jpg'}")
        return root

    return make
