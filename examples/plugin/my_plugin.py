"""A network, a loss term and a data source of one's own; `config.plugins = ("my_plugin",)` registers all three."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from jaxkd import data, distill, models
from jaxkd.models.contract import TapRecorder


class PatchMixer(nn.Module):
    """(B, H, W, 3) images -> patches -> residual MLPs over channels -> mean -> classes."""

    img_size: int = 16
    patch_size: int = 4
    width: int = 32
    depth: int = 2
    num_classes: int = 10

    def tap_names(self):
        return tuple(f"block_{i}" for i in range(self.depth))

    @nn.compact
    def __call__(self, images, train=False, *, taps=(), offsets=None):
        record = TapRecorder("PatchMixer", self.tap_names(), taps, offsets)
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, patch, strides=patch, name="patch_embed")(images)
        for i in range(self.depth):
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
            x = record(f"block_{i}", x)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2))), record.features


models.register("patch_mixer", PatchMixer, models.ModelSpec("patch_mixer", input_size=(16, 16), num_classes=10))


def init_projector(key, student, teacher, *, pairs):
    """A linear map from the student's width to the teacher's, for the first pair; no state."""
    (source, target), *_ = pairs
    shape = student[1][source].shape[-1], teacher[1][target].shape[-1]
    return {"kernel": jax.random.normal(key, shape) / np.sqrt(shape[0])}, {}


@distill.register_term("projected_cosine", init=init_projector)
def projected_cosine(params, mutable, student, teacher, batch, *, pairs, eps=1e-6):
    """(B,) 1 - cosine between projected student features and teacher features, mean over positions."""
    (source, target), *_ = pairs
    a, b = student[1][source] @ params["kernel"], teacher[1][target]
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (1.0 - jnp.sum(a * b, axis=-1) / (norms + eps)).mean(axis=(1, 2)), mutable


class Stripes:
    """Two classes, horizontal and vertical stripes, drawn when they are read: "stripes:64" has 64 images a split."""

    class_names = class_words = ("horizontal", "vertical")
    exif = False

    def __init__(self, spec, split, *, exif=False):
        self.count, self.split = int(spec.partition(":")[2]), split

    @property
    def class_counts(self):
        return np.bincount([self.label(i) for i in range(self.count)], minlength=2)

    def __len__(self):
        return self.count

    def label(self, index):
        return index % 2

    def name(self, index):
        return f"stripes/{self.split}/{index}"

    def bytes(self, index):
        return None

    def image(self, index):
        rng = np.random.default_rng([self.split == "val", index])
        stripes = np.tile(np.arange(16) // 2 % 2, (16, 1))
        stripes = stripes.T if self.label(index) == 0 else stripes
        pixels = 60 + 120 * stripes[..., None] + rng.integers(0, 60, (16, 16, 3))
        return Image.fromarray(pixels.astype(np.uint8))


data.register_source("stripes:", Stripes)
