"""Planted test items are found in training data, and shared instructions are not taken for them."""

from __future__ import annotations

from freehold.adapt.evals.contamination import COMMON, Overlap, overlaps

STORY = (
    "on the third day the keeper of the harbour light counted eleven ships and wrote each name in the book"
)
OTHER = "a recipe for bread needs flour water salt and yeast and an oven that is hot before the dough goes in"


def test_equal_text_is_found_whatever_its_case_and_spacing():
    assert overlaps(["x", "  What is  17+25? "], ["what is 17+25"]) == [Overlap(0, 1, "exact", 1.0)]


def test_another_sum_of_the_same_words_is_not_equal():
    assert overlaps(["What is 17-25?"], ["What is 17+25?"]) == []


def test_planted_passage_is_found_by_its_runs_of_thirteen_words():
    (found,) = overlaps([OTHER, f"As they say, {STORY.upper()}! And so on."], [STORY])
    assert (found.test, found.training, found.kind, found.share) == (0, 1, "13-gram", 1.0)


def test_share_counts_only_the_runs_that_the_training_text_has():
    words = STORY.split()
    (found,) = overlaps([" ".join(words[:14])], [STORY])
    assert found.share == 2 / (len(words) - 12)


def test_twelve_words_in_common_are_not_reported():
    assert overlaps([" ".join(STORY.split()[:12]) + " then nothing"], [STORY]) == []


def test_text_that_holds_most_of_a_test_is_named():
    half = " ".join(STORY.split()[:15])
    (found,) = overlaps([half, STORY + " indeed"], [STORY])
    assert found.training == 1


def test_instruction_that_all_items_share_is_not_contamination():
    told = "translate the sum below into the notation of the harbour and answer with the result alone please"
    training = [f"{told}: {n}" for n in range(COMMON + 1)]
    assert overlaps(training, [f"{told}: {n + 100}" for n in range(3)]) == []
    assert [o.kind for o in overlaps(training, [f"{told}: 3"])] == ["exact"]


def test_copies_of_a_leaked_text_do_not_make_it_a_shared_instruction():
    (found,) = overlaps([f"so: {STORY}"] * 40, [STORY])
    assert found.share == 1.0


def test_training_is_read_once_as_a_stream_and_empty_texts_match_nothing():
    assert overlaps(iter(["", " . ", STORY]), ["", "?", STORY]) == [Overlap(2, 2, "exact", 1.0)]
