"""Bytes of a recording become samples at 16 kHz; forms are known by what a file begins with, never by its name.

Knows forms and limits; knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.run.sounds.resampling import resampled
from freehold.run.sounds.wav import is_wav, read_wav

F32 = NDArray[np.float32]

RATE = 16_000
MAX_BYTES = 2 << 30
MAX_S = 4 * 3600.0
_FORMS = (
    (b"fLaC", 0, "FLAC"),
    (b"OggS", 0, "Ogg"),
    (b"ID3", 0, "MP3"),
    (b"\xff\xfb", 0, "MP3"),
    (b"ftyp", 4, "MP4 or M4A"),
    (b"\x1aE\xdf\xa3", 0, "WebM or Matroska"),
    (b"FORM", 0, "AIFF"),
)


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording as models hear it."""

    samples: F32 = field(repr=False)  # float32 [n] at RATE, one channel
    rate: int  # of the file
    channels: int  # of the file

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / RATE


def open_sound(data: bytes) -> Sound:
    """Return a recording's samples, the mean of its channels.

    Raises UsageError for what is not read, and for what is longer than the limits.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"the recording has {len(data):,} bytes; at most {MAX_BYTES:,} are read", "cut it into several"
        )
    if not is_wav(data):
        raise UsageError(f"the recording is {_name_of(data)}, which is not read", "convert it to WAV")
    samples, rate = read_wav(data)
    if len(samples) > MAX_S * rate:
        raise UsageError(
            f"the recording has {len(samples) / rate / 3600:.1f} hours; at most {MAX_S / 3600:g} are read",
            "cut it into several",
        )
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    return Sound(resampled(np.ascontiguousarray(mono), rate, RATE), rate, samples.shape[1])


def _name_of(data: bytes) -> str:
    for mark, at, name in _FORMS:
        if data[at : at + len(mark)] == mark:
            return name
    return "empty" if not data else f"no known form of sound (it begins with {data[:8].hex(' ')})"
