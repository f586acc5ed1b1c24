"""Bytes of a recording become samples at 16 kHz; forms are known by what a file begins with, never by its name.

Knows forms and limits; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.base.stopping import check_stopped
from freehold.run.sounds.decoding import open_compressed
from freehold.run.sounds.flac import flac_at, open_flac
from freehold.run.sounds.pcm import MAX_RATE, MIN_RATE, Recording
from freehold.run.sounds.resampling import resampled_pieces
from freehold.run.sounds.wav import is_aiff, is_wav, open_aiff, open_wav

F32 = NDArray[np.float32]

RATE = 16_000
MAX_BYTES = 2 << 30
MAX_S = 4 * 3600.0
# Of all channels: four hours of stereo at 96,000 Hz are 2.8e9. A frame of FLAC may be 50 bytes for half a million.
MOST_VALUES = 4 << 30
# A form as opening.py and limits.DEMUXERS name it: how files begin, and from which byte on.
_COMPRESSED = (
    (b"OggS", 0, "Ogg"),
    (b"ID3", 0, "MP3"),
    (b"ftyp", 4, "MP4 or M4A"),
    (b"moov", 4, "MP4 or M4A"),
    (b"\x1aE\xdf\xa3", 0, "WebM or Matroska"),
    (b"caff", 0, "CAF"),
)
_REFUSED = (
    (b"#EXTM3U", 0, "a playlist"),
    (b"[playlist]", 0, "a playlist"),
    (b"ffconcat", 0, "a playlist"),
    (b"<?xml", 0, "XML"),
    (b"<MPD", 0, "a playlist"),
    (b"<", 0, "a text"),
    (b"http", 0, "an address"),
    (b"/", 0, "a path"),
    (b"0&\xb2u\x8ef\xcf\x11", 0, "WMA"),
    (b"#!AMR", 0, "AMR"),
    (b"MThd", 0, "MIDI, which has notes and no sound"),
    (b"%PDF", 0, "PDF"),
    (b"PK\x03\x04", 0, "ZIP"),
    (b"AVI ", 8, "AVI"),
    (b"FLV", 0, "Flash video"),
    (b"MAC ", 0, "Monkey's Audio"),
    (b"wvpk", 0, "WavPack"),
    (b".snd", 0, "AU"),
)
READ = "WAV, AIFF, FLAC, MP3, AAC, Ogg, M4A, MP4, WebM or CAF"


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


@dataclass(frozen=True, slots=True)
class MeasuredSound:
    """What is known of a recording that was decoded and not kept."""

    form: str  # WAV, FLAC and so on
    seconds: float


def open_sound(data: bytes, most_s: float = MAX_S, takes: Callable[[int], None] = lambda _: None) -> Sound:
    """Return a recording's samples, the mean of its channels; `most_s`: seconds that are read at most.

    `takes` is called with how many samples are about to be kept, before memory has them: what the header states, then
    more where more come, and at the end how many there are. What it raises ends the work. WAV, AIFF and FLAC are read
    here; other forms by PyAV in a process of their own (decoding.py). Seconds are counted as they are decoded, so
    memory is that of the bytes and of `most_s`. Raises UsageError for what is not read, is
    damaged or longer than the limits, and where PyAV is missing; CapacityExceeded where no process can be started.
    """
    recording = _checked(data, most_s)
    with closing(recording.pieces):
        kept = KeptSamples(math.ceil((recording.frames or 0) * RATE / recording.rate), takes)
        for piece in resampled_pieces(_counted(recording, most_s), recording.rate, RATE):
            kept.add(piece)
    return Sound(kept.whole(), recording.rate, recording.channels)


class KeptSamples:
    """Samples that come in pieces, in one array: pieces and then their sum would take twice as much memory."""

    def __init__(self, stated: int, takes: Callable[[int], None]) -> None:
        """`stated`: how many will come, as far as that is known; `takes`: as of open_sound."""
        self._takes, self._count = takes, 0
        takes(stated)
        self._samples = np.empty(stated, np.float32)

    def add(self, piece: F32) -> None:
        """Take in the next samples."""
        count = self._count + len(piece)
        if count > len(self._samples):
            room = count + count // 4  # the system moves pages of long arrays, so a longer one costs no copy
            self._takes(room)
            self._samples.resize(room, refcheck=False)  # nothing else refers to it
        self._samples[self._count : count] = piece
        self._count = count

    def whole(self) -> F32:
        """Return all of them; the last call."""
        self._samples.resize(self._count, refcheck=False)
        self._takes(self._count)
        return self._samples


def measure_sound(data: bytes, most_s: float = MAX_S) -> MeasuredSound:
    """Return a recording's form and length, decoded to its end and not kept. Raises as `open_sound` does."""
    recording = _checked(data, most_s)
    with closing(recording.pieces):
        frames = sum(len(piece) for piece in _counted(recording, most_s))
    return MeasuredSound(recording.form, frames / recording.rate)


def _checked(data: bytes, most_s: float) -> Recording:
    """Return a recording whose header is within the limits."""
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"the recording has {len(data):,} bytes; at most {MAX_BYTES:,} are read", "cut it into several"
        )
    recording = _opened(data)
    if not MIN_RATE <= recording.rate <= MAX_RATE:
        raise UsageError(
            f"the {recording.form} file has {recording.rate:,} Hz; read are {MIN_RATE:,} to {MAX_RATE:,} Hz",
            "convert it to 16,000 Hz",
        )
    if recording.frames is not None and recording.frames > most_s * recording.rate:
        raise _too_long(recording.frames / recording.rate, most_s)
    return recording


def _opened(data: bytes) -> Recording:
    """Return a recording of the form that its bytes begin with. Raises UsageError for any other."""
    if is_wav(data):
        return open_wav(data)
    if is_aiff(data):
        return open_aiff(data)
    if (at := flac_at(data)) >= 0:
        return open_flac(data[at:])
    name = _begun(data, _COMPRESSED) or _mpeg(data)
    if name:
        return open_compressed(data, name)
    if not data:
        raise UsageError("the recording is empty", "send it whole")
    what = _begun(data, _REFUSED) or f"no known form of sound (it begins with {data[:8].hex(' ')})"
    raise UsageError(f"the recording is {what}; read are {READ}", "convert it to FLAC or WAV")


def _begun(data: bytes, forms: tuple[tuple[bytes, int, str], ...]) -> str:
    return next((name for mark, at, name in forms if data[at : at + len(mark)] == mark), "")


def _mpeg(data: bytes) -> str:
    """Return what begins with the header of an MPEG frame: 11 ones, then version and layer, as ADTS has them too."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return ""
    if data[1] & 0xF6 == 0xF0:
        return "AAC"
    is_frame = data[1] & 0x18 != 0x08 and data[1] & 0x06 and data[2] >> 4 != 15 and data[2] & 0x0C != 0x0C
    return "MP3" if is_frame else ""


def _counted(recording: Recording, most_s: float) -> Iterator[F32]:
    """Yield a recording's pieces until they are longer than `most_s`; a header may lie. Stops with stopping.py."""
    count = 0
    for piece in recording.pieces:
        check_stopped()
        count += len(piece)
        if count * recording.channels > MOST_VALUES:
            raise UsageError(
                f"the recording has more than {MOST_VALUES:,} samples in {recording.channels} channels",
                f"convert it to one channel of {RATE:,} Hz",
            )
        if count > most_s * recording.rate:
            raise _too_long(count / recording.rate, most_s, "more than ")
        yield piece


def _too_long(seconds: float, most_s: float, more: str = "") -> UsageError:
    hours = most_s >= 3600
    lasts = f"{seconds / 3600:.1f} hours" if hours else f"{seconds:,.0f} seconds"
    return UsageError(
        f"the recording has {more}{lasts}; at most {most_s / 3600 if hours else most_s:g} are read",
        "cut it into several",
    )
