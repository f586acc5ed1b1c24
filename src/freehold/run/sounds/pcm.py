"""Recordings whose samples are read here: WAV and AIFF, which have them as they are, and FLAC by the native decoder.

Trusts nothing: lengths in a header may lie, so what is there counts, and what was decoded of FLAC is checked by the
file's MD5 (csrc/flac.cpp has the format). Knows bytes and headers; knows no rate that a model wants.
Source: Microsoft's RIFF and WAVEFORMATEXTENSIBLE; Apple's AIFF 1.3 and AIFF-C; ITU-T G.711 for the codes of telephones.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError

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


# --- WAV and AIFF ----------------------------------------------------------------------------------

EXTENSIBLE = 0xFFFE
_NAMES = {2: "ADPCM", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3", 255: "AAC"}
MOST_CHUNKS = 10_000  # of a file, before its samples
OPEN_ENDED = 0xFFFFFFFF  # a length that a program wrote which could not go back
# AIFF-C's kinds: a code, the order of bytes, bits where the header's do not count.
_AIFF = {
    b"NONE": (PCM, ">", 0), b"twos": (PCM, ">", 0), b"sowt": (PCM, "<", 0), b"in24": (PCM, ">", 24),
    b"in32": (PCM, ">", 32), b"fl32": (FLOAT, ">", 32), b"FL32": (FLOAT, ">", 32), b"fl64": (FLOAT, ">", 64),
    b"FL64": (FLOAT, ">", 64), b"ulaw": (MU_LAW, ">", 8), b"ULAW": (MU_LAW, ">", 8), b"alaw": (A_LAW, ">", 8),
    b"ALAW": (A_LAW, ">", 8),
}  # fmt: skip


def is_wav(data: bytes) -> bool:
    """Tell whether bytes begin as WAV does."""
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"


def is_aiff(data: bytes) -> bool:
    """Tell whether bytes begin as AIFF or AIFF-C does."""
    return data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC")


def open_wav(data: bytes) -> Recording:
    """Return a recording of WAV. A file that is cut short gives what is there.

    Raises UsageError for what is not WAV, or of a kind that is not read.
    """
    return recording_of("WAV", *_wav(data))


def read_wav(data: bytes) -> tuple[F32, int]:
    """Return all samples of a WAV file, float32 [frames, channels] from -1 to 1, and their rate. Raises as open_wav."""
    form, raw = _wav(data)
    whole = len(raw) // form.frame * form.frame
    return samples_of(form, raw[:whole]).reshape(-1, form.channels), form.rate


def open_aiff(data: bytes) -> Recording:
    """Return a recording of AIFF or AIFF-C. A file that is cut short gives what is there. Raises as open_wav."""
    form, sound = None, None
    for name, part in _chunks(data, ">"):
        if name == b"COMM":
            form = _aiff_form(part, data[8:12] == b"AIFC")
        elif name == b"SSND" and len(part) >= 8:
            (offset,) = struct.unpack_from(">I", part)
            sound = part[8 + offset :]
    if form is None or sound is None:
        raise _incomplete("AIFF", form is None)
    return recording_of("AIFF", form, sound)


def _wav(data: bytes) -> tuple[PcmForm, memoryview]:
    form, sound = None, None
    for name, part in _chunks(data, "<"):
        if name == b"fmt ":
            form = _form(part)
        elif name == b"data":
            sound = part
            break
    if form is None or sound is None:
        raise _incomplete("WAV", form is None)
    return form, sound


def _incomplete(name: str, is_form: bool) -> UsageError:
    missing = "format" if is_form else "samples"
    return UsageError(f"the {name} file has no {missing}", "it may be cut short: send it whole")


def _chunks(data: bytes, order: str) -> Iterator[tuple[bytes, memoryview]]:
    at, view, count = 12, memoryview(data), 0
    while at + 8 <= len(data):
        if (count := count + 1) > MOST_CHUNKS:
            raise UsageError(f"the file has more than {MOST_CHUNKS:,} chunks", "convert it to FLAC")
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        at += 8
        is_open = name == b"data" and size in (0, OPEN_ENDED)
        end = len(data) if is_open else min(at + size, len(data))
        yield name, view[at:end]
        at = end + (end - at) % 2


def _form(part: memoryview) -> PcmForm:
    if len(part) < 16:
        raise UsageError(f"the WAV file's format has {len(part)} bytes; 16 are needed", "send it whole")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", part)
    if code == EXTENSIBLE and len(part) >= 26:
        (code,) = struct.unpack_from("<H", part, 24)
    if code not in WIDTHS:
        raise UsageError(
            f"the WAV file holds {_NAMES.get(code, f'the code {code}')}", "convert it to PCM or to FLAC"
        )
    return _checked("WAV", PcmForm(code, channels, rate, bits))


def _aiff_form(part: memoryview, is_compressed: bool) -> PcmForm:
    """Return what a COMM chunk states. Its rate is a float of 80 bits: sign and exponent in 16, then 64 of mantissa."""
    if len(part) < (22 if is_compressed else 18):
        raise UsageError(f"the AIFF file's format has {len(part)} bytes; 18 are needed", "send it whole")
    channels, _, bits, exponent, mantissa = struct.unpack_from(">hIhHQ", part)
    shift = 16383 + 63 - exponent
    rate = mantissa >> shift if 0 <= shift < 64 else 0
    kind = bytes(part[18:22]) if is_compressed else b"NONE"
    if kind not in _AIFF:
        raise UsageError(f"the AIFF file holds the kind {kind!r}", "convert it to PCM or to FLAC")
    code, order, width = _AIFF[kind]
    return _checked("AIFF", PcmForm(code, channels, rate, width or (bits + 7) // 8 * 8, order, True))


def _checked(name: str, form: PcmForm) -> PcmForm:
    widths = WIDTHS[form.code]
    if (
        form.bits not in widths
        or not 1 <= form.channels <= MAX_CHANNELS
        or not MIN_RATE <= form.rate <= MAX_RATE
    ):
        raise UsageError(
            f"the {name} file has {form.channels} channels of {form.bits} bits at {form.rate:,} Hz; expected 1 to "
            f"{MAX_CHANNELS} channels of {' or '.join(map(str, widths))} bits at {MIN_RATE:,} to {MAX_RATE:,} Hz",
            "convert it to 16 bits at 16,000 Hz",
        )
    return form


# --- FLAC ------------------------------------------------------------------------------------------

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
