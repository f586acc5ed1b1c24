"""Chances follow what came, and a guess is worth the product of them."""

from __future__ import annotations

import pytest

from freehold.engine.speculate.guess import DRAFT_PRIOR, MATCH_PRIOR, Chances, Guess
from freehold.engine.speculate.lookup import LONGEST, MAX_DRAFT, Match


def test_gains_fall_by_the_chance_of_each_token():
    guess = Guess(Chances([0.5, 0.8]), [7, 8, 9], [1, 1, 0])
    assert guess.gains() == pytest.approx([0.8, 0.64, 0.32])


def test_guess_that_holds_makes_the_next_likelier():
    guess = Guess.of_match(Chances(MATCH_PRIOR), Match(2, tuple(range(MAX_DRAFT))))
    assert len(guess.kinds) == MAX_DRAFT and guess.kinds[0] == 2 and guess.kinds[-1] == 7
    longest = Guess.of_match(Chances(MATCH_PRIOR), Match(LONGEST, tuple(range(MAX_DRAFT))))
    assert len(longest.kinds) == MAX_DRAFT


def test_chance_follows_what_came_up_to_the_first_miss():
    chances = Chances([0.5, 0.5])
    for _ in range(60):
        Guess(chances, [1, 2, 3], [0, 1, 0]).learn([1, 9, 3])
    assert chances[0] > 0.9 and chances[1] < 0.1


def test_confidence_of_a_draft_model_is_kept_in_bins():
    guess = Guess(Chances(DRAFT_PRIOR))
    assert [guess.add(5, confidence) for confidence in (0.0, 0.5, 0.99, 1.0)] == [0.2, 0.55, 0.9, 0.9]
