"""Seeded mutations of sound files: what a test can repeat where no fuzzer with coverage is installed."""

from __future__ import annotations

import random
import struct

# Sizes and counts that lie at the edge of a type, or of what a product of two may be.
EDGES = (
    0,
    1,
    2,
    31,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
HEAD = 6000  # bytes at the beginning that most mutations hit: counts, shapes, offsets


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to four changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if out:
            _change(out, rng)
    return bytes(out)


def _change(out: bytearray, rng: random.Random) -> None:
    at = rng.randrange(min(len(out), HEAD) if rng.random() < 0.9 else len(out))
    kind = rng.randrange(6)
    if kind == 0:
        out[at] = rng.randrange(256)
    elif kind == 1:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        width = rng.choice(["<I", "<Q"])
        edge = rng.choice((*EDGES, len(out), rng.randrange(len(out))))
        packed = struct.pack(width, edge % (1 << 8 * struct.calcsize(width)))
        out[at : at + len(packed)] = packed[: len(out) - at]
    elif kind == 3:
        del out[at : at + rng.randrange(1, 64)]
    elif kind == 4:
        out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    else:
        del out[at:]
