"""What is heard again: texts that fail, that cross a pause, and speech that a text leaves out. The network is a script.

A recording's samples are its seconds, so a window tells which part of it is heard; what a model would write there is a
table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest

from freehold.base.types import Segment
from freehold.run.local.spans import RATE, SpeechChunk, SpeechSpan
from freehold.run.local.speech_model import Decoded, Heard, SpeechModel
from freehold.run.local.speech_rules import SpeechTokens
from freehold.run.local.transcribing import Hearing, Listening, Transcriber
from freehold.run.models.vad import SpeechDetector
from freehold.run.tokenizer import Tokenizer

TOKENS = SpeechTokens(301, 300, 302, 303, None, 304, 305, 1000, {}, (), ())
Script = Mapping[tuple[int, float], tuple[str, float]]  # samples, temperature -> text with <marks>, mean


class Letters:
    """A tokenizer whose tokens are characters below 256."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Scripted:
    """A model that answers a window by its number of samples."""

    tokens, bands, rows = TOKENS, 80, 1500

    def __init__(self, script: Script) -> None:
        self.script, self.calls = script, list[tuple[int, float]]()

    def encode(self, frames: Sequence[int], pause: Callable[[], None]) -> list[Heard]:
        return [Heard(b"", np.array([n], np.float32)) for n in frames]

    def decode(self, heard: Sequence[Heard], prompts: Any, *, temperature: float) -> list[Decoded]:
        return [self._answer(int(each.features[0]), temperature) for each in heard]

    def _answer(self, samples: int, temperature: float) -> Decoded:
        self.calls.append((samples, temperature))
        text, mean = self.script[samples, temperature]
        ids: list[int] = []
        for piece in text.split("|"):
            mark = piece.replace(".", "", 1).isdigit()
            ids += [TOKENS.mark(float(piece))] if mark else [ord(c) for c in piece]
        return Decoded(tuple(ids), mean * (len(ids) + 1), 0.0, temperature, True)


class Whole(Transcriber):
    """A transcriber whose windows are numbers of samples."""

    def _frames(self, part: SpeechChunk, recording: Any) -> Any:
        return part.samples


def heard(script: Script, *spans: tuple[float, float]) -> tuple[list[Segment], list[tuple[int, float]]]:
    chunk = SpeechChunk(tuple(SpeechSpan(round(a * RATE), round(b * RATE)) for a, b in spans))
    model = Scripted({(round(s * RATE), t): answer for (s, t), answer in script.items()})
    reader = Whole(cast(SpeechModel, model), cast(Tokenizer, Letters()), cast(SpeechDetector, None), None)
    hearing = Hearing(np.zeros(1, np.float32), [chunk], "en")
    return list(reader.segments(hearing, Listening("en"))), [(n // RATE, t) for n, t in model.calls]


LOOP = "0.00|" + "and so " * 40 + "|8.00"


def test_a_text_that_fails_is_heard_in_halves_before_it_is_heard_hotter():
    script = {(8, 0.0): (LOOP, -0.1), (3, 0.0): ("0.00|One.|3.00", -0.2), (5, 0.0): ("0.00|Two.|5.00", -0.2)}
    segments, calls = heard(script, (0, 3), (10, 15))
    assert [each.text for each in segments] == ["One.", "Two."] and calls == [(8, 0.0), (3, 0.0), (5, 0.0)]


def test_a_text_over_a_long_pause_becomes_one_on_each_side():
    script = {(8, 0.0): ("0.00|One and two.|8.00", -0.2)}
    script |= {(3, 0.0): ("0.00|One|3.00", -0.2), (5, 0.0): ("0.00|and two.|5.00", -0.2)}
    segments, _ = heard(script, (0, 3), (10, 15))
    assert [(each.start, each.end, each.text) for each in segments] == [(0, 3, "One"), (10, 15, "and two.")]


def test_speech_after_the_end_of_a_text_is_heard_again():
    segments, _ = heard({(8, 0.0): ("0.00|One.|5.00", -0.2), (3, 0.0): ("0.00|Two.|2.50", -0.2)}, (2, 10))
    assert [(each.start, each.end, each.text) for each in segments] == [(2, 7, "One."), (7, 9.5, "Two.")]


def test_a_rest_without_a_good_text_is_no_speech():
    ladder = {(3, t): ("0.00|the|2.00", -2.0) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    segments, calls = heard({(8, 0.0): ("0.00|One.|5.00", -0.2), **ladder}, (2, 10))
    assert [each.text for each in segments] == ["One."] and len(calls) == 7


def test_where_every_temperature_fails_the_likeliest_that_repeats_nothing_stays():
    ladder = {(8, t): ("0.00|nothing|8.00", -3.0 - t) for t in (0.4, 0.6, 0.8, 1.0)}
    script = {(8, 0.0): (LOOP, -0.1), (8, 0.2): ("0.00|something|8.00", -1.5), **ladder}
    segments, _ = heard(script, (0, 8))
    assert [(each.text, each.temperature) for each in segments] == [("something", 0.2)]


@pytest.mark.parametrize("spans", [[(0, 2), (10, 12), (20, 22), (30, 32), (40, 42)]])
def test_cuts_end(spans: list[tuple[float, float]]):
    """Seven windows stand for one at most, whatever is written."""
    bad = {(n, t): (LOOP, -0.1) for n in range(1, 11) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    _, calls = heard(bad, *spans)
    assert sum(t == 0.0 for _, t in calls) <= 7
