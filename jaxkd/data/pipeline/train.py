"""The endless, resumable sequence of training batches."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from jaxkd.data.pipeline.broken import MAX_BROKEN, BrokenImages
from jaxkd.data.pipeline.resumable import Batch, ResumableBatches
from jaxkd.data.pipeline.sampler import EpochSampler, record_rng
from jaxkd.data.sources.registry import Source, fetch_records
from jaxkd.data.transforms.crops import INTERPOLATIONS, Box, Size, centre_crop, random_resized_box, resize_to_cover
from jaxkd.data.transforms.fast_decode import DecodeOptions, decode_crop_resize
from jaxkd.data.transforms.image_ops import color_jitter
from jaxkd.data.transforms.randaugment import auto_augment, uses_color_jitter
from jaxkd.errors import ConfigError, DataError


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of a training image on the host, in timm's order: crop, mirror, policy, colours.

    Attributes:
      kind: "random_resized_crop"; "pad_crop" (resize to the size, pad with black, crop at random); "none" (resize and
        centre crop).
      scale: smallest and largest share of the area that random_resized_crop keeps.
      ratio: smallest and largest width over height of that crop.
      interpolation: a name of `INTERPOLATIONS`, or "random" (bilinear or bicubic, drawn for each image).
      pad: pixels on each side for pad_crop.
      hflip: probability of a mirror image.
      auto_augment: a policy in timm's words, such as "rand-m9-mstd0.5-inc1"; "" is none. See `auto_augment`.
      color_jitter: strength for brightness, contrast and saturation; like timm, only without a policy or with "3a".
      region_decode: "auto", "on" or "off": decode only the part of a JPEG that random_resized_crop shows. It changes no
        pixel. See `DecodeOptions.region`.
      dct_scaling: shrink a JPEG while decoding where its crop is large. It changes pixels. See `DecodeOptions`.
    """

    kind: str = "random_resized_crop"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    pad: int = 0
    hflip: float = 0.5
    auto_augment: str = ""
    color_jitter: float = 0.0
    region_decode: str = "auto"
    dct_scaling: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ConfigError(
                    f"data.augment.{name}={(low, high)} is not a range. Give 0 < low <= "
                    f"high{' <= 1' if name == 'scale' else ''}, for example "
                    f"{(0.08, 1.0) if name == 'scale' else (0.75, 1.333)}."
                )
        if self.color_jitter and not uses_color_jitter(self.auto_augment):
            raise ConfigError(
                f'data.augment.color_jitter={self.color_jitter} with data.augment.auto_augment="{self.auto_augment}" '
                "would never act, because the policy replaces the jitter. Set one of them to nothing."
            )


class TrainTransform:
    """An RGB image -> (height, width, 3) uint8, as `config` says; a function of the image and `rng` alone. Picklable.

    Args:
      config: what happens.
      size: (height, width) that comes out.
      fill: colour of what a policy moves into the picture.
    """

    def __init__(self, config: AugmentConfig, size: Size, fill: tuple[int, int, int] = (128, 128, 128)):
        self._config, self._size = config, size
        self._decode = DecodeOptions(config.region_decode, config.dct_scaling)
        self._policy = (
            auto_augment(config.auto_augment, fill=fill, interpolation=config.interpolation, image_size=size)
            if config.auto_augment
            else None
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """See the class; every random number comes from `rng`."""
        config, size = self._config, self._size
        resample = self._resampling(rng)
        if config.kind == "random_resized_crop":
            box = self._box((image.height, image.width), rng)
            # Crop, then resize, as timm: `resize(box=...)` would let pixels outside the box bleed in.
            image = image.crop(box).resize(size[::-1], resample)
        else:
            image = centre_crop(resize_to_cover(image, size, resample), size)
            if config.kind == "pad_crop":
                left, top = (int(rng.integers(0, 2 * config.pad + 1)) for _ in range(2))
                image = ImageOps.expand(image, config.pad).crop((left, top, left + size[1], top + size[0]))
        return self._augmented(image, rng)

    def of_record(self, source: Source, record: int, rng: np.random.Generator) -> np.ndarray:
        """`self(source.image(record), rng)`, but decoding no more of a file than its crop needs."""
        data = source.bytes(record) if self._config.kind == "random_resized_crop" else None
        if data is None:
            return self(source.image(record), rng)
        resample = self._resampling(rng)
        image = decode_crop_resize(
            data,
            source.name(record),
            self._size,
            lambda image_size: self._box(image_size, rng),
            resample=resample,
            options=self._decode,
            exif=source.exif,
        )
        return self._augmented(image, rng)

    def _resampling(self, rng: np.random.Generator) -> Image.Resampling:
        name = self._config.interpolation
        if name == "random":
            name = "bilinear" if rng.random() < 0.5 else "bicubic"
        return INTERPOLATIONS[name]

    def _box(self, image_size: Size, rng: np.random.Generator) -> Box:
        return random_resized_box(image_size, self._config.scale, self._config.ratio, rng)

    def _augmented(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """The steps after the crop."""
        config = self._config
        if config.hflip and rng.random() < config.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._policy is not None:
            image = self._policy(image, rng)
        if config.color_jitter:
            image = color_jitter(image, config.color_jitter, rng)
        return np.asarray(image)


class _Batches:
    """Random access to this host's batches, counted from 0 over all epochs; what worker processes get a copy of."""

    def __init__(self, source: Source, sampler: EpochSampler, size: Size, transform: TrainTransform, seed: int):
        self._source, self._sampler, self._size, self._transform, self._seed = source, sampler, size, transform, seed

    def __getitem__(self, position: int) -> Batch:
        epoch, records, repeats = self._sampler.batch(position)
        batch = {
            "image": np.zeros((len(records), *self._size, 3), np.uint8),
            "label": np.array([self._source.label(r) for r in records.tolist()], np.int32),
            "mask": np.ones(len(records), bool),
        }
        membership = getattr(self._source, "membership", None)
        if membership is not None:
            batch["members"] = membership[records]
        broken = {}
        fetch_records(self._source, records.tolist())
        for i, (record, repeat) in enumerate(zip(records.tolist(), repeats.tolist(), strict=True)):
            rng = record_rng(self._seed, epoch, record, repeat)
            try:
                batch["image"][i] = self._transform.of_record(self._source, record, rng)
            except DataError as error:
                batch["mask"][i] = False
                broken[record] = str(error)
        return {**batch, "broken": np.array(json.dumps(broken))}


class TrainPipeline(ResumableBatches):
    """This host's training batches, for ever, from any position.

    They are `{"image": (b, H, W, 3) uint8, "label": (b,) int32, "mask": (b,) bool}`, b images of this host, and of
    `MemberSubsets` also "members" (b, S) bool. A record's
    augmentation depends on (seed, epoch, record) alone, the order on (seed, epoch): the sequence is the same for any
    number of workers, and after a restart.

    Args:
      source: the records.
      batch_size: global, over all hosts.
      image_size: (height, width) of the images that come out.
      seed: of the run.
      augment: what happens to an image.
      fill: colour of what a policy moves into the picture (timm: the model's mean).
      repeats: copies of each image in an epoch (repeated augmentation); see `EpochSampler`.
      views: epochs after which the batches repeat; 0 for never.
      workers: processes that decode (grain); 0 decodes in this process.
      max_broken: share of the records that may be unreadable before the run fails.
      host_index: which host this is.
      host_count: how many there are.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: Size,
        seed: int,
        augment: AugmentConfig,
        fill: tuple[int, int, int] = (128, 128, 128),
        repeats: int = 1,
        views: int = 0,
        workers: int = 0,
        max_broken: float = MAX_BROKEN,
        host_index: int = 0,
        host_count: int = 1,
    ):
        sampler = EpochSampler(len(source), batch_size, seed, host_index, host_count, repeats, views)
        identity = {"records": len(source), "batch_size": batch_size, "seed": seed, "repeats": repeats}
        super().__init__(
            _Batches(source, sampler, image_size, TrainTransform(augment, image_size, fill), seed),
            steps_per_epoch=sampler.steps_per_epoch,
            identity=identity | ({"views": views} if views else {}),  # which older checkpoints do not know
            broken=BrokenImages(len(source), max_broken),
            workers=workers,
        )
