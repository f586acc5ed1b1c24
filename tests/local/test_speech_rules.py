"""Marks of time come first, in pairs and in order; and log-probabilities are of what the rules left."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.run.local.speech_model import FIRST_MARKS, SpeechTokens, TranscriptMatcher, TranscriptRules

END, FIRST, MARKS = 20, 30, 150
TOKENS = SpeechTokens(
    start=21,
    end=END,
    previous=22,
    transcribe=23,
    translate=24,
    no_speech=25,
    no_marks=29,
    first_mark=FIRST,
    languages={"en": 26},
    suppressed=(3, 21, 22, 23, 24, 25, 26, 27, 28),
    suppressed_first=(0, END),
)
SIZE = FIRST + MARKS


def answer(
    seed: int, length: int, *, marks: bool = True, lean: float = 0.0
) -> tuple[list[int], TranscriptMatcher]:
    """Draw an answer token by token; `lean` makes marks likelier."""
    draw = np.random.default_rng(seed)
    matcher = TranscriptRules(TOKENS, marks).matcher(frozenset({END}))
    ids: list[int] = []
    for _ in range(length):
        row = draw.normal(0, 3, SIZE).astype(np.float32)
        row[FIRST:] += lean
        allowed = matcher.mask_of(row)
        assert allowed.any(), "an answer may always go on or end"
        id = int(np.where(allowed, row, -np.inf).argmax())
        matcher.count(id) if id == END else matcher.advance(id)
        if id == END:
            break
        ids.append(id)
    return ids, matcher


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([-4.0, 0.0, 4.0]))
def test_marks_come_first_in_pairs_and_in_order(seed: int, length: int, lean: float):
    ids, _ = answer(seed, length, lean=lean)
    assert FIRST <= ids[0] < FIRST + FIRST_MARKS
    marks = [id for id in ids if id >= FIRST]
    assert marks == sorted(marks) and not {*ids} & {*TOKENS.suppressed, TOKENS.no_marks}
    runs = "".join("m" if id >= FIRST else "t" for id in ids)
    assert "mmm" not in runs
    inner = runs.lstrip("m")
    assert all(len(run) == 2 for run in inner.replace("t", " ").split()[:-1]), (
        "a text ends with a mark and begins with one"
    )
    for before, after in pairwise(i for i, kind in enumerate(runs) if kind == "m"):
        if after - before > 1:
            assert ids[after] > ids[before], "a segment is never empty"


@given(st.integers(0, 10_000))
def test_without_marks_there_are_words_alone(seed: int):
    ids, _ = answer(seed, 30, marks=False)
    assert all(id < FIRST for id in ids) and ids[:1] != [0]


def test_marks_that_are_likelier_together_keep_words_out():
    matcher = TranscriptRules(TOKENS).matcher(frozenset({END}))
    matcher.mask_of(np.zeros(SIZE, np.float32))
    matcher.advance(FIRST)
    row = np.full(SIZE, -9.0, np.float32)
    row[5], row[FIRST + 1 :] = 0.0, -1.0  # one mark is less likely than the word, 149 are not
    matcher.mask_of(row)
    matcher.advance(5)
    allowed = matcher.mask_of(row)
    assert not allowed[:FIRST].any() and allowed[FIRST + 1 :].all() and not allowed[FIRST]


def test_log_probabilities_are_of_what_the_rules_left():
    matcher = TranscriptRules(TOKENS).matcher(frozenset({END}))
    matcher.mask_of(np.zeros(SIZE, np.float32))
    matcher.advance(FIRST + 4)
    assert matcher.sum_logprob == pytest.approx(-math.log(FIRST_MARKS))


def test_times_are_steps_of_a_fiftieth_of_a_second():
    assert TOKENS.seconds(FIRST + 5) == pytest.approx(0.1) and TOKENS.mark(0.1) == FIRST + 5
    assert TOKENS.mark(29.999) == FIRST + 1499
