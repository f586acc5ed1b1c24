"""Speech in a recording as spans, and spans as chunks that one window of a model holds.

A chunk is speech alone: what is between its spans is left out, so that pauses cost nothing and nothing is heard in
them. Times in a chunk lead back to the recording through its spans. Knows samples and probabilities; knows no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

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
        return first.at(begin), max(last.at(end), first.at(begin))

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
