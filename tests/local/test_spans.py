"""Speech as spans, spans as chunks of a window, and times of a chunk as seconds of the recording."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.run.local.transcribing import CHUNK, PAD_S, RATE, SpeechChunk, SpeechSpan, chunks, speech_spans


def probabilities(*parts: tuple[float, float]) -> np.ndarray:
    """Give probabilities for so many seconds each."""
    return np.concatenate([np.full(round(s * RATE / CHUNK), p, np.float32) for s, p in parts])


def spans_of(*parts: tuple[float, float]) -> list[tuple[float, float]]:
    p = probabilities(*parts)
    return [(s.begin / RATE, s.end / RATE) for s in speech_spans(p, len(p) * CHUNK)]


def test_silence_has_no_span_and_speech_is_padded():
    assert spans_of((5.0, 0.01)) == []
    ((begin, end),) = spans_of((2.0, 0.01), (1.0, 0.9), (2.0, 0.01))
    assert abs(begin - (2.0 - PAD_S)) < 0.05 and abs(end - (3.0 + PAD_S)) < 0.05


def test_a_breath_ends_no_span_and_a_click_begins_none():
    assert len(spans_of((1.0, 0.9), (0.1, 0.1), (1.0, 0.9))) == 1
    assert len(spans_of((1.0, 0.9), (0.3, 0.4), (1.0, 0.9))) == 1, "between both limits speech goes on"
    assert spans_of((1.0, 0.01), (0.1, 0.9), (1.0, 0.01)) == []


@given(st.lists(st.tuples(st.floats(0.1, 3), st.sampled_from([0.01, 0.4, 0.9])), max_size=20))
def test_spans_are_in_order_apart_and_within_the_recording(parts: list[tuple[float, float]]):
    p = probabilities(*parts) if parts else np.zeros(0, np.float32)
    spans = speech_spans(p, len(p) * CHUNK)
    ends = [0, *(edge for span in spans for edge in (span.begin, span.end)), len(p) * CHUNK]
    assert ends == sorted(ends) and all(span.samples > 0 for span in spans)


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 900_000)), max_size=12))
def test_chunks_hold_every_sample_once_and_no_more_than_a_window(steps: list[tuple[int, int]]):
    spans, at = [], 0
    for gap, length in steps:
        spans.append(SpeechSpan(at + gap, at + gap + length))
        at += gap + length
    recording = np.random.default_rng(1).normal(size=at).astype(np.float32)
    packed = chunks(recording, spans)
    assert all(0 < each.samples <= 30 * RATE for each in packed)
    got = [i for each in packed for span in each.spans for i in (span.begin, span.end)]
    assert got == sorted(got)
    whole = np.concatenate([each.audio(recording) for each in packed]) if packed else np.zeros(0)
    assert np.array_equal(whole, np.concatenate([recording[s.begin : s.end] for s in spans] or [np.zeros(0)]))


def test_long_speech_is_cut_where_it_is_quietest():
    recording = np.ones(70 * RATE, np.float32)
    recording[25 * RATE : 25 * RATE + RATE // 2] = 0
    first, *_ = chunks(recording, [SpeechSpan(0, len(recording))])
    assert 25.0 <= first.spans[0].end / RATE <= 25.5


def test_times_of_a_chunk_are_seconds_of_the_recording():
    chunk = SpeechChunk((SpeechSpan(2 * RATE, 3 * RATE), SpeechSpan(10 * RATE, 12 * RATE)))
    assert chunk.second(0.0) == 2.0 and chunk.second(0.5) == 2.5
    assert chunk.second(1.0) == 10.0 and chunk.second(1.0, end=True) == 3.0
    assert chunk.second(2.5) == 11.5 and chunk.second(9.0) == 12.0


# A sentence of 2 s, a pause of 7 s, one of 3 s: spans with PAD_S of padding on both sides of the pause.
PAUSED = SpeechChunk((SpeechSpan(2 * RATE, round(4.4 * RATE)), SpeechSpan(round(10.6 * RATE), 14 * RATE)))


def test_a_text_begins_after_a_pause_and_ends_before_it():
    assert PAUSED.between(0.0, 2.3) == pytest.approx((2.0, 4.0)), "it ends in the padding"
    assert PAUSED.between(2.3, 5.8) == pytest.approx((11.0, 14.0)), (
        "it begins in the padding of the span before"
    )
    begin, end = PAUSED.between(2.05, 2.1)
    assert end - begin == pytest.approx(0.02), "a text in the padding alone has a length"
    assert PAUSED.between(1.7, 5.8) == pytest.approx((11.0, 14.0)), "its mark misses the pause by a little"
    assert PAUSED.between(0.0, 3.2) == pytest.approx((2.0, 4.0)), "it ends shortly after the pause"
    assert PAUSED.between(0.5, 1.4) == pytest.approx((2.5, 3.4))
    assert PAUSED.between(9.0, 9.5) == pytest.approx((14.0, 14.02))


def test_a_lone_word_between_two_pauses_keeps_its_place():
    spans = SpeechSpan(0, 2 * RATE), SpeechSpan(5 * RATE, 6 * RATE), SpeechSpan(9 * RATE, 12 * RATE)
    chunk = SpeechChunk(spans)  # 0.2 s of speech in the second
    assert chunk.between(2.4, 2.6) == pytest.approx((5.4, 5.6))


def test_a_word_is_on_the_side_of_a_pause_where_more_of_it_is():
    assert PAUSED.spoken(1.9, 3.0) == pytest.approx((11.0, 11.2))
    assert PAUSED.spoken(1.2, 2.9) == pytest.approx((3.2, 4.0))


def test_a_text_over_a_long_pause_is_known_and_cut_at_the_longest():
    assert PAUSED.crosses(0.0, 5.8) and not PAUSED.crosses(0.0, 2.6) and not PAUSED.crosses(2.2, 5.8)
    assert PAUSED.halves() == tuple(SpeechChunk((span,)) for span in PAUSED.spans)
    near = SpeechChunk((SpeechSpan(0, RATE), SpeechSpan(RATE, 3 * RATE)))
    assert near.halves() == () and not near.crosses(0.0, 3.0)


def test_what_follows_a_time_is_heard_again_if_it_has_speech():
    rest = PAUSED.after(2.1)
    assert (
        rest is not None and rest.spans[-1] == PAUSED.spans[-1] and rest.spans[0].begin == round(4.1 * RATE)
    )
    assert PAUSED.after(5.0) is None, "eight tenths of a second are left"
