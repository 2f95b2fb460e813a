"""Metadata of a picture file (all except its pixels), read from any format and written to any that can hold it.

| kind                    | PNG           | JPEG           | WebP           | TIFF
| ----------------------- | ------------- | -------------- | -------------- | ---------
| EXIF                    | eXIf          | APP1, 64 KB    | EXIF           | tags
| ICC profile             | iCCP          | APP2           | ICCP, not grey | tag
| XMP                     | iTXt          | APP1, 64 KB    | XMP            | tag
| resolution              | pHYs          | JFIF           | in EXIF        | tags
| text by keywords        | tEXt, iTXt    | left out       | left out       | left out
| comment                 | tEXt          | COM, 64 KB     | left out       | left out
| IPTC (Photoshop)        | left out      | APP13          | left out       | left out
| gamma, primaries        | gAMA, cHRM    | left out       | left out       | left out
| text of a keyword again | left out      | left out       | left out       | left out
| HDR, background, bits   | left out      | left out       | left out       | left out

What is left out is said in a note. Upright is upright: the orientation is removed from EXIF and set to 1 in XMP,
since it is applied to the pixels. The thumbnail of EXIF, which shows the old pixels, is dropped.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxkd.superres.declared_size import chunks_of_png

SEGMENT = 2**16 - 3  # bytes of a JPEG's marker
ORIENTATION = 274
_EXIF, _GPS = 34665, 34853
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH, _CM = 282, 283, 296, 2, 3
_XMP_TAG, _ICC_TAG, _IPTC_TAGS = 700, 34675, (33723, 34377)
# Tags that describe a picture; all others of a TIFF's first directory say how its own pixels are stored.
_DESCRIPTIVE = (269, 270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 33432, 40091, 40092, 40093, 40094, 40095)
_PIXEL_SIZE = (0xA002, 0xA003)
_XMP_KEY = "XML:com.adobe.xmp"
_OLD_EXIF = "Raw profile type exif"  # of ImageMagick's, which Pillow reads as EXIF
_USUAL_GAMMA = (45455).to_bytes(4, "big")  # 1 / 2.2
_UNREAD_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD")
_NAMES = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "TIFF": "TIFF"}


@dataclass(frozen=True)
class Metadata:
    """Metadata of a file that are true of the enlarged picture too.

    Attributes:
      exif: tags that describe it, encoded, without orientation; b"" for none.
      icc: profile of its colours; b"" for none.
      dpi: (horizontal, vertical) pixels an inch in print; () for none.
      xmp: packet of XML; b"" for none.
      comment: of a JPEG or GIF; b"" for none.
      text: keyword -> text of a PNG (`PIL.PngImagePlugin.iTXt` keeps its language).
      iptc: whole markers of a JPEG, b"" for none.
      other: names of what cannot be kept in any format.
      gamma: names and contents of a PNG's chunks that say what its numbers mean.
    """

    exif: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, ...] = ()
    xmp: bytes = b""
    comment: bytes = b""
    text: dict[str, str] = field(default_factory=dict)
    iptc: bytes = b""
    gamma: tuple[tuple[bytes, bytes], ...] = ()
    other: tuple[str, ...] = ()

    def without_icc(self) -> Metadata:
        """The same without a profile, for pixels of another kind of colour."""
        return replace(self, icc=b"")


def read(image: Image.Image) -> Metadata:
    """The metadata of a loaded picture (a PNG's text may stand behind its pixels)."""
    info = image.info
    text = dict(getattr(image, "text", {})) if image.format == "PNG" else {}
    text = {k: v for k, v in text.items() if k not in (_XMP_KEY, _OLD_EXIF)}
    xmp = info.get("xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    comment = info.get("comment") or b""
    segments = [data for name, data in getattr(image, "applist", ()) if name == "APP13"]
    other = ("IPTC",) if any(tag in getattr(image, "tag_v2", {}) for tag in _IPTC_TAGS) else ()
    other += _unread_chunks(image.filename) if image.format == "PNG" else ()
    return Metadata(
        exif=_described(image),
        icc=info.get("icc_profile") or b"",  # None where a PNG's is damaged
        dpi=_resolution(image),
        xmp=re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[0-9]", rb"\g<1>1", xmp),
        comment=comment.encode() if isinstance(comment, str) else bytes(comment),
        text=text,
        iptc=b"".join(b"\xff\xed" + (len(s) + 2).to_bytes(2, "big") + s for s in segments),
        gamma=_gamma(info) if image.format == "PNG" else (),
        other=other,
    )


def _unread_chunks(path: str) -> tuple[str, ...]:
    """Names of the parts of a PNG file that Pillow does not return: some chunks, and repeated texts of a keyword."""
    lost, keywords = [], Counter()
    with open(path, "rb") as file:
        for name, size in chunks_of_png(file):
            if name in _UNREAD_CHUNKS:
                lost.append(name.decode())
            elif name in (b"tEXt", b"zTXt", b"iTXt"):
                keywords[file.read(min(size, 80)).partition(b"\0")[0].decode("latin-1")] += 1
    repeated = sorted(k for k, count in keywords.items() if count > 1)
    return (*lost, *(f"other text ({k})" for k in repeated))


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


def _resolution(image: Image.Image) -> tuple[float, ...]:
    """(horizontal, vertical) dpi; () where none is stated."""
    with contextlib.suppress(Exception):  # as above
        exif, dpi = image.getexif(), image.info.get("dpi", ())
        if image.format == "JPEG" and image.info.get("jfif_unit") not in (1, 2):
            dpi = ()  # Pillow's own guess
        unit = {_INCH: 1.0, _CM: 2.54}.get(exif.get(_RESOLUTION_UNIT, _INCH))
        if not dpi and unit and _X_RESOLUTION in exif:
            dpi = (unit * exif[_X_RESOLUTION], unit * exif.get(_Y_RESOLUTION, exif[_X_RESOLUTION]))
        dpi = tuple(float(x) for x in dpi)
        return dpi if len(dpi) == 2 and all(0 < x < 1e6 for x in dpi) else ()
    return ()


def _gamma(info: dict[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    chunks = []
    if "chromaticity" in info:
        chunks.append((b"cHRM", b"".join(round(100_000 * x).to_bytes(4, "big") for x in info["chromaticity"])))
    if "gamma" in info:
        chunks.append((b"gAMA", round(100_000 * info["gamma"]).to_bytes(4, "big")))
    if "srgb" in info:
        chunks.append((b"sRGB", bytes([info["srgb"]])))
    return tuple(chunks)


def for_format(found: Metadata, kind: str) -> tuple[Metadata, tuple[str, ...]]:
    """The part of `found` that a format ("PNG", "JPEG", "WEBP", "TIFF") can hold, and notes on the rest."""
    lost, large = [], []
    if kind != "PNG":
        lost += [f"text ({', '.join(sorted(found.text))})"] if found.text else []
        lost += ["gamma"] if dict(found.gamma).get(b"gAMA", _USUAL_GAMMA) != _USUAL_GAMMA else []
        found = replace(found, text={}, gamma=())
    if kind != "JPEG":
        lost += ["IPTC"] if found.iptc else []
        found = replace(found, iptc=b"")
    if kind in ("WEBP", "TIFF"):
        lost += ["comment"] if found.comment else []
        found = replace(found, comment=b"")
    if kind == "WEBP":
        if found.icc and found.icc[16:20] != b"RGB ":
            found, lost = found.without_icc(), [*lost, "grey ICC profile"]  # its pixels are always colour
        found = replace(found, exif=_with_resolution(found))
    if kind == "JPEG":
        for name, title, room in (("exif", "EXIF", 0), ("xmp", "XMP", 29), ("comment", "comment", 0)):
            if len(getattr(found, name)) > SEGMENT - room:
                large.append(title)
                found = replace(found, **{name: b""})
    notes = [f"its {', '.join(dict.fromkeys(lost))} is left out, because {_NAMES[kind]} holds none"] if lost else []
    notes += [f"its {', '.join(found.other)} is left out, because jaxkd does not keep it"] if found.other else []
    notes += [f"its {title} is left out, because it does not fit into a JPEG" for title in large]
    return found, tuple(notes)


def _with_resolution(found: Metadata) -> bytes:
    """EXIF that also has the resolution, for a format with no other place for it."""
    if not found.dpi:
        return found.exif
    tags = Image.Exif()
    if found.exif:
        tags.load(found.exif)
    tags[_X_RESOLUTION], tags[_Y_RESOLUTION], tags[_RESOLUTION_UNIT] = *found.dpi, _INCH
    return tags.tobytes()


def png_info(found: Metadata) -> PngInfo:
    """Text, XMP and colour chunks for Pillow's writer; EXIF, profile and resolution are options of their own."""
    chunks = PngInfo()
    for name, data in found.gamma:
        chunks.add(name, data)
    for key, value in found.text.items():
        with contextlib.suppress(UnicodeError):  # a keyword that is not Latin-1 breaks the format's rules
            chunks.add_text(key, value)
    if found.xmp:
        chunks.add_itxt(_XMP_KEY, found.xmp)
    if found.comment:
        chunks.add_text("Comment", found.comment.decode("utf-8", "replace"))
    return chunks


def png_chunks(found: Metadata) -> list[tuple[bytes, bytes]]:
    """All of it as chunks (name, content) that may stand before the pixels."""
    colour, text = [], []
    for name, data, _ in png_info(found).chunks:
        (text if name.endswith(b"Xt") else colour).append((name, data))
    if found.icc:
        colour = [(n, d) for n, d in colour if n != b"sRGB"]
        colour.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(found.icc)))
    if found.dpi:
        sides = [round(x / 0.0254).to_bytes(4, "big") for x in found.dpi]
        colour.append((b"pHYs", b"".join(sides) + b"\x01"))
    if found.exif:
        colour.append((b"eXIf", found.exif.removeprefix(b"Exif\0\0")))
    return colour + text


def tiff_tags(found: Metadata) -> tuple[dict[int, Any], bool]:
    """Tags of a TIFF's first directory, and whether some hold a directory of their own (as a dict)."""
    exif = Image.Exif()
    if found.exif:
        exif.load(found.exif)
    tags: dict[int, Any] = {tag: exif[tag] for tag in exif if tag not in (_EXIF, _GPS)}
    nested = {tag: dict(exif.get_ifd(tag)) for tag in (_EXIF, _GPS) if tag in exif}
    if found.dpi:
        tags |= {_X_RESOLUTION: found.dpi[0], _Y_RESOLUTION: found.dpi[1], _RESOLUTION_UNIT: _INCH}
    if found.xmp:
        tags[_XMP_TAG] = found.xmp
    if found.icc:
        tags[_ICC_TAG] = found.icc
    return tags | nested, bool(nested)
