"""What readers of recordings have in common: pieces of a recording, and samples that lie in a file as they are.

Knows bytes; knows no file's header and no rate that a model wants.
Source: ITU-T G.711 for the codes of telephones.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

MAX_CHANNELS, MIN_RATE, MAX_RATE = 64, 1000, 768_000
PCM, FLOAT, A_LAW, MU_LAW = 1, 3, 6, 7  # as WAV numbers them
WIDTHS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64), A_LAW: (8,), MU_LAW: (8,)}
_PIECE = 1 << 20  # values that are converted at a time


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that has not been decoded yet. Its pieces can be read once; reading them raises what is wrong."""

    form: str  # as a person names it
    rate: int
    channels: int
    frames: int | None  # as the header states; None: it does not, or must not be believed
    pieces: Generator[F32, None, None]  # means of the channels, one piece after another


@dataclass(frozen=True, slots=True)
class PcmForm:
    """How samples lie in a file."""

    code: int  # PCM, FLOAT, A_LAW or MU_LAW
    channels: int
    rate: int
    bits: int
    order: str = "<"  # NumPy's sign of the order of bytes
    is_signed: bool = False  # bytes of PCM with 8 bits

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.bits // 8


def recording_of(name: str, form: PcmForm, raw: memoryview) -> Recording:
    """Return a recording whose samples lie in `raw`; a last frame that is cut short is left out."""
    count = len(raw) // form.frame
    return Recording(name, form.rate, form.channels, count, _means(form, raw, count))


def _means(form: PcmForm, raw: memoryview, count: int) -> Generator[F32, None, None]:
    most = max(1, _PIECE // form.channels)
    for first in range(0, count, most):
        part = raw[first * form.frame : min(first + most, count) * form.frame]
        frames = samples_of(form, part).reshape(-1, form.channels)
        yield frames[:, 0] if form.channels == 1 else frames.mean(axis=1, dtype=np.float32)


def samples_of(form: PcmForm, raw: memoryview) -> F32:
    """Return values from -1 to 1 in the order of the file, float32 [n]. What is not finite counts as silence."""
    if form.code == FLOAT:
        values = np.frombuffer(raw, f"{form.order}f{form.bits // 8}")
        finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        return np.clip(finite, -1, 1).astype(np.float32)
    if form.code in (A_LAW, MU_LAW):
        return _logarithmic(form.code)[np.frombuffer(raw, np.uint8)]
    if form.bits == 8:
        if form.is_signed:
            return np.frombuffer(raw, np.int8).astype(np.float32) / np.float32(128)
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if form.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        place = slice(1, 4) if form.order == "<" else slice(0, 3)
        wide[:, place] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view(f"{form.order}i4").astype(np.float32) / np.float32(2**31)
    values = np.frombuffer(raw, f"{form.order}i{form.bits // 8}")
    return values.astype(np.float32) / np.float32(2 ** (form.bits - 1))


@cache
def _logarithmic(code: int) -> F32:
    """Return what each byte of G.711 stands for: float32 [256]."""
    byte = np.arange(256)
    if code == MU_LAW:
        byte = ~byte & 0xFF
        steps = ((byte & 15) * 8 + 132 << (byte >> 4 & 7)) - 132
        sign = np.where(byte & 128, -1, 1)
    else:
        byte ^= 0x55
        segment = byte >> 4 & 7
        low = (byte & 15) * 16 + 8
        steps = np.where(segment, low + 256 << np.maximum(segment - 1, 0), low)
        sign = np.where(byte & 128, 1, -1)
    return (sign * steps / 32768).astype(np.float32)
