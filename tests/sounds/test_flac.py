"""FLAC is decoded to the bit, whatever it uses; what is damaged is refused with the reason."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.sounds import open_sound
from tests.sounds.flac_files import CASES, FlacShape, crc, flac, frame, head, tones
from tests.sounds.test_wav import wav


@pytest.mark.parametrize("what", CASES)
def test_samples_are_those_that_were_encoded(what: str):
    for bits, channels, shape in CASES[what]:
        samples = tones(bits, channels)
        samples = samples >> shape.wasted << shape.wasted
        file = native.FlacFile(flac(samples, 44_100, bits, shape))
        mono, raw = file.read(1 << 20)
        wide = np.zeros((samples.size, 8), np.uint8)
        width = (bits + 7) // 8
        wide[:, 8 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
        assert np.array_equal(wide.view("<i8")[:, 0] >> 64 - 8 * width, samples.reshape(-1)), (bits, channels)
        assert np.allclose(mono, samples.mean(axis=1) / 2 ** (bits - 1), atol=1e-7)
        assert (file.rate, file.channels, file.bits) == (44_100, channels, bits)
        assert len(file.read(10)[0]) == 0


def test_a_constant_subframe_is_one_number():
    shape = FlacShape("constant")
    assert len(data := flac(np.full((5000, 1), -77), shape=shape)) < 120
    assert (native.FlacFile(data).read(1 << 20)[0] == np.float32(-77 / 32768)).all()


def test_flac_and_wav_of_the_same_samples_are_the_same_bits():
    samples = tones(16, 2, 9000)
    as_wav = wav(samples.astype("<i2").tobytes(), channels=2, rate=44_100)
    as_flac = flac(samples, 44_100, shape=FlacShape(parameter=8, assignment=10, blocks=(1000,)))
    tagged = b"ID3\4\0\0\0\0\2\1" + bytes(257) + as_flac
    expected = open_sound(as_wav).samples
    assert len(expected) == 3266
    assert open_sound(as_flac).samples.tobytes() == expected.tobytes() == open_sound(tagged).samples.tobytes()


WHOLE = flac(tones(16, 1), shape=FlacShape(parameter=8, blocks=(200,)))
SECOND = WHOLE.rindex(b"\xff\xf8")


def damaged(at: int) -> bytes:
    return WHOLE[:at] + bytes([WHOLE[at] ^ 0x10]) + WHOLE[at + 1 :]


REFUSED = {
    "do not match its MD5": WHOLE[:26] + bytes(4) + WHOLE[30:],
    "frame does not match its CRC": damaged(len(WHOLE) - 1),
    "header does not match its CRC": damaged(SECOND + 7),
    "something else where a frame": damaged(SECOND),
    "fewer samples than its header": WHOLE[:SECOND],
    "within a frame": WHOLE[:-3],
    "cut short in its metadata": WHOLE[:30],
    "STREAMINFO": b"fLaC\x84\0\0\1x",
    "more samples than its header": flac(tones(16, 1), shape=FlacShape(parameter=8, total=100)),
    "changes its number of channels": head(16_000, 2, 16, 0) + frame(tones(16, 1), 0, 16, FlacShape(parameter=8)),
    "0 Hz": head(0, 1, 16, 0),
    "less than 4 bits": head(16_000, 1, 3, 0),
    "12.0 hours": head(16_000, 1, 16, 12 * 3600 * 16_000),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_damage_is_refused_with_the_reason(what: str):
    with pytest.raises(UsageError, match=what):
        open_sound(REFUSED[what])


def test_predictors_of_any_weights_are_computed_or_refused():
    """Behind right sums a file may state any weights and first samples."""
    body = frame(tones(16, 1, 64), 0, 16, FlacShape("lpc", weights=(900, -30), shift=9, parameter=9))[:-2]
    outcomes = set()
    for seed in range(300):
        rng = random.Random(seed)
        out = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            out[rng.randrange(9, 18)] = rng.randrange(256)  # behind the header and the subframe's kind
        try:
            native.FlacFile(
                head(16_000, 1, 16, 0) + bytes(out) + crc(bytes(out), 0x8005, 16).to_bytes(2)
            ).read(64)
            outcomes.add("read")
        except UsageError as error:
            outcomes.add(str(error))
    assert "read" in outcomes and any("outside its width" in outcome for outcome in outcomes)


def test_the_digest_is_of_all_samples():
    file = native.FlacFile(WHOLE)
    raw = b""
    while (part := file.read(1))[1]:
        raw += part[1]
    assert hashlib.md5(raw).digest() == file.md5
