"""Bytes of a recording become samples at 16 kHz; forms are known by what a file begins with, never by its name.

Knows forms and limits; knows no model.

Compressed recordings are decoded by PyAV in a process that is started for each and can be killed (child.py). What it
answers is checked as the stranger's that it may have become; no PyAV is imported here.

Samples of any rate become samples of another by a filter of fixed length, with the same bits on every machine. Each
output sample is a sum over the input within ZEROS crossings of a sinc on both sides, under Kaiser's window. Sums are in
float64 and in the order of the samples, so neither a library's order of adding nor the pieces show.
Source: J. O. Smith, Digital Audio Resampling (ccrma.stanford.edu/~jos/resample), for the method.
"""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.base.sandbox.children import LENGTH, ChildEnded, TimedTalk, spawn_on_socket, watched
from freehold.base.stopping import check_stopped
from freehold.run.sounds import limits
from freehold.run.sounds.limits import MAX_PIECE, NO_DECODER, OUT_OF_MEMORY, SAMPLES, WORDS
from freehold.run.sounds.pcm import (
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    Recording,
    flac_at,
    is_aiff,
    is_wav,
    open_aiff,
    open_flac,
    open_wav,
)

F32 = NDArray[np.float32]

# --- compressed recordings -------------------------------------------------------------------------

COMMAND = (sys.executable, "-P", "-m", "freehold.run.sounds.child")
HINT = "convert it to FLAC or WAV, or cut it into several"
GARBLED = "the recording's decoder answered with something else: the file may be an attack on it"
# A thread that NumPy starts before the process is closed in would not be.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_END_S = 5.0  # for a process that has closed its end to be gone
_MOST_WORDS, _MOST_CHARS = 1 << 16, 300  # of a message, of a text in one


def open_compressed(data: bytes, form: str) -> Recording:
    """Return a recording in a form of limits.DEMUXERS, decoded in a process of its own as its pieces are read.

    The process ends when the pieces end or are closed. Raises UsageError for what is damaged, has no sound or takes
    too much time or memory, and where PyAV is missing; CapacityExceeded where no process can be started or live. Its
    pieces raise the same.
    """
    if importlib.util.find_spec("av") is None:
        raise _without_pyav(form)
    answers = _answers(data, form)
    try:
        header = next(answers)
        assert isinstance(header, dict)
        rate, channels = header.get("rate"), header.get("channels")
        if type(rate) is not int or type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
            raise UsageError(GARBLED)
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UsageError(f"the {form} file has {rate:,} Hz; expected {MIN_RATE:,} to {MAX_RATE:,} Hz")
    except BaseException:
        answers.close()
        raise
    return Recording(form, rate, channels, None, _samples(answers))


def _samples(answers: Generator[dict[str, Any] | F32, None, None]) -> Generator[F32, None, None]:
    with closing(answers):
        for answer in answers:
            if not isinstance(answer, dict):
                yield answer


def _answers(data: bytes, form: str) -> Generator[dict[str, Any] | F32, None, None]:
    """Yield the header, and then arrays of samples."""
    seconds = limits.seconds_for(len(data))
    memory = limits.MEMORY + 2 * len(data)  # its own, and a copy on the way
    with _started(memory) as (sock, process, has_exceeded):
        talk = _Talk(sock, limits.START_S + limits.WALL * seconds)
        try:
            request = {"form": form, "bytes": len(data), "seconds": seconds, "memory": memory}
            talk.send(json.dumps(request).encode())
            talk.send_bytes(data)
            header = talk.receive()
            while isinstance(header, dict) and "error" not in header:
                yield header
                if "faults" in header:
                    return
                while not isinstance(header := talk.receive(), dict):
                    yield header
        except ChildEnded as ended:
            raise _reason(form, process, ended.late, has_exceeded(), seconds, memory) from None
        if not isinstance(header, dict):
            raise UsageError(GARBLED)
        raise UsageError(_plain(header["error"]), _plain(header.get("hint", "")))


@contextmanager
def _started(memory: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes], Any]]:
    """Give a process, our end of its socket, and what tells whether it was ended for its memory; end it after."""
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            process = spawn_on_socket(
                COMMAND, ours, theirs, env=_ONE_THREAD, stderr=subprocess.DEVNULL, cwd="/"
            )
    except OSError as e:
        raise CapacityExceeded(f"no process could be started to decode the recording: {e.strerror}") from e
    with ours, watched(process, memory) as watch:
        try:
            yield ours, process, lambda: watch.exceeded
        finally:
            process.kill()
            process.wait()


class _Talk(TimedTalk):
    """What is said with the process. Every method raises ChildEnded."""

    def receive(self) -> dict[str, Any] | F32:
        """Return the next message. Raises UsageError for anything but an object in JSON, or samples."""
        size = int.from_bytes(self.read(LENGTH), "little")
        kind = bytes(self.read(1))
        if kind == SAMPLES and (size - 1) % 4 == 0 and size - 1 <= 4 * MAX_PIECE:
            samples = np.frombuffer(self.read(size - 1), np.float32)
            if not np.isfinite(samples).all():
                raise UsageError(GARBLED)
            return samples
        if kind != WORDS or not 1 < size <= _MOST_WORDS:
            raise UsageError(GARBLED)
        try:
            message = json.loads(self.read(size - 1))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise UsageError(GARBLED)
        return message


def _reason(
    form: str, process: subprocess.Popen[bytes], late: bool, exceeded: bool, seconds: float, memory: int
) -> FreeholdError:
    """Return what the end of a process says of its recording."""
    if late:
        return UsageError(f"the {form} file takes longer than {limits.WALL * seconds:g} s to decode", HINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    code = process.poll() or 0
    if code == NO_DECODER:
        return _without_pyav(form)
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        return UsageError(f"the {form} file takes more than {seconds:g} s of processor to decode", HINT)
    if code == OUT_OF_MEMORY or exceeded:
        return UsageError(f"the {form} file takes more than {memory >> 20:,} MiB of memory to decode", HINT)
    if -code == signal.SIGKILL:
        return CapacityExceeded(
            "the process that decoded the recording was killed",
            "the kernel kills processes when memory runs out",
        )
    how = f"status {code}" if code >= 0 else signal.Signals(-code).name
    return UsageError(f"the {form} file ended the process that decoded it ({how})", HINT)


def _without_pyav(form: str) -> UsageError:
    return UsageError(
        f"the recording is {form}, which needs PyAV, and that is not installed",
        'pip install "freehold[audio]"',
    )


def _plain(text: Any) -> str:
    """Return a text of the decoder's without what a terminal obeys, and not for ever."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:_MOST_CHARS])


# --- resampling ------------------------------------------------------------------------------------

F64 = NDArray[np.float64]

ZEROS = 24  # crossings on each side
BETA = 9.0  # of Kaiser's window: 90 dB below
PASSED = 0.945  # of the lower of both Nyquist rates
BLOCK = 1 << 15  # output samples that are computed at a time
MOST_WEIGHTS = 1 << 22  # of a filter: 32 MiB, several times that on the way to it
_FILTERS_KEPT = 4  # strangers choose the rates


def resampled(samples: F32, rate: int, to: int) -> F32:
    """Return samples, float32 [n], at another rate: float32 [ceil(n * to / rate)]."""
    if rate == to or not len(samples):
        return samples
    return np.concatenate([*resampled_pieces([samples], rate, to)])


def resampled_pieces(pieces: Iterable[F32], rate: int, to: int) -> Iterator[F32]:
    """Yield the same samples as `resampled` gives for all pieces together; memory is that of a piece.

    Raises UsageError for a rate whose filter would have more than MOST_WEIGHTS.
    """
    if rate == to:
        yield from pieces
        return
    shared = math.gcd(rate, to)
    up, down = to // shared, rate // shared
    _check(up, down, rate, to)
    kernels, reach = _kernels(up, down)
    held, begin = np.zeros(reach), -reach  # input that is needed still, and the place of its first sample
    received = done = 0
    for piece in pieces:
        held = np.concatenate([held, piece.astype(np.float64)])
        received += len(piece)
        # Whose last input, at floor(n * down / up) + reach, has come.
        ready = max(done, -(-(received - reach) * up // down))
        yield from _outputs(held, begin, range(done, ready), (up, down), kernels)
        done = ready
        passed = max(0, done * down // up - reach - begin)
        held, begin = held[passed:], begin + passed
    held = np.concatenate([held, np.zeros(2 * reach + 1)])
    yield from _outputs(held, begin, range(done, -(-received * up // down)), (up, down), kernels)


def _outputs(held: F64, begin: int, wanted: range, ratio: tuple[int, int], kernels: F64) -> Iterator[F32]:
    """Yield the output samples of numbers in `wanted`, from input whose first sample has the number `begin`."""
    from freehold import _native as native

    for first in range(wanted.start, wanted.stop, BLOCK):
        yield native.resampled(held, begin, first, min(BLOCK, wanted.stop - first), kernels, ratio[1])


def _check(up: int, down: int, rate: int, to: int) -> None:
    weights = up * (2 * _reach(up, down) + 1)
    if weights > MOST_WEIGHTS:
        raise UsageError(
            f"a recording of {rate:,} Hz takes a filter of {weights:,} weights to {to:,} Hz; at most "
            f"{MOST_WEIGHTS:,} are computed",
            "convert it to 16,000 Hz",
        )


def _reach(up: int, down: int) -> int:
    return math.ceil(ZEROS / (min(1.0, up / down) * PASSED))


@lru_cache(_FILTERS_KEPT)
def _kernels(up: int, down: int) -> tuple[F64, int]:
    """Return the filter at each of `up` places between two input samples, [up, 2 * reach + 1], and its reach."""
    scale = min(1.0, up / down) * PASSED
    reach = _reach(up, down)
    apart = np.arange(-reach, reach + 1)[None, :] - (np.arange(up) / up)[:, None]
    inside = np.clip(1 - (apart * scale / ZEROS) ** 2, 0, None)
    kernels = np.sinc(apart * scale) * np.i0(BETA * np.sqrt(inside)) * (inside > 0)
    return kernels / kernels.sum(axis=1, keepdims=True), reach


# --- opening ---------------------------------------------------------------------------------------

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
    (b"MThd", 0, "MIDI, which has notes but no audio"),
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
    here; other forms by PyAV in a process of their own (opening.py). Seconds are counted as they are decoded, so
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
            f"the recording has {len(data):,} bytes; the limit is {MAX_BYTES:,}", "cut it into several"
        )
    recording = _opened(data)
    if not MIN_RATE <= recording.rate <= MAX_RATE:
        raise UsageError(
            f"the {recording.form} file has {recording.rate:,} Hz; expected {MIN_RATE:,} to {MAX_RATE:,} Hz",
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
    what = _begun(data, _REFUSED) or f"not in a known audio format (it begins with {data[:8].hex(' ')})"
    raise UsageError(f"the recording is {what}; supported formats are {READ}", "convert it to FLAC or WAV")


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
        f"the recording has {more}{lasts}; the limit is {most_s / 3600 if hours else most_s:g}",
        "cut it into several",
    )
