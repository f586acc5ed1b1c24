"""Reads FLAC by the native decoder, and checks what was decoded by the file's MD5.

Knows bytes; knows no rate that a model wants. csrc/flac.cpp has the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.run.sounds.pcm import Recording

F32 = NDArray[np.float32]

_FRAMES = 1 << 18  # samples that are decoded at a time


def flac_at(data: bytes) -> int:
    """Return where FLAC begins in a file, which may have an ID3 tag before it; -1: it is none."""
    if data[:4] == b"fLaC":
        return 0
    if data[:3] != b"ID3" or len(data) < 10 or any(byte & 0x80 for byte in data[6:10]):
        return -1
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte
    at = 10 + size + (10 if data[5] & 0x10 else 0)
    return at if data[at : at + 4] == b"fLaC" else -1


def open_flac(data: bytes) -> Recording:
    """Return a recording of FLAC, decoded as its pieces are read.

    Raises UsageError for metadata that is not valid; its pieces do for frames that are not, for a file that is cut
    short, and for samples that do not match the file's MD5.
    """
    from freehold import _native as native

    file = native.FlacFile(data)

    def pieces() -> Generator[F32, None, None]:
        digest = hashlib.md5(usedforsecurity=False)
        while True:
            mono, raw = file.read(_FRAMES)
            if not len(mono):
                break
            digest.update(raw)
            yield mono
        if any(file.md5) and digest.digest() != file.md5:
            raise UsageError(
                "the FLAC file is damaged: its samples do not match its MD5",
                "send it again, or encode it again",
            )

    return Recording("FLAC", file.rate, file.channels, file.total or None, pieces())
