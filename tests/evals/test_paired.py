"""Shares, pairs and what a number of cases decides."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.adapt.evals.paired import compared, resampled_mean, resolution, share, wilson

MARKS = st.lists(st.booleans(), min_size=1, max_size=40)


def test_a_share_of_few_cases_is_wide_and_never_certain():
    assert share([True] * 5).low < 80 and share([True] * 5).high == 100
    assert share([False] * 5).high > 20
    wide, narrow = share([True, False] * 5), share([True, False] * 500)
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


@given(MARKS)
def test_bounds_hold_the_share(marks: list[bool]):
    found = share(marks)
    assert 0 <= found.low <= found.mid <= found.high <= 100


def test_eighty_per_cent_bounds_hold_four_of_five():
    draw, held = random.Random(1), 0
    for _ in range(1000):
        marks = [draw.random() < 0.7 for _ in range(30)]
        held += 70 in share(marks)
    assert 760 <= held <= 900


def test_cases_that_both_pass_tell_nothing():
    alike = compared([True] * 10, [True] * 10)
    assert (alike.wins, alike.losses, alike.ties, alike.p) == (0, 0, 10, 1.0)
    better = compared([True] * 10, [False] * 8 + [True] * 2)
    assert (better.wins, better.losses) == (8, 0) and better.p == pytest.approx(2 / 256)
    assert better.difference[0] > 0


@given(MARKS, st.randoms(use_true_random=False))
def test_swapping_the_two_turns_the_sign(marks: list[bool], draw: random.Random):
    other = [draw.random() < 0.5 for _ in marks]
    one, turned = compared(marks, other), compared(other, marks)
    assert (one.wins, one.losses, one.p) == (turned.losses, turned.wins, turned.p)
    assert one.difference[1] == -turned.difference[1]


def test_more_cases_decide_more():
    assert resolution(10) > 25 and resolution(1000) < 3
    with pytest.raises(ValueError):
        compared([True], [True, False])


def test_wilson_bounds_of_ninety_five_per_cent_are_the_published_ones():
    found = wilson([1] * 81 + [0] * 182, 0.95)  # Newcombe 1998, table I: 81 of 263
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_graded_scores_are_bounded_by_resampling():
    scores = [0.2, 0.4, 0.6, 0.8] * 25
    found = resampled_mean(scores, 0.95)
    assert found.mid == pytest.approx(0.5) and 0.44 < found.low < 0.47 < 0.53 < found.high < 0.56
    assert wilson(scores, 0.95).low < found.low  # which allows for zeros and ones
