"""WAV of every width is read to the value, whatever its header claims; the rest is refused by name."""

from __future__ import annotations

import contextlib
import math
import struct

import numpy as np
import pytest

from freehold.base.errors import FreeholdError, UsageError
from freehold.run.sounds import open_sound, opening
from freehold.run.sounds.opening import resampled
from freehold.run.sounds.pcm import read_wav

RATE = 16_000
WAVE = np.array([0.0, 0.5, -0.5, 0.25, -1.0, 0.999], np.float64)


def wav(
    data: bytes, code: int = 1, bits: int = 16, channels: int = 1, rate: int = RATE, size: int | None = None
) -> bytes:
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits)
    length = len(data) if size is None else size
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def as_24(values: np.ndarray) -> bytes:
    return b"".join(int(v).to_bytes(3, "little", signed=True) for v in np.rint(values * (2**23 - 1)))


FORMS = {
    "8": (wav(np.rint(WAVE * 127 + 128).astype(np.uint8).tobytes(), bits=8), 1 / 100),
    "16": (wav(np.rint(WAVE * 32767).astype("<i2").tobytes()), 1e-4),
    "24": (wav(as_24(WAVE), bits=24), 1e-6),
    "32": (wav(np.rint(WAVE * (2**31 - 1)).astype("<i4").tobytes(), bits=32), 1e-6),
    "float": (wav(WAVE.astype("<f4").tobytes(), code=3, bits=32), 1e-7),
    "double": (wav(WAVE.astype("<f8").tobytes(), code=3, bits=64), 1e-7),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_file(form: str):
    data, error = FORMS[form]
    samples, rate = read_wav(data)
    assert rate == RATE and samples.shape == (6, 1) and np.abs(samples[:, 0] - WAVE).max() < error


def test_telephones_codes_are_g711_s():
    codes = bytes([0x00, 0x80, 0xFF, 0x7F, 0x55])
    mu, _ = read_wav(wav(codes, code=7, bits=8))
    assert np.array_equal(np.rint(mu[:, 0] * 32768), [-32124, 32124, 0, 0, -716])
    a, _ = read_wav(wav(codes, code=6, bits=8))
    assert np.array_equal(np.rint(a[:, 0] * 32768), [-5504, 5504, 848, -848, -8])


def test_lengths_that_lie_give_what_is_there():
    data = np.arange(100, dtype="<i2").tobytes()
    for size in (0, 0xFFFFFFFF, 10**9, 3 * 3600 * 32_000):
        assert len(read_wav(wav(data, size=size))[0]) == 100
    assert len(read_wav(wav(data)[:-51])[0]) == 74


def test_what_is_not_finite_is_silence():
    values = np.array([np.nan, np.inf, -np.inf, 7.0], "<f4")
    samples, _ = read_wav(wav(values.tobytes(), code=3, bits=32))
    assert samples[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_channels_become_their_mean_and_rates_16_khz():
    t = np.arange(48_000) / 48_000
    both = np.stack([np.sin(2 * np.pi * 300 * t), np.zeros(48_000)], axis=1)
    sound = open_sound(wav(np.rint(both * 32767).astype("<i2").tobytes(), channels=2, rate=48_000))
    expected = np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000) / 2
    assert (sound.rate, sound.channels, sound.seconds) == (48_000, 2, 1.0)
    assert np.abs(sound.samples - expected)[200:-200].max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_resampling_keeps_what_fits_and_removes_the_rest(rate: int):
    t = np.arange(rate) / rate
    low = resampled(np.sin(2 * np.pi * 1000 * t).astype(np.float32), rate, RATE)
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(low)) / RATE)
    assert len(low) == RATE and np.abs(low - expected)[400:-400].max() < 2e-4
    if rate > 20_000:
        high = resampled(np.sin(2 * np.pi * 9500 * t).astype(np.float32), rate, RATE)
        assert np.abs(high[400:-400]).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 44_100, 191_000])
def test_resampling_is_a_sum_in_order_whatever_the_pieces(rate: int):
    samples = np.random.default_rng(rate).normal(size=3001).astype(np.float32) * np.float32(0.2)
    whole = resampled(samples, rate, RATE)
    shared = math.gcd(rate, RATE)
    up, down = RATE // shared, rate // shared
    kernels, reach = opening._kernels(up, down)
    padded = np.concatenate([np.zeros(reach), samples, np.zeros(2 * reach + 1)])
    places = np.arange(-(-3001 * up // down)) * down
    total = np.zeros(len(places))
    for tap in range(2 * reach + 1):
        total += padded[places // up + tap] * kernels[places % up, tap]
    assert whole.tobytes() == total.astype(np.float32).tobytes()
    for cuts in ([1, 2, 700, 2999], list(range(100, 3000, 100))):
        pieces = opening.resampled_pieces(np.split(samples, cuts), rate, RATE)
        assert np.concatenate([*pieces]).tobytes() == whole.tobytes()


REFUSED = {
    "known audio format": b"hello there, this is text",
    "empty": b"",
    "FLAC": b"fLaC" + bytes(40),
    "MP4": bytes(4) + b"ftypM4A " + bytes(40),
    "IMA ADPCM": wav(bytes(40), code=17, bits=8),
    "0 channels": wav(bytes(40), channels=0),
    "12 bits": wav(bytes(40), bits=12),
    "5 Hz": wav(bytes(40), rate=5),
    "no samples": wav(b"")[:36],
    "no format": b"RIFF\0\0\0\0WAVEdata\4\0\0\0\0\0\0\0",
    "hours": wav(bytes(1000 * 3600 * 5), bits=8, rate=1000),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_rest_is_refused_by_name(what: str):
    with pytest.raises(UsageError, match=what):
        open_sound(REFUSED[what])


def test_damaged_files_are_read_or_refused():
    draw, whole = np.random.default_rng(5), FORMS["16"][0]
    for _ in range(500):
        changed = bytearray(whole)
        for _ in range(3):
            changed[int(draw.integers(0, len(whole)))] = int(draw.integers(0, 256))
        with contextlib.suppress(FreeholdError):
            samples = open_sound(bytes(changed)).samples
            assert np.isfinite(samples).all()
