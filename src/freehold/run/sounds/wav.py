"""Reads WAV: numbers of all widths, floats, and both logarithmic codes of telephones.

Trusts nothing: lengths in a header may lie, so what is there counts. Knows bytes; knows no rate that a model wants.
Source: Microsoft's RIFF and WAVEFORMATEXTENSIBLE; ITU-T G.711 for the two codes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError

F32 = NDArray[np.float32]

MAX_CHANNELS, MIN_RATE, MAX_RATE = 64, 1000, 768_000
PCM, FLOAT, A_LAW, MU_LAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_NAMES = {2: "ADPCM", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3", 255: "AAC"}
OPEN_ENDED = 0xFFFFFFFF  # a length that a program wrote which could not go back


@dataclass(frozen=True, slots=True)
class WavForm:
    """What the header states."""

    code: int
    channels: int
    rate: int
    bits: int

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.bits // 8


def is_wav(data: bytes) -> bool:
    """Tell whether bytes begin as WAV does."""
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"


def read_wav(data: bytes) -> tuple[F32, int]:
    """Return the samples, float32 [frames, channels] from -1 to 1, and their rate.

    A file that is cut short gives what is there. Raises UsageError for what is not WAV, or of a kind that is not read.
    """
    form, sound = None, None
    for name, part in _chunks(data):
        if name == b"fmt ":
            form = _form(part)
        elif name == b"data":
            sound = part
            break
    if form is None or sound is None:
        missing = "format" if form is None else "samples"
        raise UsageError(f"the WAV file has no {missing}", "it may be cut short: send it whole")
    whole = len(sound) // form.frame * form.frame
    return _samples(form, sound[:whole]).reshape(-1, form.channels), form.rate


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    at, view = 12, memoryview(data)
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        end = len(data) if name == b"data" and size in (0, OPEN_ENDED) else min(at + size, len(data))
        yield name, view[at:end]
        at = end + (end - at) % 2


def _form(part: memoryview) -> WavForm:
    if len(part) < 16:
        raise UsageError(f"the WAV file's format has {len(part)} bytes; 16 are needed", "send it whole")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", part)
    if code == EXTENSIBLE and len(part) >= 26:
        (code,) = struct.unpack_from("<H", part, 24)
    widths = {PCM: (8, 16, 24, 32), FLOAT: (32, 64), A_LAW: (8,), MU_LAW: (8,)}.get(code)
    if widths is None:
        raise UsageError(
            f"the WAV file holds {_NAMES.get(code, f'the code {code}')}", "convert it to PCM or to FLAC"
        )
    if bits not in widths or not 1 <= channels <= MAX_CHANNELS or not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(
            f"the WAV file has {channels} channels of {bits} bits at {rate:,} Hz; read are 1 to {MAX_CHANNELS} "
            f"channels of {' or '.join(map(str, widths))} bits at {MIN_RATE:,} to {MAX_RATE:,} Hz",
            "convert it to 16 bits at 16,000 Hz",
        )
    return WavForm(code, channels, rate, bits)


def _samples(form: WavForm, raw: memoryview) -> F32:
    """Return values in the order of the file. What is not finite counts as silence."""
    if form.code == FLOAT:
        values = np.frombuffer(raw, f"<f{form.bits // 8}")
        finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        return np.clip(finite, -1, 1).astype(np.float32)
    if form.code in (A_LAW, MU_LAW):
        return _logarithmic(form.code)[np.frombuffer(raw, np.uint8)]
    if form.bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if form.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float32) / np.float32(2**31)
    return np.frombuffer(raw, f"<i{form.bits // 8}").astype(np.float32) / np.float32(2 ** (form.bits - 1))


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
