"""Forty recordings that hurt; no test.

Each is a clip of 3 s as a file that hurts. Right, in a model that speaks English: its words, but for one where a codec
changes the samples. Right, in a tiny model, whose texts are none: the text of a plain WAV of the same samples, where
the file has exactly those. In both: the clip's length.
Path: test_hurting.py, benches/ears/hurting.py -> forty, HurtingRecordings.send_all -> POST /v1/audio/transcriptions
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from freehold.run.sounds.opening import resampled
from freehold.run.sounds.pcm import read_wav
from tests.hurting import HurtfulFile, Hurting
from tests.sounds.flac_files import FlacShape, flac, frame, head
from tests.sounds.test_hostile import CONSTANT, REFUSED, aiff, video_alone, written
from tests.sounds.test_wav import as_24, wav

RATE = 16_000
WORDS = "he was not an ill disposed young man"
CLIP = np.frombuffer((Path(__file__).with_name("austen-0880.wav")).read_bytes()[44:], "<i2")
SPEECH = CLIP / 32768.0
# Of test_hostile.py; names of what stands for a kind each.
NOT_READ = (
    "zeros", "a path", "an address", "concat", "HLS", "DASH", "HLS behind ID3", "a picture", "ZIP",
    "ID3 of 256 MB", "MP3 of noise", "boxes in boxes", "MP4 of a huge box",
    "a rate without a filter",
)  # fmt: skip


@dataclass(frozen=True)
class HurtfulRecording(HurtfulFile):
    """A file and the name that it is sent by. `plain`: a WAV that has the same text; `words`: what a model hears.

    None of `words`: any are right, as the file is damaged speech.
    """

    plain: bytes = b""
    filename: str = "recording.wav"
    words: str | None = WORDS
    seconds: float = len(CLIP) / RATE


def forty() -> list[HurtfulRecording]:
    """Return the recordings: 22 that are right, 18 that are refused."""
    return [*_exact(), *_near(), *_silent(), *_refused()]


def _floats(values: np.ndarray) -> bytes:
    return wav(values.astype("<f4").tobytes(), code=3, bits=32)


def _exact() -> list[HurtfulRecording]:
    """Return files that have the samples of a plain one."""
    data, plain = CLIP.tobytes(), wav(CLIP.tobytes())
    holes, filled = SPEECH.copy(), SPEECH.copy()
    holes[::701], holes[::1103], filled[::701], filled[::1103] = np.nan, np.inf, 0, 0
    codes = np.random.default_rng(0).integers(0, 256, 48_000).astype(np.uint8).tobytes()
    telephone = wav(codes, code=7, bits=8)
    return [
        HurtfulRecording("three hours in the header", wav(data, size=3 * 3600 * 32_000), plain=plain),
        HurtfulRecording("no length", wav(data, size=0xFFFFFFFF), plain=plain),
        HurtfulRecording("half a sample at the end", wav(data + b"\1"), plain=plain),
        HurtfulRecording("a path as its name", plain, plain=plain, filename="../../../etc/passwd"),
        HurtfulRecording("eight channels", wav(np.repeat(CLIP, 8).tobytes(), channels=8), plain=plain),
        HurtfulRecording(
            "24 bits", wav(as_24(SPEECH), bits=24), plain=_floats(np.rint(SPEECH * (2**23 - 1)) / 2**23)
        ),
        HurtfulRecording("NaN and infinity", _floats(holes), plain=_floats(filled)),
        HurtfulRecording("AIFF", aiff(CLIP.astype(">i2").tobytes()), plain=plain),
        HurtfulRecording("AIFF-C of little ends", aiff(data, b"sowt"), plain=plain),
        HurtfulRecording(
            "FLAC",
            flac(CLIP[:, None].astype(np.int64), shape=FlacShape(parameter=8)),
            plain=plain,
            filename="a.mp3",
        ),
        HurtfulRecording(
            "noise of a telephone",
            telephone,
            plain=_floats(read_wav(telephone)[0][:, 0]),
            words="",
            seconds=3.0,
        ),
    ]


def _near() -> list[HurtfulRecording]:
    """Return files that have about the clip's samples."""
    wide = np.rint(resampled(SPEECH.astype(np.float32), RATE, 192_000) * 32767).astype("<i2")
    narrow = np.rint(resampled(SPEECH.astype(np.float32), RATE, 8000) * 32767).astype("<i2")
    return [
        HurtfulRecording("8 kHz", wav(narrow.tobytes(), rate=8000)),
        HurtfulRecording("192 kHz", wav(wide.tobytes(), rate=192_000)),
        HurtfulRecording("an offset of half of all", _floats(SPEECH * 0.5 + 0.5)),
        HurtfulRecording("clipped", _floats(np.clip(SPEECH * 20, -1, 1)), words=None),
        HurtfulRecording(
            "MP3 with another suffix", written(SPEECH, "mp3", "libmp3lame"), filename="talk.flac"
        ),
        HurtfulRecording("M4A", written(SPEECH, "ipod", "aac", rate=48_000)),
        HurtfulRecording(
            "a video with sound",
            written(SPEECH, "mp4", "aac", rate=48_000, picture=True),
            filename="film.mp4",
        ),
        HurtfulRecording(
            "WebM", written(SPEECH, "webm", "libopus", rate=48_000), filename="https://127.0.0.1/a"
        ),
        HurtfulRecording("Ogg", written(SPEECH, "ogg", "libopus", rate=48_000), filename=""),
    ]


def _silent() -> list[HurtfulRecording]:
    """Return files in which nothing is heard."""
    return [
        HurtfulRecording(
            "100 dB quiet", _floats(SPEECH * 1e-5), plain=_floats(np.zeros(len(CLIP))), words=""
        ),
        HurtfulRecording("one sample", wav(b"\1\2"), plain=wav(b""), words="", seconds=0.0),
    ]


def _refused() -> list[HurtfulRecording]:
    whole = written(SPEECH, "ipod", "aac")
    silence = head(44_100, 2, 16, 0) + frame(np.zeros((65_535, 2), np.int64), 0, 16, CONSTANT) * 14_534
    return [
        *(HurtfulRecording(name, REFUSED[name][0], why=REFUSED[name][1]) for name in NOT_READ),
        HurtfulRecording("nothing", b"", why="empty"),
        HurtfulRecording("half an M4A", whole[: len(whole) // 2], why="damaged or cut short"),
        HurtfulRecording("a video without sound", video_alone(), why="has no audio, only video"),
        HurtfulRecording("six hours of silence in a megabyte", silence, why="more than 4.0 hours"),
    ]


class HurtingRecordings(Hurting[HurtfulRecording]):
    """A client of one server with a model that hears."""

    speaks = False  # whether its texts are words

    def answer(self, file: HurtfulRecording) -> httpx2.Response:
        """Send a recording."""
        return self._answer(file.data, file.filename)

    def is_right(self, file: HurtfulRecording, answer: httpx2.Response) -> bool:
        """Tell whether the answer is the clip's."""
        heard: dict[str, Any] = answer.json()
        if abs(heard["duration"] - file.seconds) > 0.1:
            return False
        if self.speaks and file.words is not None and not _alike(heard["text"], file):
            return False
        if not file.plain:
            return self.speaks or bool(heard["text"])
        return heard["text"] == self._answer(file.plain, "plain.wav").json()["text"]

    def _answer(self, data: bytes, filename: str) -> httpx2.Response:
        form = {"model": self.model, "language": "en", "response_format": "verbose_json"}
        files = {"file": (filename, io.BytesIO(data))}
        return httpx2.post(f"{self.url}/v1/audio/transcriptions", data=form, files=files, timeout=180)


class SpokenRecordings(HurtingRecordings):
    """A client of a server with a model that speaks English."""

    speaks = True


def _alike(text: str, file: HurtfulRecording) -> bool:
    """Tell whether a text has the words of a file; a codec may cost one, which is two where it was said as one."""
    expected, heard = (file.words or "").split(), re.findall(r"[a-z]+", text.casefold())
    if file.plain or file.data.startswith(b"RIFF"):
        return heard == expected
    same = sum(each.size for each in SequenceMatcher(None, expected, heard).get_matching_blocks())
    return len(heard) <= len(expected) + 1 and same >= len(expected) - 1
