"""Opens a stranger's picture: its size first, then its pixels in the sizes that a plan makes of that.

What a file is, its first bytes say; what they do not name never reaches a decoder. Decoding happens in a process of
its own (decoders.py), whose answers are checked as the stranger's that it may have become. Knows no model: the plan is
the caller's. Imports no Pillow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.base.types import PDF_HINT
from freehold.run.pictures import limits
from freehold.run.pictures.decoders import GARBLED, Talk, shared
from freehold.run.pictures.limits import HINT, MAX_BYTES, MAX_PIXELS, MAX_PLANNED, MAX_SIDE

U8 = NDArray[np.uint8]

EXPECTED = "expected PNG, JPEG, GIF, WebP or AVIF"
# How files begin that are read, and those that are refused by name. Formats that begin with a length: `_boxes`.
_READ = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
_REFUSED = {
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"8BPS": "PSD", b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript", b"%PDF": "PDF", b"SIMPLE  =": "FITS", b"BM": "BMP", b"\0\0\1\0": "ICO",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"qoif": "QOI", b"PK\3\4": "ZIP", b"RIFF": "RIFF",
}  # fmt: skip
_HEIF = (b"hei", b"hev", b"mif1", b"msf1")
_TEXT_BYTES = 4096  # in which a text names what it is
_MOST_NOTES, _MOST_CHARS = 8, 300  # that are taken from a decoder

Filter = Literal["bicubic", "bilinear", "lanczos"]


@dataclass(frozen=True, slots=True)
class Resize:
    """A resize by Pillow's kernels, on bytes of eight bits."""

    width: int
    height: int
    filter: Filter


@dataclass(frozen=True, slots=True)
class PictureSize:
    """A picture as it is seen: turned by its EXIF. `notes`: what of the file is not seen."""

    width: int
    height: int
    format: str  # PNG, JPEG, GIF, WebP, AVIF
    notes: tuple[str, ...] = ()


Plan = Callable[[int, int], Sequence[Sequence[Resize]]]


def header(data: bytes) -> PictureSize:
    """Return a picture's size; no pixel of it is decoded.

    Raises UsageError for what is no such file, is damaged in its header or beyond a limit, and where Pillow is missing;
    CapacityExceeded where no process can be started.
    """
    name = _format(data)
    return shared.run(lambda talk: _size(talk, data, name))


def open_picture(data: bytes, plan: Plan) -> tuple[PictureSize, list[U8]]:
    """Return a picture's size, and for each list of resizes in its plan the pixels after the last of them.

    `plan` is called with width and height; an empty list means the picture as it is. Arrays are uint8 [height, width,
    3] in RGB: the first frame, turned by its EXIF, on white. Raises as `header` and `plan`, and UsageError for damaged
    pixels, for a plan beyond MAX_PLANNED, and where time or memory does not suffice. Should the system end the
    processes meanwhile, it is tried again, and `plan` called again.
    """
    name = _format(data)

    def converse(talk: Talk) -> tuple[PictureSize, list[U8]]:
        size = _size(talk, data, name)
        resizes = [list(each) for each in plan(size.width, size.height)]
        sizes = _checked(resizes, size)
        talk.send(json.dumps([[astuple(step) for step in each] for each in resizes]).encode())
        return size, [_pixels(talk, *each) for each in sizes]

    return shared.run(converse)


def _format(data: bytes) -> str:
    """Return Pillow's name of a file's format, by how it begins. Raises UsageError for any that is not read."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"the picture has {len(data):,} bytes; the limit is {MAX_BYTES:,}", HINT)
    if not data:
        raise UsageError(f"the picture is empty; {EXPECTED}")
    if name := _begun(data, _READ) or _boxes(data):
        return name
    refused = _begun(data, _REFUSED) or _text(data)
    what = f"has the format {refused}" if refused else f"begins with {data[:8]!r}"
    raise UsageError(
        f"the picture {what}; {EXPECTED}", PDF_HINT if refused == "PDF" else "save it as PNG or JPEG"
    )


def _begun(data: bytes, beginnings: dict[bytes, str]) -> str:
    return next((name for start, name in beginnings.items() if data.startswith(start)), "")


def _boxes(data: bytes) -> str:
    """Return the name of a format whose first bytes are a length, "" for any other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] != b"ftyp":
        return ""
    brands = data[8 : min(int.from_bytes(data[:4]), _TEXT_BYTES)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    what = "has the format HEIC" if brands.startswith(_HEIF) else "is a video"
    raise UsageError(f"the picture {what}; {EXPECTED}", "save it as PNG or JPEG")


def _text(data: bytes) -> str:
    """Return what a text names itself as, "" for any other."""
    text = data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype")) and b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    return "XML" if text.startswith(b"<?xml") else ""


def _size(talk: Talk, data: bytes, name: str) -> PictureSize:
    """Send a picture, and return its header. Raises UsageError, and as Talk."""
    request = {"format": name, "bytes": len(data), "seconds": limits.SECONDS, "memory": limits.MEMORY}
    talk.send(json.dumps(request).encode())
    talk.send_bytes(data)
    reply = _reply(talk)
    width, height, notes = (reply.get(key, 0) for key in ("width", "height", "notes"))
    is_picture = _is_side(width) and _is_side(height) and width * height <= MAX_PIXELS
    if not (is_picture and isinstance(notes, list)):
        raise UsageError(GARBLED)
    kept = tuple(_plain(note) for note in notes[:_MOST_NOTES])
    return PictureSize(width, height, "WebP" if name == "WEBP" else name, kept)


def _checked(plan: Sequence[Sequence[Resize]], size: PictureSize) -> list[tuple[int, int]]:
    """Return width and height of each array that a plan ends in. Raises UsageError for a plan beyond the limits."""
    total, ends = 0, []
    for resizes in plan:
        sizes = [(each.width, each.height) for each in resizes] or [(size.width, size.height)]
        for width, height in sizes:
            if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
                raise UsageError(
                    f"the picture would be resized to {width:,} x {height:,} pixels; a side may have 1 to {MAX_SIDE:,}"
                )
            total += width * height
        ends.append(sizes[-1])
    if total > MAX_PLANNED:
        raise UsageError(
            f"the picture would be resized to {total:,} pixels in all; the limit is {MAX_PLANNED:,}", HINT
        )
    return ends


def _pixels(talk: Talk, width: int, height: int) -> U8:
    """Return the next array, [height, width, 3]. Raises UsageError for damaged pixels, and as Talk."""
    _reply(talk)
    pixels = np.empty((height, width, 3), np.uint8)
    talk.fill(pixels.reshape(-1).data)
    return pixels


def _reply(talk: Talk) -> dict[str, Any]:
    """Return the next answer. Raises UsageError for a refusal, and as Talk."""
    reply = talk.receive()
    if "error" in reply:
        raise UsageError(_plain(reply["error"]), _plain(reply.get("hint", "")))
    return reply


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _plain(text: Any) -> str:
    """Return a text of the decoder's without what a terminal obeys, and not for ever."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:_MOST_CHARS])
