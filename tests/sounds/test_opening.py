"""Samples are counted before memory has them, and lie in one array while they come."""

from __future__ import annotations

import tracemalloc
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import Overloaded
from freehold.run.sounds import open_sound, opening
from freehold.run.sounds.opening import resampled
from freehold.run.sounds.pcm import Recording
from tests.sounds.test_wav import RATE, wav

PIECE = np.linspace(-1, 1, RATE, dtype=np.float32)


def unstated(monkeypatch: pytest.MonkeyPatch, pieces: int, rate: int = RATE) -> list[int]:
    """Have a recording opened whose header states no length; return the pieces that were decoded."""
    decoded: list[int] = []

    def each() -> Generator[np.ndarray[Any, Any], None, None]:
        for i in range(pieces):
            decoded.append(i)
            yield PIECE

    monkeypatch.setattr(opening, "_opened", lambda _: Recording("MP3", rate, 1, None, each()))
    return decoded


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_what_a_header_states_is_counted_first_and_what_there_is_at_the_end(rate: int):
    takes: list[int] = []
    data = wav(np.zeros(3 * rate, "<i2").tobytes(), rate=rate)
    assert len(open_sound(data, takes=takes.append).samples) == 3 * RATE
    assert takes == [3 * RATE, 3 * RATE]


def test_a_recording_that_states_no_length_is_counted_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    decoded, takes = unstated(monkeypatch, 20), list[tuple[int, int]]()
    sound = open_sound(b"", takes=lambda count: takes.append((count, len(decoded))))
    assert np.array_equal(sound.samples, np.tile(PIECE, 20))
    assert takes[0] == (0, 0) and takes[-1] == (20 * RATE, 20)
    assert all(count >= pieces * RATE for count, pieces in takes[1:]), "memory has no piece before it counts"


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_pieces_of_another_rate_are_the_whole_resampled(monkeypatch: pytest.MonkeyPatch, rate: int):
    unstated(monkeypatch, 5, rate)
    assert np.array_equal(open_sound(b"").samples, resampled(np.tile(PIECE, 5), rate, RATE))


def test_a_count_that_is_refused_ends_the_decoding(monkeypatch: pytest.MonkeyPatch):
    decoded = unstated(monkeypatch, 1000)

    def takes(count: int) -> None:
        if count > 50 * RATE:
            raise Overloaded("too many", "", 1.0)

    with pytest.raises(Overloaded):
        open_sound(b"", takes=takes)
    assert len(decoded) <= 51


@pytest.fixture
def peak() -> Iterator[Any]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_opening_takes_little_more_memory_than_the_samples(monkeypatch: pytest.MonkeyPatch, peak: Any):
    """It took twice as much: all pieces, and then their sum."""
    unstated(monkeypatch, 300)
    samples = open_sound(b"").samples
    assert samples.nbytes == 300 * RATE * 4 and peak() < 1.3 * samples.nbytes


def test_a_recording_without_samples_is_empty():
    takes: list[int] = []
    assert len(open_sound(wav(b""), takes=takes.append).samples) == 0 and takes == [0, 0]
