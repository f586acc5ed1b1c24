"""Acceptance rates follow what was generated, and a draft is worth the product of them."""

from __future__ import annotations

import pytest

from freehold.run.engine.speculate.draft import (
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
