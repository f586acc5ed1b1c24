"""Pictures that hurt, made on the spot: what Pillow does not write is put together here, chunk by chunk."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

U8 = NDArray[np.uint8]

HAS_AVIF = features.check("avif")
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types
ORIENTATION = 0x0112
ANIMATED = "an animation: only its first frame is used"


def pattern(width: int = 12, height: int = 7, channels: int = 3) -> U8:
    """Return pixels of which no two rows, columns or turns are equal."""
    values = np.arange(width * height * channels) * 37 + np.arange(width * height * channels) // 11
    return (values % 251).astype(np.uint8).reshape(height, width, channels)


def saved(pixels: U8, name: str, mode: str | None = None, **options: Any) -> bytes:
    """Return pixels as a file that Pillow writes; `mode`: converted to it first."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, name, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> U8:
    """Return what Pillow makes of a file whose pixels need nothing else."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def with_exif(pixels: U8, name: str, orientation: Any, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(pixels, name, exif=exif, **options)


def turned(pixels: U8, orientation: int) -> U8:
    """Return what EXIF's orientation says, by its definition: where row 0 and column 0 are seen."""
    mirrored, across = pixels[:, ::-1], pixels.swapaxes(0, 1)
    return {
        1: pixels, 2: mirrored, 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1],
    }[orientation]  # fmt: skip


def on_white(pixels: U8) -> U8:
    """Return RGBA pixels on white, rounded to the nearest."""
    colour, alpha = pixels[..., :3].astype(int), pixels[..., 3:].astype(int)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def grey(values: Any) -> U8:
    """Return [height, width] values as RGB."""
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def animation(frames: Sequence[U8], name: str, **options: Any) -> bytes:
    images = [Image.fromarray(each) for each in frames]
    file = io.BytesIO()
    images[0].save(file, name, save_all=True, append_images=images[1:], duration=100, **options)
    return file.getvalue()


# --- PNG, chunk by chunk ----------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Return a PNG; `rows` has each row's filter byte; `before` and `after` are chunks around the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows, 9)) + after + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + body


def rows_of(values: Any, dtype: str = "u1") -> bytes:
    """Return rows of [height, ...] values, without a filter."""
    return b"".join(b"\0" + np.ascontiguousarray(row).astype(dtype).tobytes() for row in values)


def packed_rows(values: Any, bits: int) -> bytes:
    """Return rows of [height, width] values of less than eight bits."""
    out = b""
    for row in values:
        text = "".join(f"{int(each):0{bits}b}" for each in row)
        text += "0" * (-len(text) % 8)
        out += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    return out


def adam7(pixels: U8) -> bytes:
    """Return an interlaced PNG."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    parts = (pixels[y::down, x::right] for x, y, right, down in passes)
    rows = b"".join(rows_of(part) for part in parts if part.size)
    return png(pixels.shape[1], pixels.shape[0], 8, RGB, rows, interlaced=True)


def exif_block(orientation: int) -> bytes:
    """Return EXIF as PNG's eXIf has it, with an orientation alone."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", ORIENTATION, 3, 1, orientation) + bytes(4)


# --- bombs: small on disk ---------------------------------------------------------------------------------------------


def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG that states a size, and has rows of nothing for a part of it."""
    return png(width, height, 8, RGB, bytes(1 << 20))


def png_of_zeros(width: int, height: int) -> bytes:
    """Return a whole PNG, all black."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND")


def jpeg_stating(width: int, height: int) -> bytes:
    """Return a JPEG whose header states another size than its pixels have."""
    data = bytearray(saved(pattern(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_stating(width: int, height: int) -> bytes:
    data = bytearray(saved(pattern(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_stating(width: int, height: int) -> bytes:
    """Return a WebP whose canvas has a size, around a small picture."""
    inner = saved(pattern(), "WEBP", lossless=True)[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(side: int, count: int) -> bytes:
    """Return a progressive JPEG whose last scan is there many times: each takes a pass over all of its blocks."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


def many_exif_entries(count: int, size: int) -> bytes:
    """Return a JPEG whose EXIF has entries that all name the same bytes."""
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", count)
    block += b"".join(struct.pack("<HHII", 1 + n, 7, size, 0) for n in range(count)) + bytes(4)
    parts = [block[i : i + 65_000] for i in range(0, len(block), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in parts)
    data = saved(pattern(), "JPEG")
    return data[:2] + segments + data[2:]
