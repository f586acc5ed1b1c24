"""A recording becomes text with times: where there is speech, chunk by chunk, hotter where an answer is not language.

Chunks are independent: the text before one is never its prompt, so no mistake feeds the next. What is heard again (a
half of a chunk, what its text left out, the same at a higher temperature) waits in one queue with the chunks, and the
model writes as many texts at once as its cache has room for. Segments come in the order of the recording.

Knows chunks, the ladder of temperatures and marks of time; knows no file, no network of a model and no protocol.
Source: arXiv 2212.04356, section 4.5, whose thresholds these are.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.types import Segment, Word
from freehold.run.local.spans import RATE, SpeechChunk, SpeechSpan, chunks, speech_spans
from freehold.run.local.speech_model import Decoded, Heard, SpeechModel, WindowText
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
CUTS = 2  # of a chunk, one in the other: at most seven windows in place of one
ALIKE = 1.5  # times as long as another saying of the same text, at most
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

    @property
    def temperatures(self) -> tuple[float, ...]:
        """What a text is written at, one after another while it fails."""
        return TEMPERATURES if self.temperature is None else (self.temperature,)


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
        self,
        hearing: Hearing,
        listening: Listening,
        pause: Callable[[], None] = lambda: None,
        *,
        skip: int = 0,
    ) -> Iterator[Segment]:
        """Yield the segments of a recording in order, without those of the first `skip` chunks.

        `pause` is called between pieces of the work, each a small part of a second; what it raises ends the work.
        """
        for segments in self.texts(hearing, listening, pause, skip=skip):
            yield from segments

    def texts(
        self,
        hearing: Hearing,
        listening: Listening,
        pause: Callable[[], None] = lambda: None,
        *,
        skip: int = 0,
    ) -> Iterator[tuple[Segment, ...]]:
        """Yield each chunk's segments in order, none for one without speech; as `segments`.

        A text depends on its chunk's samples alone, so what was heard of the first chunks before is what they give.
        """
        if not hearing.parts:
            return
        if not hearing.language:
            hearing.language = self._language(self._heard(hearing.parts[0], hearing, pause))
        job = _Job(hearing, listening, self._prompt(hearing.language, listening), pause)
        chunks = [SpokenPiece(part, CUTS) for part in hearing.parts[skip:]]
        waiting, running = deque(chunks), dict[WindowText, SpokenPiece]()
        try:
            for chunk in chunks:
                while not chunk.whole:
                    while waiting and len(running) < self._model.together:
                        piece = waiting.popleft()
                        running[self._begun(piece, job)] = piece
                    waiting.extendleft(reversed(self._advanced(running, job)))
                yield tuple(chunk.texts())
        finally:
            for text in running:
                text.close()

    def _begun(self, piece: SpokenPiece, job: _Job) -> WindowText:
        """Begin a piece's text, at the temperature that comes after those of the answers it has."""
        if piece.sound is None:
            piece.sound = self._heard(piece.part, job.hearing, job.pause)
        temperature = job.listening.temperatures[len(piece.answers)]
        return self._model.write(piece.sound, job.prompt, temperature=temperature)

    def _advanced(self, running: dict[WindowText, SpokenPiece], job: _Job) -> list[SpokenPiece]:
        """Continue texts until some are done, and take those out; return what is to be heard because of them."""
        again: list[SpokenPiece] = []
        for text in self._model.ended([*running], job.pause):
            again += self._judged(running.pop(text), text.decoded(), job)
            job.pause()
        return again

    def _judged(self, piece: SpokenPiece, answer: Decoded, job: _Job) -> list[SpokenPiece]:
        """Take an answer in; return what is to be heard because of it, the piece itself where that is hotter.

        A text that fails or crosses a long pause is heard again in two halves before it is heard hotter, and speech
        after a text's end is heard again: up to `cuts` times one in the other. A `rest` that fails is not speech.
        """
        piece.answers.append(answer)
        fails = self._fails(piece.part, answer)
        if len(piece.answers) == 1 and piece.cuts and (fails or self._crosses(piece.part, answer)):
            halves = [SpokenPiece(half, piece.cuts - 1) for half in piece.part.halves()]
            if halves:
                return piece.settled_with(halves)
        if fails and len(piece.answers) < len(job.listening.temperatures):
            return [piece]
        best = self._least_bad(piece) if fails else answer
        if self._is_silence(best) or (piece.rest and fails):
            return piece.settled_with([])
        piece.segments = list(self._cut(piece.part, best))
        if job.listening.words and piece.segments:
            assert piece.sound is not None, "it was heard"
            piece.segments = list(self._with_words(piece.segments, piece.part, piece.sound, job.prompt))
        left = self._rest(piece.part, best) if piece.cuts else None
        return piece.settled_with([] if left is None else [SpokenPiece(left, piece.cuts - 1, rest=True)])

    def _heard(self, part: SpeechChunk, hearing: Hearing, pause: Callable[[], None]) -> Heard:
        return self._model.encode([self._frames(part, hearing.recording)], pause)[0]

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

    def _least_bad(self, piece: SpokenPiece) -> Decoded:
        """Return the likeliest of answers that all fail, of those that do not repeat themselves where there are any."""
        fine = [each for each in piece.answers if not self._loops(piece.part, each)]
        return max(fine or piece.answers, key=lambda each: each.mean_logprob)

    def _fails(self, part: SpeechChunk, answer: Decoded) -> bool:
        if self._is_silence(answer):
            return False
        return answer.mean_logprob < LEAST_LOGPROB or self._loops(part, answer)

    def _loops(self, part: SpeechChunk, answer: Decoded) -> bool:
        """Tell whether a text repeats itself more than speech does.

        A sentence that was said three times with pauses between is not a loop, though zlib shortens it as one. So each
        stretch of speech is judged by its own text; and stretches of the same text last about as long as each other,
        or the model has written one text for all it heard.
        """
        if ratio(self._text(answer.tokens)) <= MOST_RATIO:
            return False
        texts: dict[int, str] = {}
        seconds: dict[int, float] = {}
        for begin, end, ids in self._marked(part, answer):
            at, seconds[at] = part.stretch(begin, end)
            texts[at] = texts.get(at, "") + self._text(ids)
        if len(texts) < 2 or any(ratio(text) > MOST_RATIO for text in texts.values()):
            return True
        lasting: dict[str, list[float]] = {}
        for at, text in texts.items():
            lasting.setdefault(text.strip().casefold(), []).append(seconds[at])
        return any(max(each) > ALIKE * min(each) for each in lasting.values())

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


@dataclass(slots=True, eq=False)
class SpokenPiece:
    """What is heard as one window: a chunk, a half of one, or the speech that a text left out."""

    part: SpeechChunk
    cuts: int  # how often it may be heard again in pieces, one in the other
    rest: bool = False  # after a text's end
    sound: Heard | None = None  # until it has its text
    answers: list[Decoded] = field(default_factory=list)  # so far, one a temperature
    segments: list[Segment] = field(default_factory=list)
    then: list[SpokenPiece] = field(default_factory=list)  # halves in its place, or what its text left out
    settled: bool = False  # nothing of it is to be heard but `then`

    def settled_with(self, then: list[SpokenPiece]) -> list[SpokenPiece]:
        """End with the segments it has and those of `then`, which is to be heard."""
        self.settled, self.sound, self.then = True, None, then
        return then

    @property
    def whole(self) -> bool:
        """Whether its text is whole."""
        return self.settled and all(piece.whole for piece in self.then)

    def texts(self) -> Iterator[Segment]:
        """Yield its segments in order."""
        yield from self.segments
        for piece in self.then:
            yield from piece.texts()


@dataclass(frozen=True, slots=True)
class _Job:
    """What all pieces of a recording share."""

    hearing: Hearing
    listening: Listening
    prompt: list[int]
    pause: Callable[[], None]


def _inside(words: Sequence[Word], segment: Segment) -> Iterator[Word]:
    """Yield words that begin and end where their segment does: its marks know more of a pause than the path does."""
    for word in words:
        start, end = (min(max(time, segment.start), segment.end) for time in (word.start, word.end))
        yield replace(word, start=start, end=end)


def ratio(text: str) -> float:
    """Return how many times zlib shortens a text."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw))
