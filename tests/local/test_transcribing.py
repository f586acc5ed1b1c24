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
from freehold.run.local.speech_model import Decoded, Heard, SpeechModel, SpeechTokens
from freehold.run.local.transcribing import (
    RATE,
    Hearing,
    Listening,
    SpeechChunk,
    SpeechSpan,
    Transcriber,
    ratio,
)
from freehold.run.models.vad import SpeechDetector
from freehold.run.tokenizer import Tokenizer

TOKENS = SpeechTokens(301, 300, 302, 303, None, 304, 305, 1000, {}, (), ())
Script = Mapping[tuple[int, float], tuple[str, float]]  # samples, temperature -> text with <marks>, mean


class Letters:
    """A tokenizer whose tokens are characters below 256."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Scripted:
    """A model that answers a window by its number of samples; a text is done after its number of letters in steps."""

    tokens, bands, rows = TOKENS, 80, 1500

    def __init__(self, script: Script, together: int = 8) -> None:
        self.script, self.together, self.calls = script, together, list[tuple[int, float]]()
        self.running: list[int] = []  # texts, of each wait

    def encode(self, frames: Sequence[int], pause: Callable[[], None]) -> list[Heard]:
        return [Heard(b"", np.array([n], np.float32)) for n in frames]

    def write(self, heard: Heard, prompt: Any, *, temperature: float) -> Writing:
        return Writing(self._answer(int(heard.features[0]), temperature))

    def ended(self, texts: Sequence[Writing], pause: Callable[[], None]) -> list[Writing]:
        self.running.append(len(texts))
        pause()
        least = min(text.left for text in texts)
        for text in texts:
            text.left -= least
        return [text for text in texts if not text.left]

    def _answer(self, samples: int, temperature: float) -> Decoded:
        self.calls.append((samples, temperature))
        text, mean = self.script[samples, temperature]
        ids: list[int] = []
        for piece in text.split("|"):
            mark = piece.replace(".", "", 1).isdigit()
            ids += [TOKENS.mark(float(piece))] if mark else [ord(c) for c in piece]
        return Decoded(tuple(ids), mean * (len(ids) + 1), 0.0, temperature, True)


class Writing:
    """A text on its way."""

    def __init__(self, answer: Decoded) -> None:
        self.answer, self.left, self.closed = answer, len(answer.tokens), False

    def decoded(self) -> Decoded:
        return self.answer

    def close(self) -> None:
        self.closed = True


class Whole(Transcriber):
    """A transcriber whose windows are numbers of samples."""

    def _frames(self, part: SpeechChunk, recording: Any) -> Any:
        return part.samples


def transcriber(script: Script, together: int = 8) -> tuple[Transcriber, Scripted]:
    model = Scripted({(round(s * RATE), t): answer for (s, t), answer in script.items()}, together)
    reader = Whole(cast(SpeechModel, model), cast(Tokenizer, Letters()), cast(SpeechDetector, None), None)
    return reader, model


def chunk(*spans: tuple[float, float]) -> SpeechChunk:
    return SpeechChunk(tuple(SpeechSpan(round(a * RATE), round(b * RATE)) for a, b in spans))


def heard(script: Script, *spans: tuple[float, float]) -> tuple[list[Segment], list[tuple[int, float]]]:
    reader, model = transcriber(script)
    hearing = Hearing(np.zeros(1, np.float32), [chunk(*spans)], "en")
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


SAID = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
)
THREE = f"0.00|{SAID}|5.00|5.00|{SAID}|10.00|10.00|{SAID}|15.00"


def test_a_sentence_that_was_said_three_times_is_no_loop():
    assert ratio(3 * SAID) > 2.4, "zlib shortens it as a loop"
    segments, calls = heard({(15, 0.0): (THREE, -0.2)}, (0, 5), (6, 11), (12, 17))
    assert [each.text for each in segments] == [SAID] * 3 and calls == [(15, 0.0)]


def test_one_text_for_sentences_that_last_differently_is_a_loop():
    """Two of 5 s and one of 2 s were not the same sentence."""
    script = {(12, 0.0): (f"0.00|{SAID}|5.00|5.00|{SAID}|10.00|10.00|{SAID}|12.00", -0.2)}
    script |= {(10, 0.0): ("0.00|One.|5.00|5.00|Two.|10.00", -0.2), (2, 0.0): ("0.00|Three.|2.00", -0.2)}
    segments, _ = heard(script, (0, 5), (6, 11), (14, 16))
    assert [each.text for each in segments] == ["One.", "Two.", "Three."]


CHUNKS = [chunk((100 * i, 100 * i + 3 + i)) for i in range(6)]
LENGTHS = [7, 2, 9, 1, 4, 3]  # letters of each chunk's text: later ones are done first
TALK = {(3 + i, 0.0): (f"0.00|{chr(97 + i) * n}|{3 + i}.00", -0.2) for i, n in enumerate(LENGTHS)}


@pytest.mark.parametrize("together", [1, 2, 4, 8])
def test_texts_come_in_order_whichever_is_done_first(together: int):
    reader, model = transcriber(TALK, together)
    texts = list(reader.texts(Hearing(np.zeros(1, np.float32), CHUNKS, "en"), Listening("en")))
    assert [[each.text for each in chunk] for chunk in texts] == [
        [chr(97 + i) * n] for i, n in enumerate(LENGTHS)
    ]
    assert max(model.running) == min(together, 6)
    full = [running for running in model.running if running == min(together, 6)]
    assert len(full) >= len(CHUNKS) - together + 1, "a text that is done makes place for the next"


def test_what_is_heard_again_joins_the_texts_that_are_written():
    """A chunk's halves run beside the other chunks, and before those that come later."""
    bad = {
        (8, 0.0): ("0.00|?|8.00", -3.0),
        (3, 0.0): ("0.00|One.|3.00", -0.2),
        (5, 0.0): ("0.00|Two.|5.00", -0.2),
    }
    reader, model = transcriber({**bad, (30, 0.0): ("0.00|Three.|30.00", -0.2)}, 2)
    parts = [chunk((0, 3), (10, 15)), *(chunk((100 * i, 100 * i + 30)) for i in range(1, 4))]
    texts = list(reader.texts(Hearing(np.zeros(1, np.float32), parts, "en"), Listening("en")))
    assert [[each.text for each in some] for some in texts] == [["One.", "Two."], *[["Three."]] * 3]
    order = [n // RATE for n, _ in model.calls]
    assert order.index(3) < 4 and order.index(5) < 5 and model.running.count(2) >= len(model.running) - 1


@pytest.mark.parametrize("skip", range(7))
def test_a_recording_is_continued_after_its_first_chunks(skip: int):
    hearing = Hearing(np.zeros(1, np.float32), CHUNKS, "en")
    whole = list(transcriber(TALK)[0].texts(hearing, Listening("en")))
    reader, model = transcriber(TALK)
    assert list(reader.texts(hearing, Listening("en"), skip=skip)) == whole[skip:]
    assert list(reader.segments(hearing, Listening("en"), skip=skip)) == [
        segment for segments in whole[skip:] for segment in segments
    ]
    assert len(model.calls) == 2 * (6 - skip), "what was skipped is not heard"


def test_an_end_closes_the_texts_that_are_written():
    reader, model = transcriber(TALK, 4)
    written: list[Writing] = []
    write = model.write
    model.write = lambda *args, **kwargs: written.append(write(*args, **kwargs)) or written[-1]  # pyright: ignore

    def pause() -> None:
        if len(written) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(reader.texts(Hearing(np.zeros(1, np.float32), CHUNKS, "en"), Listening("en"), pause))
    assert sum(each.closed for each in written) >= 3
