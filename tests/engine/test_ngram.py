"""The lookup finds the longest end of a sequence that occurred before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freehold.run.engine.speculate.draft import LONGEST, NgramLookup


def test_what_followed_the_longest_match_is_proposed():
    match = NgramLookup([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]).find(4)
    assert match is not None
    assert (match.length, match.tokens) == (3, (7, 9, 2, 3))


def test_latest_of_equal_matches_wins():
    match = NgramLookup([2, 3, 7, 0, 2, 3, 8, 1, 2, 3]).find(2)
    assert match is not None and match.tokens == (8, 1)


def test_new_text_has_no_match():
    assert NgramLookup(list(range(100))).find() is None
    assert NgramLookup([5]).find() is None


def test_circle_is_drawn_on():
    match = NgramLookup([9, 1, 2, 3, 1, 2, 3, 1, 2]).find(7)
    assert match is not None and match.tokens == (3, 1, 2, 3, 1, 2, 3)


def test_copied_text_is_taken_up_again_behind_a_changed_word():
    text = list(range(100, 140))
    tokens = [*text, 0, *text[:10]]
    lookup = NgramLookup(tokens)
    assert lookup.find(1) is not None
    tokens.append(7)
    match = lookup.find(3)
    assert match is not None and (match.length, match.tokens) == (0, (111, 112, 113))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=80), st.integers(1, 10))
def test_match_is_real_and_its_draft_is_what_followed(tokens: list[int], cut: int):
    """The sequence grows by any steps; every match is an occurrence, and some pair is never overlooked."""
    grown = tokens[:1]
    lookup = NgramLookup(grown)
    for start in range(1, len(tokens), cut):
        grown += tokens[start : start + cut]
        match = lookup.find(5)
        end = len(grown)
        places = [p for p in range(2, end) if grown[p - 2 : p] == grown[-2:]]
        if places:
            assert match is not None and match.length >= 2
        if match is not None:
            agreed = [p for p in range(1, end) if grown[p - match.length : p] == grown[end - match.length :]]
            drafts = [tuple((grown[p:] * 5)[:5]) for p in agreed if p >= match.length]
            assert match.length <= LONGEST and match.tokens in drafts
