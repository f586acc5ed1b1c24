"""Writes FLAC by a small encoder, so that tests choose what a file uses: kinds of subframes, partitions, channels."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
FIXED = ((), (1,), (2, -1), (3, -3, 1), (4, -6, 4, -1))


class BitWriter:
    """Bits from high to low."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def put(self, value: int, width: int) -> None:
        """Append the low `width` bits of a number."""
        if width:
            self._parts.append(format(value & (1 << width) - 1, f"0{width}b"))

    def unary(self, zeros: int) -> None:
        self._parts.append("0" * zeros + "1")

    def bytes(self) -> bytes:
        """Return all of them, with zeros to the end of the last byte."""
        bits = "".join(self._parts)
        bits += "0" * (-len(bits) % 8)
        return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


@dataclass
class FlacShape:
    """What a file uses. `kind`: constant, verbatim, fixed (with `order`) or lpc (with `weights`, `shift`)."""

    kind: str = "fixed"
    order: int = 2
    weights: tuple[int, ...] = ()
    shift: int = 0
    precision: int = 15
    method: int = 0
    partition_order: int = 0
    parameter: int | None = 4  # of Rice codes; None: escaped numbers
    assignment: int | None = None  # 8 to 10: left and side, side and right, mid and side
    wasted: int = 0
    blocks: tuple[int, ...] = (4096,)  # sizes, in turn
    metadata: list[tuple[int, bytes]] = field(default_factory=list)
    total: int | None = None  # that the header states
    md5: bytes | None = None


def crc(data: bytes, polynomial: int, width: int) -> int:
    """Return a CRC from zero, high bit first."""
    value, top = 0, 1 << width - 1
    for byte in data:
        value ^= byte << width - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial) if value & top else value << 1
        value &= (1 << width) - 1
    return value


def flac(samples: I64, rate: int = 16_000, bits: int = 16, shape: FlacShape | None = None) -> bytes:
    """Return a file of whole numbers, [n, channels]."""
    shape = shape or FlacShape()
    count, channels = samples.shape
    frames, at, number = [], 0, 0
    while at < count:
        size = shape.blocks[number % len(shape.blocks)]
        frames.append(frame(samples[at : at + size], number, bits, shape))
        at, number = at + size, number + 1
    raw = b"".join(int(v).to_bytes((bits + 7) // 8, "little", signed=True) for v in samples.reshape(-1))
    md5 = hashlib.md5(raw).digest() if shape.md5 is None else shape.md5
    return head(
        rate, channels, bits, count if shape.total is None else shape.total, md5, shape.metadata
    ) + b"".join(frames)


def head(
    rate: int,
    channels: int,
    bits: int,
    total: int,
    md5: bytes = bytes(16),
    more: list[tuple[int, bytes]] | None = None,
) -> bytes:
    """Return what a file has before its frames."""
    fields = rate << 44 | channels - 1 << 41 | bits - 1 << 36 | total
    info = (16).to_bytes(2, "big") + (65535).to_bytes(2, "big") + bytes(6) + fields.to_bytes(8, "big") + md5
    blocks = [(0, info), *(more or [])]
    out = b"fLaC"
    for i, (kind, data) in enumerate(blocks):
        last = 0x80 if i == len(blocks) - 1 else 0
        out += bytes([last | kind]) + len(data).to_bytes(3, "big") + data
    return out


def frame(samples: I64, number: int, bits: int, shape: FlacShape) -> bytes:
    """Return one frame of whole numbers, [n, channels]."""
    size, channels = samples.shape
    out = BitWriter()
    out.put(0xFFF8, 16)
    out.put(7, 4)  # the size in 16 bits
    out.put(0, 4)  # the rate of the head
    assignment = channels - 1 if shape.assignment is None else shape.assignment
    out.put(assignment, 4)
    out.put(0, 4)  # the width of the head, and a reserved bit
    for byte in chr(number).encode("utf-8"):
        out.put(byte, 8)
    out.put(size - 1, 16)
    out.put(crc(out.bytes(), 0x07, 8), 8)
    left, right = samples[:, 0], samples[:, -1]
    sent = {
        8: [left, left - right],
        9: [left - right, right],
        10: [left + right >> 1, left - right],
    }.get(assignment, list(samples.T))
    for i, each in enumerate(sent):
        wide = (assignment == 9 and i == 0) or (assignment in (8, 10) and i == 1)
        _subframe(out, [int(v) for v in each], bits + wide, shape)
    data = out.bytes()
    return data + crc(data, 0x8005, 16).to_bytes(2, "big")


def _subframe(out: BitWriter, samples: list[int], width: int, shape: FlacShape) -> None:
    weights = FIXED[shape.order] if shape.kind == "fixed" else shape.weights
    order = min(len(weights), len(samples))
    kinds = {"constant": 0, "verbatim": 1, "fixed": 8 + order, "lpc": 31 + order}
    out.put(kinds[shape.kind], 7)
    out.put(bool(shape.wasted), 1)
    if shape.wasted:
        out.unary(shape.wasted - 1)
        samples, width = [v >> shape.wasted for v in samples], width - shape.wasted
    if shape.kind in ("constant", "verbatim"):
        for value in samples[:1] if shape.kind == "constant" else samples:
            out.put(value, width)
        return
    for value in samples[:order]:
        out.put(value, width)
    if shape.kind == "lpc":
        out.put(shape.precision - 1, 4)
        out.put(shape.shift, 5)
        for weight in weights[:order]:
            out.put(weight, shape.precision)
    shift = shape.shift if shape.kind == "lpc" else 0
    used = FIXED[order] if shape.kind == "fixed" else weights[:order]
    left = [
        samples[i] - (sum(w * samples[i - 1 - j] for j, w in enumerate(used)) >> shift)
        for i in range(order, len(samples))
    ]
    _residual(out, left, len(samples), order, shape)


def _residual(out: BitWriter, left: list[int], size: int, order: int, shape: FlacShape) -> None:
    out.put(shape.method, 2)
    parts = shape.partition_order if size % (1 << shape.partition_order) == 0 else 0
    out.put(parts, 4)
    at, each = 0, size >> parts
    for part in range(1 << parts):
        count = each - (order if part == 0 else 0)
        values = left[at : at + count]
        at += count
        if shape.parameter is None:
            out.put(31 if shape.method else 15, 5 if shape.method else 4)
            width = max((abs(v).bit_length() + 1 for v in values), default=0)
            out.put(width, 5)
            for value in values:
                out.put(value, width)
            continue
        out.put(shape.parameter, 5 if shape.method else 4)
        for value in values:
            folded = value << 1 if value >= 0 else (-value << 1) - 1
            out.unary(folded >> shape.parameter)
            out.put(folded, shape.parameter)


RNG = np.random.default_rng(3)


def tones(bits: int, channels: int, count: int = 700) -> np.ndarray:
    """Return sines that differ by channel, and a little noise."""
    t = np.arange(count)[:, None] / 40 * (1 + np.arange(channels))
    most = 2 ** (bits - 1) - 1
    values = np.sin(t) * 0.6 * most + RNG.normal(size=(count, channels)) * most / 500
    return np.clip(np.rint(values), -most - 1, most).astype(np.int64)


STEEP = FlacShape("lpc", weights=(1900, -900, 20), shift=10, precision=12)
CASES = {
    "fixed": [(16, 1, FlacShape(order=order, parameter=8)) for order in range(5)],
    "linear": [(16, 2, replace(STEEP, parameter=9)), (24, 2, replace(STEEP, parameter=17, method=1))],
    "order 32": [(16, 1, FlacShape("lpc", weights=(30,) * 32, shift=10, precision=7, parameter=11))],
    "verbatim": [(bits, channels, FlacShape("verbatim")) for bits, channels in ((8, 1), (12, 3), (20, 2), (32, 8))],
    "stereo": [(bits, 2, FlacShape(assignment=a, parameter=bits - 6, method=1)) for a in (8, 9, 10)
               for bits in (16, 32)],
    "partitions": [(16, 1, FlacShape(partition_order=3, blocks=(64, 192, 16), parameter=8))],
    "escaped": [(16, 2, FlacShape(parameter=None, method=m, partition_order=2, blocks=(128,))) for m in (0, 1)],
    "wasted": [(16, 1, FlacShape(wasted=3, parameter=6))],
    "blocks that vary": [(16, 1, FlacShape(blocks=(17, 100, 1, 4096), parameter=8))],
    "metadata": [(16, 1, FlacShape(parameter=8, metadata=[(3, bytes(36)), (6, bytes(70_000)), (1, b"")]))],
    "no total, no digest": [(16, 1, FlacShape(parameter=8, total=0, md5=bytes(16)))],
}  # fmt: skip


def flac_of_every_kind() -> list[bytes]:
    """Return small files, without a digest: a mutation of them is read to its end."""
    return [
        flac(tones(bits, channels, 300), 16_000, bits, replace(shape, md5=bytes(16)))
        for cases in CASES.values()
        for bits, channels, shape in cases
    ]


def plain_of_every_kind() -> list[bytes]:
    """Return small files of WAV and AIFF."""
    form = struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, 4, 16)
    pcm = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", 400) + bytes(range(200)) * 2
    common = struct.pack(">hIhHQ", 1, 100, 16, 16383 + 13, 16_000 << 50) + b"fl32\0\0"
    floats = (
        b"COMM"
        + struct.pack(">I", len(common))
        + common
        + b"SSND"
        + struct.pack(">III", 408, 0, 0)
        + bytes(400)
    )
    return [
        b"RIFF" + struct.pack("<I", 4 + len(pcm)) + b"WAVE" + pcm,
        b"FORM" + struct.pack(">I", 4 + len(floats)) + b"AIFC" + floats,
    ]
