"""A recording becomes text with times: where there is speech, chunk by chunk, hotter where an answer is not language.

Chunks are independent: the text before one is never its prompt, so no mistake feeds the next. Knows chunks, the ladder
of temperatures and marks of time; knows no file, no network of a model and no protocol.
Source: arXiv 2212.04356, section 4.5, whose thresholds these are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.types import Segment, Word
from freehold.run.local.spans import RATE, SpeechChunk, SpeechSpan, chunks, speech_spans
from freehold.run.local.speech_model import Decoded, Heard, SpeechModel
from freehold.run.local.words import Aligner, timed_words, token_seconds
from freehold.run.models.mel import energies, scaled, window
from freehold.run.models.vad import SpeechDetector
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]
SpeechTask = Literal["transcribe", "translate"]

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_RATIO = 2.4  # of a text's bytes to their zlib form: a text above it repeats itself
LEAST_LOGPROB = -1.0  # of a token, on the average
NO_SPEECH = 0.6  # probability above which a chunk with so bad a text is silence
TOGETHER = 8  # chunks that are decoded at once
CUTS = 2  # of a chunk, one in the other: at most seven windows in place of one
MAX_PROMPT = 223  # tokens of the text before


@dataclass(frozen=True, slots=True)
class Listening:
    """How a recording is to be heard."""

    language: str = ""  # "": that of the first speech
    task: SpeechTask = "transcribe"
    prompt: str = ""  # names and spellings to expect: the text before every chunk
    words: bool = False
    temperature: float | None = None  # None: TEMPERATURES, one after another
    detect: bool = True  # only speech is heard, and no pause, music or noise


@dataclass(slots=True)
class Hearing:
    """A recording on its way: what was found of it so far."""

    recording: F32
    parts: list[SpeechChunk]
    language: str

    @property
    def speech_s(self) -> float:
        """Seconds that are heard."""
        return sum(part.samples for part in self.parts) / RATE


class Transcriber:
    """A speech model with its tokenizer, a detector of speech, and what aligns words. One thread at a time."""

    def __init__(
        self, model: SpeechModel, tokenizer: Tokenizer, detector: SpeechDetector, aligner: Aligner | None
    ) -> None:
        self._model, self._tokenizer, self._detector, self._aligner = model, tokenizer, detector, aligner

    def begin(self, recording: F32, listening: Listening) -> Hearing:
        """Find the speech of a recording, float32 at 16 kHz. Raises UsageError for what this model cannot do."""
        tokens = self._model.tokens
        if listening.language and listening.language not in (tokens.languages or {"en": 0}):
            known = ", ".join(sorted(tokens.languages)) or "en"
            raise UsageError(
                f"the language {listening.language!r} is not one of the model's: {known}", field="language"
            )
        if listening.task == "translate" and tokens.translate is None:
            raise UnsupportedModel(
                "this model does not translate: it knows English alone", "take a multilingual one"
            )
        if listening.words and self._aligner is None:
            raise UnsupportedModel("this model's files name no heads that align words", "leave words out")
        spans = [SpeechSpan(0, len(recording))] if len(recording) else []
        if listening.detect:
            spans = speech_spans(self._detector.probabilities(recording), len(recording))
        return Hearing(recording, chunks(recording, spans), listening.language)

    def segments(
        self, hearing: Hearing, listening: Listening, pause: Callable[[], None] = lambda: None
    ) -> Iterator[Segment]:
        """Yield the segments of a recording in order, of some chunks at a time.

        `pause` is called between pieces of the encoder's work; what it raises ends the work.
        """
        for first in range(0, len(hearing.parts), TOGETHER):
            yield from self._texts(hearing.parts[first : first + TOGETHER], hearing, listening, pause, CUTS)

    def _texts(
        self,
        parts: Sequence[SpeechChunk],
        hearing: Hearing,
        listening: Listening,
        pause: Callable[[], None],
        cuts: int,
        *,
        rest: bool = False,
    ) -> Iterator[Segment]:
        """Yield the segments of some chunks.

        A text that fails or crosses a long pause is heard again in two halves before it is heard hotter, and speech
        after a text's end is heard again: up to `cuts` times one in the other. A `rest` that fails is not speech.
        """
        heard = self._model.encode([self._frames(part, hearing.recording) for part in parts], pause)
        if not hearing.language:
            hearing.language = self._language(heard[0])
        prompt = self._prompt(hearing.language, listening)
        ladder = TEMPERATURES if listening.temperature is None else (listening.temperature,)
        answers = self._model.decode(heard, [prompt] * len(heard), temperature=ladder[0])
        for part, sound, first in zip(parts, heard, answers, strict=True):
            answer, fails = first, self._fails(first)
            if cuts and (fails or self._crosses(part, first)) and (halves := part.halves()):
                yield from self._texts(halves, hearing, listening, pause, cuts - 1)
                continue
            if fails:
                answer = self._hotter(sound, prompt, first, ladder[1:])
            if self._is_silence(answer) or (rest and self._fails(answer)):
                continue
            segments = list(self._cut(part, answer))
            yield from self._with_words(segments, part, sound, prompt) if listening.words else segments
            left = self._rest(part, answer) if cuts else None
            if left is not None:
                yield from self._texts((left,), hearing, listening, pause, cuts - 1, rest=True)

    def _crosses(self, part: SpeechChunk, answer: Decoded) -> bool:
        return any(part.crosses(begin, end) for begin, end, _ in self._marked(part, answer))

    def _rest(self, part: SpeechChunk, answer: Decoded) -> SpeechChunk | None:
        """Return the speech after an answer that ends before it."""
        tokens = self._model.tokens
        last = answer.tokens[-1] if answer.tokens else tokens.end
        time = tokens.seconds(last) if last > tokens.first_mark else 0.0
        return part.after(time) if time else None

    def _frames(self, part: SpeechChunk, recording: F32) -> F32:
        decades = energies(part.audio(recording), self._model.bands)
        return window(scaled(decades, float(decades.max(initial=-10.0))))

    def _language(self, heard: Heard) -> str:
        likely = self._model.language(heard)
        return max(likely, key=lambda code: likely[code]) if likely else "en"

    def _prompt(self, language: str, listening: Listening) -> list[int]:
        tokens, before = self._model.tokens, listening.prompt.strip()
        prompt = [tokens.start]
        if before:
            ids = self._tokenizer.encode(f" {before}", bos=False)
            prompt = [tokens.previous, *ids[-MAX_PROMPT:], tokens.start]
        if tokens.languages:
            job = tokens.transcribe if listening.task == "transcribe" else tokens.translate
            assert job is not None, "begin() refused it"
            prompt += [tokens.languages[language], job]
        return prompt

    def _hotter(self, sound: Heard, prompt: list[int], first: Decoded, ladder: Sequence[float]) -> Decoded:
        """Return the first answer that does not fail; where all do, the likeliest of those that repeat nothing."""
        answers = [first]
        for temperature in ladder:
            answers += self._model.decode([sound], [prompt], temperature=temperature)
            if not self._fails(answers[-1]):
                return answers[-1]
        fine = [each for each in answers if ratio(self._text(each.tokens)) <= MOST_RATIO]
        return max(fine or answers, key=lambda each: each.mean_logprob)

    def _fails(self, answer: Decoded) -> bool:
        if self._is_silence(answer):
            return False
        return ratio(self._text(answer.tokens)) > MOST_RATIO or answer.mean_logprob < LEAST_LOGPROB

    def _is_silence(self, answer: Decoded) -> bool:
        return answer.no_speech_prob > NO_SPEECH and answer.mean_logprob < LEAST_LOGPROB

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([id for id in ids if id < self._model.tokens.end])

    def _cut(self, part: SpeechChunk, answer: Decoded) -> Iterator[Segment]:
        """Yield the texts between marks of time."""
        for begin, end, ids in self._marked(part, answer):
            text = self._text(ids).strip()
            if text:
                yield Segment(
                    *part.between(begin, end),
                    text,
                    tuple(ids),
                    answer.temperature,
                    answer.mean_logprob,
                    ratio(self._text(answer.tokens)),
                    answer.no_speech_prob,
                )

    def _marked(self, part: SpeechChunk, answer: Decoded) -> Iterator[tuple[float, float, list[int]]]:
        """Yield the tokens between two marks of time, with times of the chunk; the last ones end where it does."""
        tokens = self._model.tokens
        begin, ids = 0.0, list[int]()
        for id in (*answer.tokens, tokens.mark(part.samples / RATE)):
            if id < tokens.first_mark:
                ids.append(id)
                continue
            end = tokens.seconds(id)
            if ids:
                yield begin, end, ids
            begin, ids = end, []

    def _with_words(
        self, segments: Sequence[Segment], part: SpeechChunk, heard: Heard, prompt: Sequence[int]
    ) -> Iterator[Segment]:
        """Yield a chunk's segments with the times of their words, which all texts of the chunk are aligned for."""
        assert self._aligner is not None, "begin() refused it"
        tokens = self._model.tokens
        frames = min(-(-part.samples // (RATE // 50)), self._model.rows)
        before = prompt[prompt.index(tokens.start) :]
        texts = [id for segment in segments for id in segment.tokens]
        ids = [*before, tokens.no_marks, *texts, tokens.end]
        weights = self._aligner.weights(heard.features, ids, frames)[:, len(before) : -1]
        starts = token_seconds(weights)
        first = 0
        for segment in segments:
            last = first + len(segment.tokens)
            words = timed_words(self._tokenizer, segment.tokens, starts[first : last + 1], part.spoken)
            first = last
            yield replace(segment, words=tuple(_inside(words, segment)))


def _inside(words: Sequence[Word], segment: Segment) -> Iterator[Word]:
    """Yield words that begin and end where their segment does: its marks know more of a pause than the path does."""
    for word in words:
        start, end = (min(max(time, segment.start), segment.end) for time in (word.start, word.end))
        yield replace(word, start=start, end=end)


def ratio(text: str) -> float:
    """Return how many times zlib shortens a text."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw))
