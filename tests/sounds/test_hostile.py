"""Recordings that hurt: each is read right, or refused by name, within limits of time and memory."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import psutil
import pytest

from freehold.base import platforms
from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.run.sounds import limits, open_sound, opening
from freehold.run.sounds.opening import open_compressed
from tests.fuzz.mutate import mutated
from tests.sounds.flac_files import FlacShape, flac, frame, head
from tests.sounds.test_wav import wav

av = pytest.importorskip("av")

RATE = 16_000
TIME = np.arange(RATE) / RATE
TONE = np.sin(2 * np.pi * 440 * TIME) * 0.5
AS_16 = np.rint(TONE * 32767).astype("<i2")
CONSTANT = FlacShape("constant")


@cache
def encoded(form: str, codec: str, rate: int = 48_000, picture: bool = False, seconds: int = 1) -> bytes:
    """Return the tone, as FFmpeg writes it in a form; with `picture` beside a video."""
    tone = np.sin(2 * np.pi * 440 * np.arange(rate * seconds) / rate) * 0.5
    return written(tone, form, codec, rate, picture, rate)


def written(
    samples: np.ndarray, form: str, codec: str, rate: int = RATE, picture: bool = False, of: int = RATE
) -> bytes:
    """Return samples at the rate `of`, as FFmpeg writes them in a form at `rate`; with `picture` beside a video."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        video = container.add_stream("mpeg4", rate=10) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            image.pts = 0
            container.mux(video.encode(image))
        whole = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        whole.sample_rate = of
        to = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        for part in [*to.resample(whole), *to.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        if video is not None:
            container.mux(video.encode(None))
    return file.getvalue()


def video_alone() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(3):
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
            image.pts = i
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return file.getvalue()


def aiff(data: bytes, kind: bytes = b"", bits: int = 16, channels: int = 1, rate: int = RATE) -> bytes:
    shift = 64 - rate.bit_length()
    common = struct.pack(">hIhHQ", channels, 0, bits, 16383 + 63 - shift, rate << shift) + kind
    common += b"\0\0" if kind else b""
    parts = b"COMM" + struct.pack(">I", len(common)) + common
    parts += b"SSND" + struct.pack(">III", len(data) + 8, 0, 0) + data
    name = b"AIFC" if kind else b"AIFF"
    return b"FORM" + struct.pack(">I", len(parts) + 4) + name + parts


def boxes(depth: int) -> bytes:
    """Return an MP4 of boxes within boxes."""
    inner = b""
    for _ in range(depth):
        inner = struct.pack(">I", len(inner) + 8) + b"udta" + inner
    return b"\0\0\0\x14ftypM4A \0\0\0\0M4A " + struct.pack(">I", len(inner) + 8) + b"moov" + inner


def at_rate(rate: int, channels: int = 1) -> bytes:
    t = np.arange(rate) / rate
    one = np.rint(np.sin(2 * np.pi * 440 * t) * 0.5 * 32767).astype("<i2")
    return wav(np.repeat(one, channels).tobytes(), rate=rate, channels=channels)


M4A = lambda: encoded("ipod", "aac")  # noqa: E731
ID3_OF_256_MB = b"ID3\4\0\0\x7f\x7f\x7f\x7f"
RIGHT: dict[str, tuple[Callable[[], bytes], float]] = {  # the tone, within an error
    "8 kHz": (lambda: at_rate(8000), 1e-3),
    "192 kHz": (lambda: at_rate(192_000), 1e-3),
    "eight channels": (lambda: at_rate(RATE, 8), 1e-3),
    "three hours in the header": (lambda: wav(AS_16.tobytes(), size=3 * 3600 * 32_000), 1e-3),
    "no length": (lambda: wav(AS_16.tobytes(), size=0xFFFFFFFF), 1e-3),
    "half a sample at the end": (lambda: wav(AS_16.tobytes() + b"\1"), 1e-3),
    "100 dB quiet": (lambda: wav((TONE * 1e-5).astype("<f4").tobytes(), code=3, bits=32), 1),
    "AIFF": (lambda: aiff(AS_16.astype(">i2").tobytes()), 1e-3),
    "AIFF-C of little ends": (lambda: aiff(AS_16.tobytes(), b"sowt"), 1e-3),
    "AIFF-C of floats": (lambda: aiff(TONE.astype(">f4").tobytes(), b"fl32", 32), 1e-5),
    "FLAC": (lambda: flac(AS_16[:, None].astype(np.int64), shape=FlacShape(parameter=8)), 1e-3),
    # LAME encodes at 0.95 of the level.
    "MP3": (lambda: encoded("mp3", "libmp3lame"), 0.06),
    "M4A": (M4A, 0.02),
    "a video with sound": (lambda: encoded("mp4", "aac", picture=True), 0.02),
    "WebM": (lambda: encoded("webm", "libopus"), 0.02),
    "Ogg": (lambda: encoded("ogg", "libopus"), 0.02),
    "MP3 behind junk of ID3": (lambda: b"ID3\4\0\0\0\0\1\0" + bytes(128) + encoded("mp3", "libmp3lame"), 0.06),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_sound_is_read(what: str):
    make, error = RIGHT[what]
    sound = open_sound(make())
    count = min(len(sound.samples), RATE) - 2000
    assert count > 10_000 and np.isfinite(sound.samples).all()
    heard = sound.samples[1000 : 1000 + count]
    # A codec's delay moves the tone: its size at 440 Hz is compared, not its phase.
    size = 2 * abs(np.vdot(np.exp(2j * np.pi * 440 * np.arange(count) / RATE), heard)) / count
    expected = 0.5e-5 if what == "100 dB quiet" else 0.5
    assert abs(size - expected) < error * expected + 1e-3 * expected


def test_levels_that_hurt_stay_what_they_are():
    loud = np.rint(np.clip(TONE * 10, -1, 1) * 32767).astype("<i2")
    assert np.abs(open_sound(wav(loud.tobytes())).samples).max() <= 1
    offset = (TONE * 0.1 + 0.9).astype("<f4")
    assert abs(open_sound(wav(offset.tobytes(), code=3, bits=32)).samples.mean() - 0.9) < 1e-3
    holes = TONE.astype("<f4").copy()
    holes[::7], holes[::11] = np.nan, np.inf
    assert np.isfinite(open_sound(wav(holes.tobytes(), code=3, bits=32)).samples).all()
    assert not open_sound(wav(bytes(32_000))).samples.any()
    assert len(open_sound(wav(b"\1\2")).samples) == 1 and len(open_sound(wav(b"")).samples) == 0


REFUSED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty"),
    "one byte": (b"R", "known audio format"),
    "zeros": (bytes(5000), "known audio format"),
    "a text": (b"hello there", "known audio format"),
    "a path": (b"/etc/passwd", "a path"),
    "an address": (b"http://127.0.0.1/x.mp3", "an address"),
    "file:": (b"file:///etc/passwd", "known audio format"),
    "concat": (b"ffconcat version 1.0\nfile /etc/passwd\n", "a playlist"),
    "HLS": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a playlist"),
    "DASH": (b"<?xml version='1.0'?><MPD></MPD>", "XML"),
    "SDP": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "known audio format"),
    "HLS behind ID3": (b"ID3\4\0\0\0\0\0\0#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "MP3"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "known audio format"),
    "ZIP": (b"PK\3\4" + bytes(50), "ZIP"),
    "ID3 of 256 MB": (ID3_OF_256_MB + bytes(500), "MP3"),
    "ID3 of 256 MB, then FLAC": (ID3_OF_256_MB + head(RATE, 1, 16, 0), "MP3"),
    "MP3 of noise": (b"\xff\xfb\x90\x00" + np.random.default_rng(0).bytes(4000), "MP3"),
    "Ogg of noise": (b"OggS" + np.random.default_rng(0).bytes(4000), "Ogg"),
    "WebM of noise": (b"\x1aE\xdf\xa3" + np.random.default_rng(1).bytes(4000), "WebM"),
    "boxes in boxes": (boxes(20_000), "MP4"),
    "MP4 of its name alone": (b"\0\0\0\x14ftypM4A \0\0\0\0M4A ", "MP4"),
    "MP4 of a huge box": (b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\1moov\x7f" + b"\xff" * 7 + bytes(99), "MP4"),
    "AIFF of no samples": (aiff(b"")[:40], "no samples"),
    "AIFF of another kind": (aiff(bytes(9), b"ima4"), "ima4"),
    "AIFF of no rate": (aiff(bytes(9))[:28] + bytes(30), "0 Hz"),
    "a rate without a filter": (wav(bytes(99), rate=191_999), "191,999 Hz"),
    "17 hours of one channel": (wav(bytes(3 << 20), bits=8, rate=1000)[:40] + b"\xff" * 4 + bytes(62 << 20), "hours"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_is_refused_by_name(what: str):
    data, reason = REFUSED[what]
    with pytest.raises(UsageError, match=reason):
        open_sound(data)


def test_a_truncated_m4a_and_a_video_without_sound_are_refused():
    whole = M4A()
    with pytest.raises(UsageError, match="damaged or cut short"):
        open_sound(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="has no audio, only video"):
        open_sound(video_alone())


def test_no_more_seconds_are_decoded_than_may_be_read():
    data = encoded("ogg", "libopus", seconds=4)
    with pytest.raises(UsageError, match=r"more than [23] seconds; the limit is 2"):
        open_sound(data, most_s=2)
    assert not _decoders()


def test_six_hours_of_silence_take_the_memory_of_a_piece():
    silence = head(44_100, 2, 16, 0) + frame(np.zeros((65_535, 2), np.int64), 0, 16, CONSTANT) * 14_534
    assert len(silence) < 1_100_000
    before = psutil.Process().memory_info().rss
    with pytest.raises(UsageError, match="the limit is 60"):
        open_sound(silence, most_s=60)
    assert psutil.Process().memory_info().rss - before < 200 << 20


@pytest.mark.heavy
def test_too_much_processor_or_memory_ends_the_process_and_not_the_next(monkeypatch: pytest.MonkeyPatch):
    data = encoded("mp3", "libmp3lame", seconds=30)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "seconds_for", lambda size: 0.001)
        with pytest.raises(UsageError, match=r"more than 0\.001 s of processor"):
            open_sound(data)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MEMORY", 100 << 20)
        with pytest.raises(UsageError, match=r"MiB of memory|status"):
            open_sound(data)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "START_S", 0.0)
        patch.setattr(limits, "WALL", 1e-6)
        with pytest.raises(UsageError, match="takes longer than"):
            open_sound(data)
    assert 29 < open_sound(data).seconds < 31 and not _decoders()


def test_a_process_that_is_killed_is_no_fault_of_the_recording():
    recording = open_compressed(encoded("mp3", "libmp3lame", seconds=30), "MP3")
    (child,) = _decoders()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(CapacityExceeded, match="was killed"):
        list(recording.pieces)
    assert not _decoders()


@pytest.mark.skipif(not platforms.can_confine(), reason="processes are confined on Linux")
def test_the_process_is_closed_in_and_ends_when_its_pieces_are_closed():
    recording = open_compressed(encoded("mp3", "libmp3lame", seconds=30), "MP3")
    (child,) = _decoders()
    with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
        assert "Seccomp:\t2\n" in status.read()
    assert not child.net_connections() and child.num_threads() == 1
    recording.pieces.close()
    deadline = time.monotonic() + 10
    while _decoders():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="MP3, which needs PyAV") as error:
        open_sound(b"\xff\xfb\x90\x00" + bytes(400))
    assert error.value.hint == 'pip install "freehold[audio]"'


def test_where_nothing_can_be_confined_time_and_memory_are_limited(monkeypatch: pytest.MonkeyPatch):
    script = (
        "from freehold.base import platforms; platforms.can_confine = lambda: False; import os; "
        "from freehold.run.sounds.child import main; os._exit(main())"
    )
    command = (*opening.COMMAND[:2], "-c", script)
    monkeypatch.setattr(opening, "COMMAND", command)
    assert open_sound(encoded("mp3", "libmp3lame")).seconds > 0.9


@pytest.mark.heavy
def test_mutated_files_of_every_form_are_read_or_refused():
    import random

    sound = [
        encoded("mp3", "libmp3lame"),
        M4A(),
        encoded("webm", "libopus"),
        aiff(AS_16.astype(">i2").tobytes()),
    ]
    for seed in range(12):
        rng = random.Random(seed)
        try:
            assert np.isfinite(open_sound(mutated(rng.choice(sound), rng)).samples).all()
        except FreeholdError as error:
            assert "answered with something else" not in str(error)


def test_every_demuxer_has_a_mark_or_is_an_mpeg_frame():
    named = {name for _, _, name in opening._COMPRESSED} | {"AAC", "MP3"}
    assert named == set(limits.DEMUXERS)


def _decoders() -> list[psutil.Process]:
    """Return the decoding processes of this one."""
    return [
        each
        for each in psutil.Process().children()
        if each.status() != psutil.STATUS_ZOMBIE and "freehold.run.sounds.child" in " ".join(each.cmdline())
    ]


def test_values_of_all_channels_have_a_limit_and_so_do_chunks(monkeypatch: pytest.MonkeyPatch):
    """A frame of 50 bytes may stand for half a million values: seconds alone do not bound the work."""
    wide = wav(bytes(2 * 8 * 1000), channels=8, rate=8000)
    assert len(open_sound(wide).samples)
    monkeypatch.setattr(opening, "MOST_VALUES", 7999)
    with pytest.raises(UsageError, match="more than 7,999 samples in 8 channels"):
        open_sound(wide)
    with pytest.raises(UsageError, match="more than 10,000 chunks"):
        open_sound(b"RIFF\xff\xff\xff\xffWAVE" + b"none\0\0\0\0" * 10_001)
