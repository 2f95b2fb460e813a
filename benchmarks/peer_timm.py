"""The same training input with PyTorch's DataLoader and timm's transform, to time ours against.

Needs the extra `parity`. Images, their order, worker processes, batches and recipe are ours; every choice that is not
the recipe's is the default of timm's train script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from jaxkd.data.pipeline.sampler import EpochSampler

ERASE_PROBABILITY, ERASE_MODE = 0.25, "pixel"


@cache
def import_peer() -> tuple[Any, Any]:
    """(torch, timm); see `peer_torch`. Once a process, because a schema can be defined only once.

    Raises:
      ConfigError: one of them is missing.
    """
    from torch_import import import_timm

    return import_timm()


@dataclass(frozen=True)
class Recipe:
    """The augmentation of both sides; probability of a mirror image and range of the crop are timm's defaults."""

    image_size: int
    policy: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self, *, on_device: bool) -> Any:
        """timm's, with (its default) or without normalising and erasing on the host."""
        _, timm = import_peer()
        from timm.data import auto_augment

        # timm 1.0.31 asks Pillow for pictures of no bits, which Pillow refuses from version 12 on.
        posterize = auto_augment.posterize
        for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
            auto_augment.NAME_TO_OP[name] = lambda image, bits, **_: posterize(image, max(bits, 1))
        return timm.data.create_transform(
            self.image_size,
            is_training=True,
            use_prefetcher=on_device,
            auto_augment=self.policy,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
            re_prob=ERASE_PROBABILITY,
            re_mode=ERASE_MODE,
        )


class Images:
    """timm's ImageDataset over a list of files. The transform is made by the worker that uses it."""

    def __init__(self, paths: list[str], recipe: Recipe, *, on_device: bool):
        self._paths, self._recipe, self._on_device, self._transform = paths, recipe, on_device, None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        if self._transform is None:
            self._transform = self._recipe.transform(on_device=self._on_device)
        with open(self._paths[index], "rb") as file:
            image = Image.open(file)
            image.load()
        return self._transform(image.convert("RGB")), 0


class Order:
    """The batches of jaxkd, as a batch sampler of torch."""

    def __init__(self, sampler: EpochSampler):
        self._sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        position = 0
        while True:
            yield self._sampler.batch(position)[1].tolist()
            position += 1


class Collate:
    """timm's fast_collate, imported by the worker that uses it."""

    def __call__(self, examples: list[tuple[Any, int]]) -> Any:
        import_peer()
        from timm.data.loader import fast_collate

        return fast_collate(examples)


def loader(paths: list[str], recipe: Recipe, sampler: EpochSampler, *, workers: int, on_device: bool) -> Any:
    """Endless batches (images, labels).

    Args:
      paths: of the images.
      recipe: what happens to them.
      sampler: their order.
      workers: processes.
      on_device: as timm's prefetcher: uint8 comes out, and normalising and erasing are left to the device.
    """
    torch, _ = import_peer()
    return torch.utils.data.DataLoader(
        Images(paths, recipe, on_device=on_device),
        batch_sampler=Order(sampler),
        num_workers=workers,
        collate_fn=Collate() if on_device else None,
        multiprocessing_context="spawn",  # as ours; this process may have threads of XLA
    )


def versions() -> dict[str, str]:
    """Of what was timed."""
    torch, timm = import_peer()
    return {"torch": torch.__version__, "timm": timm.__version__}
