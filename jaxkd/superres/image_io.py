"""Reading and writing of picture files of any size, for processing and not for training.

| file                          | pixels                       | notes
| ----------------------------- | ---------------------------- | ------------------------------------------------
| greyscale, black and white    | (H, W) uint8                 | also a palette of greys
| greyscale of 16 bits          | (H, W) uint16                | PNG, TIFF; "white is zero" is turned round
| colour, palette, YCbCr        | (H, W, 3) uint8              |
| colour of 16 bits             | (H, W, 3) uint16             | PNG, TIFF; see `sixteen_bits`
| CMYK                          | (H, W, 3) uint8              | by its ICC profile to sRGB, else by Pillow; noted
| any with transparency         | (H, W, 2 or 4), alpha last   | also a colour that stands for transparency
| 32-bit integers, floats, Lab  | `DataError`                  | no value is white by definition; no RGB
| animation, several pages      | the first                    | noted

Upright is upright: the EXIF orientation is applied to the pixels and removed from the tags, so that no viewer turns the
picture twice or not at all. For the rest beside the pixels see `metadata`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from jaxkd.data.files import atomic_file
from jaxkd.errors import ConfigError, DataError, did_you_mean
from jaxkd.superres import metadata, sixteen_bits
from jaxkd.superres.declared_size import check_declared_size
from jaxkd.superres.metadata import Metadata

# Endings of files that are written, with Pillow's name of the format, and endings of those that are only read.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
FORMATS |= {".jfif": "JPEG", ".jpe": "JPEG"}
READ_ONLY = (".bmp", ".dib", ".gif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2")
# Pixels of a side that a format, or in the case of JPEG the library that everybody writes it with, can hold.
LIMITS = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383, "TIFF": 2**31 - 1}
NAMES = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "TIFF": "TIFF"}
GREY16 = "I;16"
BIG = 2**32 - 2**24  # bytes of pixels beyond what the offsets of plain TIFF reach
_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF")
_HOLDS_16 = ("PNG", "TIFF")
_BYTES = {"L": 1, GREY16: 2, "LA;16": 4, "RGB;16": 6, "RGBA;16": 8}  # a pixel in memory; 4 of other modes
_PHOTOMETRIC, _PREDICTOR, _PLANAR, _SEPARATE = 262, 317, 284, 2
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides
_COLOUR_SPACE = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}  # of an ICC profile -> channels


@dataclass(frozen=True)
class PictureInfo:
    """The header of a picture file.

    Attributes:
      path: of the file.
      height, width: in pixels, upright.
      mode: of what `read_picture` gives: L, LA, RGB, RGBA, I;16 (as Pillow), LA;16, RGB;16 or RGBA;16.
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
        return self.mode.startswith(("LA", "RGBA"))


@dataclass(frozen=True)
class Picture:
    """A decoded file.

    Attributes:
      pixels: (H, W) or (H, W, 2 | 3 | 4), uint8 or uint16; see the table of the module.
      mode: as in `PictureInfo`.
      metadata: all beside the pixels.
    """

    pixels: np.ndarray
    mode: str
    metadata: Metadata


def inspect(path: Path) -> PictureInfo:
    """Reads the header of a file.

    Raises:
      DataError: it is missing, empty, no picture, or of a kind that is not read.
    """
    with _opened(path) as image:
        height, width = image.height, image.width
        # Pillow turns TIFF, size and pixels, by itself; and of PNG it would decode all to look for tags behind.
        tagged = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if tagged and image.getexif().get(metadata.ORIENTATION) in _TURNED:
            height, width = width, height
        return PictureInfo(path, height, width, _mode(image, path), _notes(image))


def read_picture(path: Path) -> Picture:
    """Decodes a file whole, upright.

    Raises:
      DataError: as `inspect`; or it is truncated or damaged.
    """
    with _opened(path) as image:
        check_declared_size(image, path)
        mode = _mode(image, path)
        if mode in sixteen_bits.MODES:
            pixels, image = _read_sixteen_bits(image, path)
        else:
            white_is_zero = mode == GREY16 and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
            image.load()
            pixels = np.asarray(_converted(image, mode, image.info.get("icc_profile") or b""))
            if mode == GREY16:
                pixels = pixels.astype(np.uint16, copy=False)  # from the byte order of the file
                pixels = 65535 - pixels if white_is_zero else pixels
        about, orientation = metadata.read(image), image.getexif().get(metadata.ORIENTATION)
    if orientation in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    if len(about.icc) < 20 or _COLOUR_SPACE.get(about.icc[16:20]) != (1 if mode.startswith(("L", GREY16)) else 3):
        # It describes other channels than those that are left. That of CMYK was applied to the pixels.
        lost = about.icc and about.icc[16:20] != b"CMYK"
        about = replace(about, icc=b"", other=about.other + (("ICC profile",) if lost else ()))
    return Picture(pixels, mode, about)


def _read_sixteen_bits(image: Image.Image, path: Path) -> tuple[np.ndarray, Image.Image]:
    """(H, W, C) uint16 of a picture with colour or transparency, and the loaded image."""
    if getattr(image, "tag_v2", {}).get(_PLANAR) != _SEPARATE:
        return sixteen_bits.read(lambda: _open(path))
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f'"{path}" keeps each of its 16-bit channels apart, which needs tifffile. Install it with pip install '
            "'jaxkd[tiff]', or save the file with interleaved channels."
        ) from None
    pixels = tifffile.imread(path, key=0)
    pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, -1)).astype(np.uint16)
    return sixteen_bits.unassociated(pixels) if sixteen_bits.is_associated(image) else pixels, image


def _open(path: Path) -> Image.Image:
    with sixteen_bits.grey_alpha_tiff():
        return Image.open(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An opened file; whatever is wrong with it becomes a DataError that names it."""
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's limit guards servers against strangers' files; these are the user's own.
    Image.MAX_IMAGE_PIXELS = None
    try:
        if os.stat(path).st_size == 0:
            raise DataError(f'"{path}" is empty (0 bytes). Fetch or copy it again.')
        with _open(path) as image:
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


def _mode(image: Image.Image, path: Path) -> str:
    """The mode that the pixels are converted to."""
    mode, transparent = image.mode, "transparency" in image.info
    deep = sixteen_bits.sixteen_bit_mode(image)
    if deep:
        return deep
    if mode.startswith(GREY16) or (mode == "I" and image.format == "PPM"):  # a PGM of more than 8 bits
        return GREY16
    if mode in ("1", "L"):
        return "LA" if transparent else "L"
    if mode in ("LA", "La"):
        return "LA"
    if mode == "P":
        return ("L" if _palette_is_grey(image) else "RGB") + ("A" if transparent else "")
    if mode in ("RGB", "RGBX", "YCbCr", "CMYK"):
        return "RGBA" if transparent and mode == "RGB" else "RGB"
    if mode in ("RGBA", "RGBa", "PA"):
        return "RGBA"
    kind = {"I": "32-bit integers", "F": "floating-point numbers"}.get(mode, f"of the kind {mode}")
    raise DataError(
        f'"{path}" cannot be read as greyscale or RGB: its pixels are {kind}. Convert it to 8 or 16 bits a channel.'
    )


def _palette_is_grey(image: Image.Image) -> bool:
    """Whether the palette of an opened file holds greys only; the pixels are not decoded."""
    if image.palette is None:
        return True  # Pillow then takes one of all greys
    one = Image.new("P", (1, 1))
    one.palette = image.palette.copy()  # `getpalette` of the file's own image would decode it
    colours = np.array(one.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if sixteen_bits.loses_bits(image):
        notes.append(f"more than 8 bits a channel are reduced to 8, because Pillow reads no more of {image.format}")
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
    if info.mode.endswith(";16") and kind not in _HOLDS_16:
        raise DataError(
            f'"{info.path}" has 16 bits a channel, and {NAMES[kind]} holds 8. Write another format (--format=png or '
            "tiff)."
        )
    needed = height * width * _BYTES.get(info.mode, 4)
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
    image: Image.Image | np.ndarray,
    target: Path,
    partial: Path,
    *,
    about: Metadata | None = None,
    quality: int = 95,
) -> tuple[str, ...]:
    """Writes `image` to `partial` in the format of `target`.

    Args:
      image: of a mode of Pillow in `PictureInfo`, or (H, W, C) uint16 of one of `sixteen_bits.MODES`.
      target: its ending decides the format; PNG and TIFF are lossless, the latter deflated, but of 8 bits only where
        EXIF has no details.
      partial: see `replacing`.
      about: all beside the pixels.
      quality: of JPEG (with full colour resolution) and WebP, 1 to 100; at 100 WebP is lossless.

    Returns:
      Notes on what was left out.

    Raises:
      DataError: the file cannot be written.
    """
    kind = format_of(target)
    about, notes = metadata.for_format(about or Metadata(), kind)
    try:
        with partial.open("wb") as file:
            if isinstance(image, Image.Image):
                image.save(file, kind, **_options(image, kind, about, quality))
            elif kind == "PNG":
                sixteen_bits.write_png(file, image, metadata.png_chunks(about))
            else:
                sixteen_bits.write_tiff(file, image, metadata.tiff_tags(about)[0], big=image.nbytes > BIG)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers raise whatever a strange tag leads to
        raise unwritable(target, error) from None
    return notes


def _options(image: Image.Image, kind: str, about: Metadata, quality: int) -> dict[str, Any]:
    """Options of Pillow's writer."""
    options: dict[str, Any] = {}
    if kind == "TIFF":
        tags, nested = metadata.tiff_tags(about)
        # Pillow cannot write directories of tags beside compressed pixels. Differences of neighbours deflate far more.
        options["compression"] = "raw" if nested else "tiff_adobe_deflate"
        options["tiffinfo"] = tags if nested else tags | {_PREDICTOR: 2}
        return options | {"big_tiff": image.width * image.height * _BYTES.get(image.mode, 4) > BIG}
    if kind == "PNG":
        options = {"compress_level": sixteen_bits.LEVEL, "pnginfo": metadata.png_info(about)}
    elif kind == "JPEG":
        options = {"quality": quality, "subsampling": "4:4:4", "comment": about.comment, "extra": about.iptc}
    else:
        options = {"lossless": True} if quality == 100 else {"quality": quality}
    if kind in ("PNG", "JPEG") and about.dpi:
        options["dpi"] = about.dpi
    if kind != "PNG" and about.xmp:
        options["xmp"] = about.xmp
    return options | ({"icc_profile": about.icc} if about.icc else {}) | ({"exif": about.exif} if about.exif else {})
