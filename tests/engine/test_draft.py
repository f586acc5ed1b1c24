"""Acceptance rates follow what was generated, and a draft is worth the product of them."""

from __future__ import annotations

import pytest

from freehold.run.engine.speculate.draft import (
    HEAD_PRIOR,
    LONGEST,
    MATCH_PRIOR,
    MAX_DRAFT,
    MODEL_PRIOR,
    AcceptanceRates,
    Draft,
    NgramMatch,
)


def test_gains_fall_by_the_rate_of_each_token():
    draft = Draft(AcceptanceRates([0.5, 0.8]), [7, 8, 9], [1, 1, 0])
    assert draft.gains() == pytest.approx([0.8, 0.64, 0.32])


def test_accepted_token_makes_the_next_likelier():
    draft = Draft.of_match(AcceptanceRates(MATCH_PRIOR), NgramMatch(2, tuple(range(MAX_DRAFT))))
    assert len(draft.buckets) == MAX_DRAFT and draft.buckets[0] == 2 and draft.buckets[-1] == 7
    longest = Draft.of_match(AcceptanceRates(MATCH_PRIOR), NgramMatch(LONGEST, tuple(range(MAX_DRAFT))))
    assert len(longest.buckets) == MAX_DRAFT


def test_rate_follows_what_was_generated_up_to_the_first_rejection():
    rates = AcceptanceRates([0.5, 0.5])
    for _ in range(60):
        Draft(rates, [1, 2, 3], [0, 1, 0]).learn([1, 9, 3])
    assert rates[0] > 0.9 and rates[1] < 0.1


def test_confidence_of_a_draft_model_is_kept_in_bins():
    draft = Draft(AcceptanceRates(MODEL_PRIOR))
    assert [draft.add(5, confidence) for confidence in (0.0, 0.5, 0.99, 1.0)] == [0.2, 0.55, 0.9, 0.9]


def test_each_place_of_a_head_s_draft_has_a_rate_of_its_own():
    rates = AcceptanceRates(HEAD_PRIOR, by_place=True)
    for _ in range(100):
        draft = Draft(rates)
        for token in (1, 2, 3):
            draft.add(token, 0.0)
        draft.learn([1, 9, 3])
    assert rates.expected(0) > 0.9 and rates.expected(1) < 0.1
    assert rates.expected(2) == HEAD_PRIOR[2] and rates.expected(9) == HEAD_PRIOR[-1]


def test_sequence_begins_with_what_others_taught_and_teaches_them():
    rates = AcceptanceRates(HEAD_PRIOR, by_place=True)
    first = rates.of_sequence()
    for _ in range(50):
        first.add(0, False)
    second = rates.of_sequence()
    assert first.expected(0) < 0.05 and second.expected(0) == rates.expected(0) < 0.05
    for _ in range(10):
        second.add(0, True)
    assert second.expected(0) > 0.5 and first.expected(0) < 0.05
