"""Stop strings and thinking tags, wherever tokens cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.run.tokenizer.dialects.contract import StopStrings, ThinkingSplitter, held_suffix

TAGS = ("<think>", "</think>")


def stopped(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    filter = StopStrings(stops)
    out = [filter.push(p) for p in pieces]
    return [*out, "" if filter.hit else filter.finish()], filter.hit


def split(pieces: list[str], **how) -> tuple[str, str]:
    splitter = ThinkingSplitter(TAGS, **how)
    parts = [splitter.push(p) for p in pieces] + [splitter.finish()]
    return "".join(t for t, _ in parts), "".join(x for _, x in parts)


def test_stop_string_over_three_tokens_is_never_shown():
    assert stopped(["Hello<", "|e", "nd|> more"], ["<|end|>"]) == (["Hello", "", "", ""], True)


def test_beginning_of_a_stop_string_is_shown_once_it_is_none():
    assert stopped(["a<", "b"], ["<|end|>"]) == (["a", "<b", ""], False)


def test_held_text_is_shown_at_the_end():
    assert stopped(["a<|e"], ["<|end|>"]) == (["a", "<|e"], False)


def test_the_first_of_several_stop_strings_wins():
    assert stopped(["one END two STOP"], ["STOP", "END"]) == (["one ", ""], True)


@pytest.mark.parametrize(
    "pieces, found", [(["one END two STOP"], "END"), (["a ST", "OP"], "STOP"), (["a"], "")]
)
def test_the_stop_string_that_came_is_known(pieces, found):
    filter = StopStrings(["STOP", "END"])
    for piece in pieces:
        filter.push(piece)
    assert filter.stop == found


@pytest.mark.parametrize("bad", [[""], [3]])
def test_empty_stop_string_is_refused(bad):
    with pytest.raises(UsageError, match="stop string"):
        StopStrings(bad)


def test_held_suffix_is_the_longest_that_can_go_on():
    assert held_suffix("xaab", ["aabaac"]) == 3
    assert held_suffix("xab", ["ab"]) == 0


@given(st.text("ab<", max_size=30), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3), st.data())
def test_cutting_does_not_change_where_it_stops(text, stops, data):
    at = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    ends = [text.find(s) for s in stops if s in text]
    # Cut pieces may end at a stop string that began later but was complete earlier; whole text never shows one.
    shown = "".join(stopped(pieces, stops)[0])
    assert text.startswith(shown) and not any(s in shown for s in stops)
    assert bool(ends) == stopped(pieces, stops)[1]
    if not ends:
        assert shown == text


@pytest.mark.parametrize(
    "text, how, parts",
    [
        ("<think>\nhm\n</think>\n\nyes", {}, ("hm", "yes")),
        ("\n<think>hm</think>yes", {}, ("hm", "yes")),
        ("hm\n</think>\n\nyes", {"inside": True}, ("hm", "yes")),
        ("plain", {}, ("", "plain")),
        ("say <think> aloud", {}, ("", "say <think> aloud")),
        ("<thin", {}, ("", "<thin")),
        ("<think>never ends </th", {}, ("never ends </th", "")),
        ("<think></think>x", {}, ("", "x")),
        ("<think>\n\n</think>\n\nx", {}, ("", "x")),
        ("  spaced", {}, ("", "  spaced")),
        ("<think>a</think>b</think>", {}, ("a", "b</think>")),
    ],
)
def test_thinking_is_split_whole_or_letter_by_letter(text, how, parts):
    assert split([text], **how) == parts
    assert split(list(text), **how) == parts


def test_without_tags_all_is_text():
    assert ThinkingSplitter(None).push("<think>x") == ("", "<think>x")
