"""Reading and writing of picture files of any size, for processing and not for training.

| file                          | pixels                            | notes
| ----------------------------- | --------------------------------- | ------------------------------------------------
| greyscale, black and white    | (H, W) uint8                      | also a palette of greys
| greyscale of 16 bits          | (H, W) uint16                     | PNG, TIFF; "white is zero" is turned round
| colour, palette, YCbCr        | (H, W, 3) uint8                   |
| colour of 16 bits             | (H, W, 3) uint8, the upper 8 bits | Pillow has no more; noted
| CMYK                          | (H, W, 3) uint8                   | by its ICC profile to sRGB, else by Pillow; noted
| any with transparency         | (H, W, 2 or 4), alpha last        | 16-bit greyscale with alpha: upper 8 bits, noted
| 32-bit integers, floats, Lab  | `DataError`                       | no value is white by definition; no RGB
| animation, several pages      | the first                         | noted

Upright is upright: the EXIF orientation is applied to the pixels and removed from the tags, so that no viewer turns the
picture twice or not at all. What else EXIF says about the picture (camera, time, place, exposure, author) and the ICC
profile go into the written file; the thumbnail, which shows the old pixels, does not.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from jaxkd.data.files import atomic_file
from jaxkd.errors import ConfigError, DataError, did_you_mean

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
# Pixels of a side that a format, or in the case of JPEG the library that everybody writes it with, can hold.
LIMITS = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383, "TIFF": 2**31 - 1}
NAMES = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "TIFF": "TIFF"}
GREY16 = "I;16"
SEGMENT = 2**16 - 3  # bytes of EXIF that a JPEG holds
_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF")
_HOLDS_16 = ("PNG", "TIFF")
_ORIENTATION, _EXIF, _GPS, _PHOTOMETRIC, _PREDICTOR = 274, 34665, 34853, 262, 317
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides
# Tags that describe a picture; all others of a TIFF's first directory say how its own pixels are stored.
_DESCRIPTIVE = (269, 270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 33432, 40091, 40092, 40093, 40094, 40095)
_PIXEL_SIZE = (0xA002, 0xA003)
_COLOUR_SPACE = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}  # of an ICC profile -> channels


@dataclass(frozen=True)
class PictureInfo:
    """The header of a picture file.

    Attributes:
      path: of the file.
      height, width: in pixels, upright.
      mode: Pillow's name of what `read_picture` gives: L, LA, RGB, RGBA or I;16.
      notes: sentences on what is not kept.
    """

    path: Path
    height: int
    width: int
    mode: str
    notes: tuple[str, ...] = ()

    @property
    def alpha(self) -> bool:
        """Whether the last channel is transparency."""
        return self.mode in ("LA", "RGBA")


@dataclass(frozen=True)
class Picture:
    """A decoded file.

    Attributes:
      pixels: (H, W) or (H, W, 2 | 3 | 4), uint8 or uint16; see the table of the module.
      mode: as in `PictureInfo`.
      exif: tags that describe it, encoded, without orientation; b"" for none.
      icc: profile of its colours; b"" for none.
    """

    pixels: np.ndarray
    mode: str
    exif: bytes
    icc: bytes


def inspect(path: Path) -> PictureInfo:
    """Reads the header of a file.

    Raises:
      DataError: it is missing, empty, no picture, or of a kind that is not read.
    """
    with _opened(path) as image:
        height, width = image.height, image.width
        # Pillow turns TIFF, size and pixels, by itself; and of PNG it would decode all to look for tags behind.
        tagged = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if tagged and image.getexif().get(_ORIENTATION) in _TURNED:
            height, width = width, height
        return PictureInfo(path, height, width, _mode(image, path), _notes(image))


def read_picture(path: Path) -> Picture:
    """Decodes a file whole, upright.

    Raises:
      DataError: as `inspect`; or it is truncated or damaged.
    """
    with _opened(path) as image:
        mode = _mode(image, path)
        white_is_zero = mode == GREY16 and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        image.load()
        icc = image.info.get("icc_profile") or b""
        exif, orientation = _described(image), image.getexif().get(_ORIENTATION)
        image = _converted(image, mode, icc)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        if len(icc) < 20 or _COLOUR_SPACE.get(icc[16:20]) != (1 if mode in ("L", "LA", GREY16) else 3):
            icc = b""  # it describes other channels than those that are left
        pixels = np.asarray(image)
    if mode == GREY16:
        pixels = pixels.astype(np.uint16, copy=False)  # from the byte order of the file
        pixels = 65535 - pixels if white_is_zero else pixels
    return Picture(pixels, mode, exif, icc)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An opened file; whatever is wrong with it becomes a DataError that names it."""
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's limit guards servers against strangers' files; these are the user's own.
    Image.MAX_IMAGE_PIXELS = None
    try:
        if os.stat(path).st_size == 0:
            raise DataError(f'"{path}" is empty (0 bytes). Fetch or copy it again.')
        with Image.open(path) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f'"{path}" cannot be read ({error.strerror}). Check the path and its permissions.') from None
    # Pillow's readers raise whatever their parsing of a damaged file leads to: OSError, ValueError, struct.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "no picture format is recognised" if reason.startswith("cannot identify") else reason
        raise DataError(f'"{path}" cannot be read as a picture ({reason}). Fetch or copy it again.') from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _raw(image: Image.Image) -> str:
    """How pixels are stored, in Pillow's words, e.g. "RGB;16B"; known until they are loaded."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _mode(image: Image.Image, path: Path) -> str:
    """The mode that the pixels are converted to."""
    mode, transparent = image.mode, "transparency" in image.info
    if mode.startswith(GREY16):
        return GREY16
    if mode in ("1", "L"):
        return "LA" if transparent else "L"
    if mode in ("LA", "La") or _raw(image).startswith("LA"):
        return "LA"
    if mode == "P":
        colours = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return ("L" if (colours == colours[:, :1]).all() else "RGB") + ("A" if transparent else "")
    if mode in ("RGB", "RGBX", "YCbCr", "CMYK"):
        return "RGBA" if transparent and mode == "RGB" else "RGB"
    if mode in ("RGBA", "RGBa", "PA"):
        return "RGBA"
    kind = {"I": "32-bit integers", "F": "floating-point numbers"}.get(mode, f"of the kind {mode}")
    raise DataError(
        f'"{path}" cannot be read as greyscale or RGB: its pixels are {kind}. Convert it to 8 or 16 bits a channel.'
    )


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    raw = _raw(image)
    if ";16" in raw and not image.mode.startswith("I"):
        notes.append("its 16 bits a channel become 8, because Pillow reads 16 bits of plain greyscale only")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a JPEG with a preview behind it
    if frames > 1:
        notes.append(f"only the first of its {frames} pictures is taken")
    if image.mode == "CMYK":
        notes.append("its CMYK becomes RGB")
    return tuple(notes)


def _converted(image: Image.Image, mode: str, icc: bytes) -> Image.Image:
    if mode == GREY16 or image.mode == mode:
        return image
    if image.mode == "CMYK" and icc:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    return image if image.mode == mode else image.convert(mode)


def _described(image: Image.Image) -> bytes:
    """The EXIF tags that stay true of other pixels, encoded; b"" where there are none or they are damaged."""
    with contextlib.suppress(Exception):  # EXIF of cameras breaks its rules in many ways; it is not worth a picture
        old, new, found = image.getexif(), Image.Exif(), False
        for tag in _DESCRIPTIVE:
            if tag in old:
                new[tag] = old[tag]
        for directory in (_EXIF, _GPS):
            tags = {k: v for k, v in old.get_ifd(directory).items() if k not in _PIXEL_SIZE}
            if tags:
                new.get_ifd(directory).update(tags)
                found = True
        if len(new) or found:
            return new.tobytes()
    return b""


def format_of(path: Path) -> str:
    """Pillow's name of the format that the ending of `path` stands for.

    Raises:
      ConfigError: of none that is written.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            f'"{path}" ends in "{path.suffix}", which is no format that is written.'
            f"{did_you_mean(path.suffix.lower(), FORMATS)} Use one of: {', '.join(FORMATS)}."
        )
    return found


def check_writable(info: PictureInfo, target: Path, scale: int) -> None:
    """Makes sure, before any work, that `target` can hold the picture enlarged by `scale`.

    Raises:
      DataError: its format cannot hold so many pixels, transparency or 16 bits; or the memory cannot.
      ConfigError: its ending is of no format.
    """
    kind = format_of(target)
    height, width = scale * info.height, scale * info.width
    what = f'"{info.path}" would become {width:,} x {height:,} pixels'
    if max(height, width) > LIMITS[kind]:
        raise DataError(
            f"{what}, and {NAMES[kind]} holds at most {LIMITS[kind]:,} to a side. Write another format (--format=png "
            "or tiff)."
        )
    if info.alpha and kind not in _HOLDS_ALPHA:
        raise DataError(
            f'"{info.path}" has transparency, and {NAMES[kind]} holds none. Write another format (--format=png, webp '
            "or tiff)."
        )
    if info.mode == GREY16 and kind not in _HOLDS_16:
        raise DataError(
            f'"{info.path}" has 16 bits a pixel, and {NAMES[kind]} holds 8. Write another format (--format=png or '
            "tiff)."
        )
    needed = height * width * (2 if info.mode == GREY16 else 1 if info.mode == "L" else 4)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if there is not None and needed > there:
        raise DataError(
            f"{what}, which take {needed / 2**30:,.0f} GB, and the memory of this machine is {there / 2**30:,.0f} GB. "
            "Cut the picture into pieces first."
        )


@contextlib.contextmanager
def replacing(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to; it gets that name when the block is done, and vanishes if it fails.

    Raises:
      DataError: `target` exists and is not to be replaced; or its folder cannot be written to (raised at once).
    """
    if target.exists() and not overwrite:
        raise DataError(f'"{target}" exists already. Add --overwrite, or choose another --out.')
    try:
        with atomic_file(target) as partial:
            yield partial
    except OSError as error:
        raise unwritable(target, error) from None


def unwritable(target: Path, error: Exception) -> DataError:
    """The error of a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return DataError(
        f'"{target}" cannot be written ({reason}). Check the path, its permissions and the space on the disk.'
    )


def write_picture(
    image: Image.Image, target: Path, partial: Path, *, exif: bytes = b"", icc: bytes = b"", quality: int = 95
) -> tuple[str, ...]:
    """Writes `image` to `partial` in the format of `target`.

    Args:
      image: of a mode of `PictureInfo`.
      target: its ending decides the format; PNG and TIFF are lossless, the latter deflated unless EXIF has details.
      partial: see `replacing`.
      exif, icc: as in `Picture`.
      quality: of JPEG (with full colour resolution) and WebP, 1 to 100; at 100 WebP is lossless.

    Returns:
      Notes on what was left out.

    Raises:
      DataError: the file cannot be written.
    """
    kind = format_of(target)
    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if kind == "PNG":
        options = {"compress_level": 3}  # 6, the default, takes twice as long for a few percent
    elif kind == "JPEG":
        options = {"quality": quality, "subsampling": "4:4:4"}
        if len(exif) > SEGMENT:
            exif, notes = b"", ("its EXIF is left out, because it does not fit into a JPEG",)
    elif kind == "WEBP":
        options = {"lossless": True} if quality == 100 else {"quality": quality}
        icc = icc if icc[16:20] == b"RGB " else b""  # its pixels are always colour
    else:
        big = _raw_bytes(image) > 2**32 - 2**24  # beyond what the offsets of plain TIFF reach
        options = {"compression": "tiff_adobe_deflate", "big_tiff": big}
    options |= {"icc_profile": icc} if icc else {}
    if exif and kind == "TIFF":
        tags = Image.Exif()
        tags.load(exif)
        if any(directory in tags for directory in (_EXIF, _GPS)):
            options["compression"] = "raw"  # Pillow cannot write directories of tags beside compressed pixels
        else:
            tags[_PREDICTOR] = 2
        options["exif"] = tags
    elif kind == "TIFF":
        options["tiffinfo"] = {_PREDICTOR: 2}  # differences of neighbours, which deflate to far less
    elif exif:
        options["exif"] = exif
    try:
        with partial.open("wb") as file:
            image.save(file, kind, **options)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers raise whatever a strange tag leads to
        raise unwritable(target, error) from None
    return notes


def _raw_bytes(image: Image.Image) -> int:
    return image.width * image.height * (2 if image.mode == GREY16 else len(image.getbands()))
