"""Reads the headers of WAV and AIFF, whose samples lie in the file as they are.

Trusts nothing: lengths in a header may lie, so what is there counts. Knows bytes; knows no rate that a model wants.
Source: Microsoft's RIFF and WAVEFORMATEXTENSIBLE; Apple's AIFF 1.3 and AIFF-C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.run.sounds.pcm import (
    A_LAW,
    FLOAT,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    MU_LAW,
    PCM,
    WIDTHS,
    PcmForm,
    Recording,
    recording_of,
    samples_of,
)

F32 = NDArray[np.float32]

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
            f"the {name} file has {form.channels} channels of {form.bits} bits at {form.rate:,} Hz; read are 1 to "
            f"{MAX_CHANNELS} channels of {' or '.join(map(str, widths))} bits at {MIN_RATE:,} to {MAX_RATE:,} Hz",
            "convert it to 16 bits at 16,000 Hz",
        )
    return form
