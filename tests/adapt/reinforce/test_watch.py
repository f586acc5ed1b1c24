"""What a step's answers look like, and where two verifiers part."""

from __future__ import annotations

import pytest

from freehold.adapt.evals.verifier import RewardScore
from freehold.adapt.reinforce.course import failures, looks, parted, repetition


def test_repetition_is_the_share_of_pieces_seen_before():
    assert repetition("one two three four five") == 0
    assert repetition("42 " * 60) == pytest.approx(56 / 57)
    assert repetition("") == repetition("one two") == 0


def test_looks_are_means_over_answers_and_groups():
    found = looks([["a", "a", "b", "c"], ["x"] * 4], [2, 4, 6, 8] * 2, [False] * 6 + [True] * 2)
    assert (found.tokens, found.distinct, found.cut) == (5, 0.5, 0.25)


def test_failures_are_counted_by_kind():
    scores = [RewardScore(1.0), *[RewardScore(0.0, "time", "")] * 2, RewardScore(0.0, "exit", "")]
    assert failures(scores) == {"time": 2, "exit": 1}


def test_answers_that_two_verifiers_score_apart_are_shown_widest_first():
    ours = [RewardScore(1.0), RewardScore(0.9), RewardScore(0.5), RewardScore(0.0, "exception", "")]
    theirs = [RewardScore(0.3), RewardScore(0.0), RewardScore(0.2), RewardScore(0.0)]
    found = parted(["p"] * 4, ["a", "b", "c", "d"], ours, theirs)
    assert [(each.answer, each.score, each.check) for each in found] == [("b", 0.9, 0.0), ("a", 1.0, 0.3)]
