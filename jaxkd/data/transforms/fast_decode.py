"""Encoded image -> resized crop, decoding no more of it than the crop needs.

A RandomResizedCrop throws away half of an image on average. libjpeg-turbo can leave that half out: rows below the crop
are not read, rows above are read but not transformed, columns beside it likewise. `DecodeOptions.region` asks for that.
It changes no pixel: upsampling of chroma looks one sample past the crop's edge, so one more MCU is decoded to its left
and right and cut off again (without it, 119 of 910 random crops of `imagenet_originals` differ, by up to 18
grey levels; with it, none of 2,730). It needs a shared library of TurboJPEG 3; the extra `turbo` brings one.

`DecodeOptions.dct_scaling` lets the JPEG's inverse DCT halve, quarter or eighth the image where the crop is that much
larger than what comes out, as Pillow's `draft`. It changes pixels; see there.

Everything that is not a plain JPEG (progressive, arithmetic coding, CMYK, other formats, damaged files, ...) is left to
Pillow by way of `decode_rgb`, so it becomes, or says, exactly what it would without these options.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxkd.data.transforms.crops import Box, Size
from jaxkd.data.transforms.decode import MAX_PIXELS, decode_rgb
from jaxkd.errors import ConfigError, DataError, check_choice

_LOG = logging.getLogger(__name__)

# Names and numbers of turbojpeg.h
_DECOMPRESS = 1
_PIXELS_RGB = 0
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS = 0, 4, 5, 6, 7, 8
_PROGRESSIVE, _ARITHMETIC, _LOSSLESS = 12, 14, 15
_COLOURS_CMYK = 3  # and YCCK is 4; below are RGB, YCbCr and grey
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8}  # of 4:4:4, 4:2:2, 4:2:0 and grey; others are rare, and not tested

REGION_DECODING = ("auto", "on", "off")
_FACTORS = (8, 4, 2)


class _Region(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("x", "y", "w", "h"))


class _Scale(ctypes.Structure):
    _fields_ = (("num", ctypes.c_int), ("denom", ctypes.c_int))


@dataclass(frozen=True)
class DecodeOptions:
    """Settings for decoding JPEG files. The defaults give Pillow's pixels."""

    # decode only the crop; the same pixels. "auto": where TurboJPEG 3 is installed; "on": fail where it is not;
    # "off": never.
    region: str = "auto"
    # shrink by 2, 4 or 8 while decoding where the crop stays at least as large as what comes out. It changes
    # pixels, since the DCT does a part of what the bicubic filter did: on `imagenet_originals`, at 224 x 224 and
    # for crops of 8% to 100%, it applies to 281 of 2,730 crops (those of 500-pixel images are seldom large
    # enough); over these the mean absolute difference is 1.04 grey levels, and the largest of a crop is 18 in the
    # median, 75 at worst. With and without `region`, its pixels are the same.
    dct_scaling: bool = False

    def __post_init__(self) -> None:
        check_choice("region", self.region, REGION_DECODING)
        if self.region == "on" and (problem := _library()[1]):
            raise ConfigError(
                f'region="on" needs TurboJPEG 3, which was not found: {problem}. '
                "Install it with pip install 'jaxkd[turbo]', or use \"auto\", which then decodes "
                "with Pillow: the same pixels, more slowly."
            )


def region_decoding() -> str:
    """Path of the library that `DecodeOptions(region="auto")` uses, or the reason why it finds none; for logs."""
    library, problem = _library()
    return problem or str(library._name)


def decode_crop_resize(
    data: bytes,
    name: str,
    size: Size,
    choose: Callable[[Size], Box],
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    options: DecodeOptions = DecodeOptions(),
    exif: bool = False,
) -> Image.Image:
    """The image of an encoded file, cropped, then resized; by default the pixels of Pillow's decode, crop and resize.

    Args:
      data: content of the file.
      name: what errors call it.
      size: (height, width) that comes out.
      choose: (height, width) of the image -> the box to crop; called once.
      resample: how it is resized.
      options: how it is decoded.
      exif: turn it as its EXIF orientation says; then an image that has any EXIF is decoded by Pillow as a whole.

    Returns:
      RGB.
    """
    box: Box | None = None

    def choose_once(image_size: Size) -> Box:
        nonlocal box
        box = choose(image_size) if box is None else box
        return box

    image = None
    # Pillow refuses a truncated file for any crop, so the shortcuts must not accept it.
    if data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") and not (exif and b"Exif" in data):
        if options.region != "off" and _library()[0] is not None:
            image = _by_turbojpeg(data, size, choose_once, resample, options.dct_scaling)
        if image is None and options.dct_scaling:
            image = _by_draft(data, size, choose_once, resample)
    if image is None:
        image = decode_rgb(data, name, exif=exif)
        # Crop, then resize: `resize(box=...)` would let pixels outside the box bleed in.
        image = image.crop(choose_once((image.height, image.width))).resize((size[1], size[0]), resample)
    return image


class _Part(NamedTuple):
    """A box in an image that is shrunk by `factor`."""

    box: Box  # the pixels that show some of it
    inside: tuple[float, float, float, float]  # where it lies in them


def _shrunk(box: Box, factor: int) -> _Part:
    left, upper, right, lower = box
    x, y = left // factor, upper // factor
    inside = (left / factor - x, upper / factor - y, right / factor - x, lower / factor - y)
    return _Part((x, y, -(-right // factor), -(-lower // factor)), inside)


def _factor(box: Box, size: Size) -> int:
    """The largest by which the box may shrink without getting smaller than `size`; 1 where none."""
    width, height = box[2] - box[0], box[3] - box[1]
    return next((f for f in _FACTORS if width >= f * size[1] and height >= f * size[0]), 1)


def _by_draft(data: bytes, size: Size, choose: Callable[[Size], Box], resample: Image.Resampling) -> Image.Image | None:
    """DCT scaling by Pillow; None where it does not apply or the file is not in order."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "RGB") or image.width * image.height > MAX_PIXELS:
                return None
            box = choose((image.height, image.width))
            factor = _factor(box, size)
            if factor == 1:
                return None
            width, height = image.size
            image.draft(image.mode, (width // factor, height // factor))
            if image.size != (-(-width // factor), -(-height // factor)):
                return None
            part = _shrunk(box, factor)
            return image.convert("RGB").crop(part.box).resize((size[1], size[0]), resample, part.inside)
    except Exception:  # decode_rgb raises the error for a broken file
        return None


def _by_turbojpeg(
    data: bytes, size: Size, choose: Callable[[Size], Box], resample: Image.Resampling, dct_scaling: bool
) -> Image.Image | None:
    """Region decoding; None where TurboJPEG would not give Pillow's pixels or the file is not in order."""
    decoder = _decoder()
    frame = decoder.frame(data)
    if frame is None:
        return None
    box = choose((frame.height, frame.width))
    factor = _factor(box, size) if dct_scaling else 1
    if factor == 1:
        crop = decoder.crop(data, frame, box, 1)
        return crop and crop.resize((size[1], size[0]), resample)
    part = _shrunk(box, factor)
    crop = decoder.crop(data, frame, part.box, factor)
    return crop and crop.resize((size[1], size[0]), resample, part.inside)


class _Frame(NamedTuple):
    height: int
    width: int
    mcu_width: int


class _Decoder:
    """One TurboJPEG instance and its output buffer; for one thread."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self._handle: int | None = None
        self._buffer = bytearray()
        self._renew()

    def _renew(self) -> None:
        """A new instance: after an error in a header, TurboJPEG 2.1.92 returns the same one for every later file."""
        if self._handle:
            self._library.tj3Destroy(self._handle)
        self._handle = self._library.tj3Init(_DECOMPRESS)
        self._library.tj3Set(self._handle, _STOP_ON_WARNING, 1)

    def __del__(self) -> None:
        if self._handle:
            self._library.tj3Destroy(self._handle)

    def frame(self, data: bytes) -> _Frame | None:
        """Size and layout, or None where only Pillow should decode it."""
        if self._library.tj3DecompressHeader(self._handle, data, len(data)):
            self._renew()
            return None
        get = self._library.tj3Get
        width, height = get(self._handle, _WIDTH), get(self._handle, _HEIGHT)
        mcu_width = _MCU_WIDTH.get(get(self._handle, _SUBSAMPLING))
        # Progressive files may smooth between blocks, which differs between versions and at the border of a region.
        odd = any(get(self._handle, p) > 0 for p in (_PROGRESSIVE, _ARITHMETIC, _LOSSLESS))
        colours, precision = get(self._handle, _COLOURS), get(self._handle, _PRECISION)
        if mcu_width is None or odd or precision != 8 or colours >= _COLOURS_CMYK or width * height > MAX_PIXELS:
            return None
        return _Frame(height, width, mcu_width)

    def crop(self, data: bytes, frame: _Frame, box: Box, factor: int) -> Image.Image | None:
        """The box of the image whose `frame` was just read, shrunk by `factor`; None where the file is not in order."""
        library, handle = self._library, self._handle
        # A region starts at an MCU. One more on each side, because upsampling looks past the border; above and below,
        # the decoder keeps the rows that it needs for that.
        step = max(frame.mcu_width // factor, 1)
        left, right = max(box[0] // step - 1, 0) * step, min(box[2] + step, -(-frame.width // factor))
        width, height, stride = box[2] - box[0], box[3] - box[1], 3 * (right - left)
        if len(self._buffer) < stride * height:
            self._buffer = bytearray(stride * height)
        buffer = (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer)
        if (
            library.tj3SetScalingFactor(handle, _Scale(1, factor))
            or library.tj3SetCroppingRegion(handle, _Region(left, box[1], right - left, height))
            or library.tj3Decompress8(handle, data, len(data), buffer, 0, _PIXELS_RGB)
        ):
            return None
        pixels = memoryview(self._buffer)[3 * (box[0] - left) : stride * height]
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", stride, 1)


_THREAD = threading.local()


def _decoder() -> _Decoder:
    decoder = getattr(_THREAD, "decoder", None)
    if decoder is None:
        decoder = _THREAD.decoder = _Decoder(_library()[0])
    return decoder


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """TurboJPEG 3, or why it cannot be used; that of the extra `turbo`, else the system's."""
    names = [*_bundled(), "libturbojpeg.so.0", "libturbojpeg.0.dylib", "turbojpeg.dll"]
    problem = ""  # of the first library that was found
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if not hasattr(library, "tj3SetCroppingRegion"):
            problem = problem or f"{name} is older than version 3"
            continue
        _declare(library)
        if not _same_pixels(library):
            problem = problem or f"{name} decodes to other pixels than Pillow's JPEG library"
            continue
        _LOG.debug("JPEG regions are decoded by %s", name)
        return library, ""
    return None, problem or "no shared library named libturbojpeg was found"


def _bundled() -> list[str]:
    """Paths of the library in the wheel of the PyPI package `turbojpeg`."""
    try:
        distribution = importlib.metadata.distribution("turbojpeg")
    except importlib.metadata.PackageNotFoundError:
        return []
    # Not the extension module of the same name, which is why the name starts with "lib" (or is a .dll).
    files = (f for f in distribution.files or () if f.name.startswith("libturbojpeg") or f.name.endswith(".dll"))
    return [str(f.locate()) for f in files]


def _declare(library: ctypes.CDLL) -> None:
    handle, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, result, *arguments in (
        ("tj3Init", handle, integer),
        ("tj3Destroy", None, handle),
        ("tj3Set", integer, handle, integer, integer),
        ("tj3Get", integer, handle, integer),
        ("tj3DecompressHeader", integer, handle, ctypes.c_char_p, size),
        ("tj3SetScalingFactor", integer, handle, _Scale),
        ("tj3SetCroppingRegion", integer, handle, _Region),
        ("tj3Decompress8", integer, handle, ctypes.c_char_p, size, ctypes.c_void_p, integer, integer),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _same_pixels(library: ctypes.CDLL) -> bool:
    """Whether it decodes as the library that Pillow was built with, which need not be libjpeg-turbo."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    picture, box = Image.fromarray(noise).resize((51, 37), Image.Resampling.BICUBIC), (18, 19, 47, 33)
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80, subsampling=subsampling)
        decoder = _Decoder(library)
        frame = decoder.frame(file.getvalue())
        crop = frame and decoder.crop(file.getvalue(), frame, box, 1)
        try:
            expected = decode_rgb(file.getvalue(), "test picture").crop(box)
        except DataError:
            return False
        if crop is None or crop.tobytes() != expected.tobytes():
            return False
    return True
