"""A recording becomes text with times: where there is speech, chunk by chunk, hotter where an answer is not language.

Speech is spans of the recording, and spans become chunks that one window of a model has room for. A chunk is speech
alone: what is between its spans is left out, so that pauses cost nothing and nothing is heard in them. Times in a chunk
lead back to the recording through its spans.

Chunks are independent: the text before one is never its prompt, so no mistake feeds the next. What is heard again (a
half of a chunk, what its text left out, the same at a higher temperature) waits in one queue with the chunks, and the
model writes as many texts at once as its cache has room for. Segments come in the order of the recording.

Knows chunks, the ladder of temperatures and marks of time; knows no file, no network of a model and no protocol.
Source: arXiv 2212.04356, section 4.5, whose thresholds these are.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.types import Segment, Word
from freehold.run.local.speech_model import STEP_S, Decoded, Heard, SpeechModel, WindowText
from freehold.run.local.words import Aligner, timed_words, token_seconds
from freehold.run.models.mel import energies, scaled, window
from freehold.run.models.vad import SpeechDetector
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]

# --- speech as spans, spans as chunks --------------------------------------------------------------

RATE = 16_000
CHUNK = 512  # samples of a probability
BEGINS, ENDS = 0.5, 0.35  # of speech: a probability that begins it, and one below which it may end
SHORTEST_S = 0.25  # that counts as speech
PAUSE_S = 0.16  # that ends a span
PAD_S = 0.4  # of a span before its speech and after it
SLACK_S = 0.5  # by which a mark of time misses a pause, at most
APART_S = 2.0  # a pause that no text should cross
REST_S = 1.0  # of speech after a text's end that a model has left out
WINDOW_S = 30.0
QUIET_S = 0.1  # whose energy is compared, where speech continues for longer than a window


@dataclass(frozen=True, slots=True)
class SpeechSpan:
    """Samples from `begin` to before `end`."""

    begin: int
    end: int

    @property
    def samples(self) -> int:
        """How many."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """Spans of a recording that are heard as one window."""

    spans: tuple[SpeechSpan, ...]

    @property
    def samples(self) -> int:
        """How many it has."""
        return sum(span.samples for span in self.spans)

    def audio(self, recording: F32) -> F32:
        """Return its samples, one span after another."""
        return np.concatenate([recording[span.begin : span.end] for span in self.spans])

    def second(self, time: float, *, end: bool = False) -> float:
        """Return the second of the recording at a time of the chunk; `end`: of the span that ends there."""
        left = round(time * RATE)
        for span in self.spans:
            if left < span.samples or (end and left <= span.samples):
                return (span.begin + max(left, 0)) / RATE
            left -= span.samples
        return self.spans[-1].end / RATE

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Return seconds of the recording between which speech lies that a model hears from `begin` to `end`.

        A model that hears no pause marks one sentence's end and the next one's begin anywhere in the padding that
        stands for it. So what begins in the padding before a pause begins after it, and what ends in the padding
        after a pause ended before it.
        """
        stretches = self._stretches()
        starts = [each for each in stretches if each.until - each.slack > begin] or stretches[-1:]
        first = starts[0]
        ends = [each for each in stretches if each.since + each.slack < end and each.since >= first.since]
        last = ends[-1] if ends else first
        start = first.at(begin)
        # Marks in the padding alone would give no seconds, and a player shows no text without any.
        return start, max(last.at(end), start + STEP_S)

    def spoken(self, begin: float, end: float) -> tuple[float, float]:
        """Return the seconds of one word: on the side of a pause where more of it is."""
        stretches = self._stretches()
        best = max(stretches, key=lambda each: min(end, each.until) - max(begin, each.since))
        return best.at(begin), best.at(end)

    def crosses(self, begin: float, end: float) -> bool:
        """Tell whether a text from `begin` to `end` has speech, a pause of APART_S or more, and speech again."""
        parts = [
            each for each in self._stretches() if min(end, each.until) - max(begin, each.since) >= SLACK_S
        ]
        return any(after.second - before.last >= APART_S for before, after in itertools.pairwise(parts))

    def stretch(self, begin: float, end: float) -> tuple[int, float]:
        """Return in which stretch of speech without a pause most of a text lies, and that stretch's seconds."""
        stretches = self._stretches()
        shares = [min(end, each.until) - max(begin, each.since) for each in stretches]
        at = max(range(len(shares)), key=lambda i: shares[i])
        return at, stretches[at].until - stretches[at].since

    def halves(self) -> tuple[SpeechChunk, ...]:
        """Return the chunk in two, cut at its longest pause; none where it has no pause."""
        pauses = [after.begin - before.end for before, after in itertools.pairwise(self.spans)]
        if not any(pauses):
            return ()
        cut = max(range(len(pauses)), key=lambda i: pauses[i]) + 1
        return SpeechChunk(self.spans[:cut]), SpeechChunk(self.spans[cut:])

    def after(self, time: float) -> SpeechChunk | None:
        """Return what follows a time, if REST_S of speech or more do."""
        if sum(each.until - max(each.since, min(time, each.until)) for each in self._stretches()) < REST_S:
            return None
        left, rest = round(time * RATE), list[SpeechSpan]()
        for span in self.spans:
            if left < span.samples:
                rest.append(SpeechSpan(span.begin + max(left, 0), span.end))
            left -= span.samples
        return SpeechChunk(tuple(rest))

    def _stretches(self) -> list[_Stretch]:
        """Return the chunk's speech between its pauses, without the padding on their sides."""
        out: list[_Stretch] = []
        time = 0.0
        for i, span in enumerate(self.spans):
            paused = i > 0 and span.begin > self.spans[i - 1].end
            follows = i + 1 < len(self.spans) and self.spans[i + 1].begin > span.end
            room = span.samples / RATE
            since = time + (min(PAD_S, room / 2) if paused else 0)
            until = time + room - (min(PAD_S, room / 2) if follows else 0)
            if out and not paused:
                out[-1] = _Stretch(out[-1].since, until, out[-1].second)
            else:
                out.append(_Stretch(since, until, span.begin / RATE + since - time))
            time += room
        return out


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Speech without a pause: times of a chunk, and the second of the recording at the first of them."""

    since: float
    until: float
    second: float

    @property
    def last(self) -> float:
        """The second of the recording at its end."""
        return self.second + self.until - self.since

    @property
    def slack(self) -> float:
        """By how many seconds a mark may miss its ends: less where it is short, as a lone word is."""
        return min(SLACK_S, (self.until - self.since) / 2)

    def at(self, time: float) -> float:
        """Return the second of the recording at a time, or at the end of the stretch that is nearer to it."""
        return self.second + min(max(time, self.since), self.until) - self.since


def speech_spans(probabilities: F32, samples: int) -> list[SpeechSpan]:
    """Return where there is speech, by the probability of each CHUNK samples, padded and in order."""
    bare: list[SpeechSpan] = []
    begin, quiet = -1, -1
    for i, p in enumerate(probabilities):
        at = i * CHUNK
        if p >= BEGINS:
            begin, quiet = (at if begin < 0 else begin), -1
        elif begin >= 0 and p < ENDS:
            quiet = at if quiet < 0 else quiet
            if at - quiet >= PAUSE_S * RATE:
                bare.append(SpeechSpan(begin, quiet))
                begin, quiet = -1, -1
    if begin >= 0:
        bare.append(SpeechSpan(begin, samples if quiet < 0 else quiet))
    return list(_padded([span for span in bare if span.samples >= SHORTEST_S * RATE], samples))


def _padded(spans: Sequence[SpeechSpan], samples: int) -> Iterator[SpeechSpan]:
    """Pad spans; two that would meet share what lies between them."""
    pad = round(PAD_S * RATE)
    begin = 0
    for i, span in enumerate(spans):
        begin = max(span.begin - pad, begin)
        following = spans[i + 1].begin if i + 1 < len(spans) else samples + pad
        end = min(span.end + min(pad, (following - span.end) // 2), samples)
        yield SpeechSpan(begin, end)
        begin = end


def chunks(recording: F32, spans: Sequence[SpeechSpan], window_s: float = WINDOW_S) -> list[SpeechChunk]:
    """Pack spans into chunks of at most a window, in order; a longer one is cut where it is quietest."""
    most = int(window_s * RATE)
    packed: list[list[SpeechSpan]] = []
    room = 0
    for span in (piece for each in spans for piece in _cut(recording, each, most)):
        if not packed or span.samples > room:
            packed.append([])
            room = most
        packed[-1].append(span)
        room -= span.samples
    return [SpeechChunk(tuple(each)) for each in packed]


def _cut(recording: F32, span: SpeechSpan, most: int) -> Iterator[SpeechSpan]:
    """Yield pieces of at most `most` samples, cut in the quietest tenth of a second of each one's second half."""
    begin = span.begin
    while span.end - begin > most:
        piece = recording[begin + most // 2 : begin + most]
        width = int(QUIET_S * RATE)
        energy = np.add.reduceat(piece.astype(np.float64) ** 2, range(0, len(piece) - width + 1, width))
        cut = begin + most // 2 + int(energy.argmin()) * width + width // 2
        yield SpeechSpan(begin, cut)
        begin = cut
    yield SpeechSpan(begin, span.end)


# --- chunks to text --------------------------------------------------------------------------------

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
                "this model does not translate: it supports only English", "use a multilingual model"
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
