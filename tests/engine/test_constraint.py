"""Guides of thinking and of calls: the budget closes, an opening mark begins to hold, and what ends sets free."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from freehold.base.types import Format
from freehold.run.engine.constrain.constraint import Constraint, ConstraintMatcher, Trigger
from freehold.run.engine.constrain.grammar import Grammars
from freehold.run.tokenizer import Tokenizer, tokenizer_from_gguf
from tests.tokenizer import toys

TAGS = ("<tool>", "</t>")  # one token, and four
CLOSE = "\n</t>\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(toys.byte_level())


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def opened(grammars: Grammars, tokenizer: Tokenizer, *patterns: tuple[bytes, str]) -> Constraint:
    """Free text that holds to a regular expression behind each match of a pattern."""
    triggers = (Trigger(re.compile(p), grammars.grammar(Format("regex", regex))) for p, regex in patterns)
    return Constraint(None, tokenizer, triggers=tuple(triggers))


def push(matcher: ConstraintMatcher, tokenizer: Tokenizer, text: str) -> None:
    for id in tokenizer.encode(text, bos=False):
        mask = matcher.mask()
        assert mask is None or mask[id], text
        matcher.advance(id)


def allowed(matcher: ConstraintMatcher, tokenizer: Tokenizer) -> set[bytes] | None:
    mask = matcher.mask()
    return (
        None if mask is None else {tokenizer.token_bytes(int(i), special=True) for i in np.flatnonzero(mask)}
    )


def forced_text(matcher: ConstraintMatcher, tokenizer: Tokenizer) -> str:
    """Take every token that must come, and return what they write."""
    ids = matcher.forced()
    for id in ids:
        assert allowed(matcher, tokenizer) == {tokenizer.token_bytes(id, special=True)}
        matcher.advance(id)
    return tokenizer.decode(ids, special=True)


@pytest.mark.parametrize("inside", [True, False])
def test_budget_of_thinking_that_is_used_up_closes_it(tokenizer: Tokenizer, inside: bool):
    matcher = Constraint(None, tokenizer, TAGS, inside, think_tokens=3).matcher(tokenizer.eos_ids)
    assert matcher.mask() is None
    push(matcher, tokenizer, "abc" if inside else "<tool>abc")
    close = tokenizer.encode(CLOSE, bos=False)
    assert matcher.count_valid([*close[:2], 0]) == 2
    assert forced_text(matcher, tokenizer) == CLOSE
    assert matcher.mask() is None and matcher.forced() == []


def test_no_budget_at_all_closes_thinking_at_once(tokenizer: Tokenizer):
    matcher = Constraint(None, tokenizer, TAGS, inside=True, think_tokens=0).matcher(tokenizer.eos_ids)
    assert forced_text(matcher, tokenizer) == CLOSE


def test_thinking_that_ends_by_itself_is_not_closed_again(tokenizer: Tokenizer):
    matcher = Constraint(None, tokenizer, TAGS, inside=True, think_tokens=6).matcher(tokenizer.eos_ids)
    push(matcher, tokenizer, "a</t>bcdefghij")
    assert matcher.mask() is None


def test_budget_and_format_go_together(grammars: Grammars, tokenizer: Tokenizer):
    grammar = grammars.grammar(Format("regex", "ab"))
    matcher = Constraint(grammar, tokenizer, TAGS, inside=True, think_tokens=2).matcher(tokenizer.eos_ids)
    assert b"<|im_end|>" not in (allowed(matcher, tokenizer) or ())
    push(matcher, tokenizer, "xy")
    assert forced_text(matcher, tokenizer) == CLOSE
    assert allowed(matcher, tokenizer) == {b"a"}


def test_text_is_free_until_an_opening_mark_and_behind_what_it_began(
    grammars: Grammars, tokenizer: Tokenizer
):
    matcher = opened(grammars, tokenizer, (b"<<", "1+;")).matcher(tokenizer.eos_ids)
    for _ in range(2):
        assert matcher.mask() is None
        push(matcher, tokenizer, "so < or <<")
        assert allowed(matcher, tokenizer) == {b"1"}
        push(matcher, tokenizer, "11;")
    assert matcher.mask() is None


def test_token_that_ends_the_mark_may_begin_what_follows(grammars: Grammars, tokenizer: Tokenizer):
    matcher = opened(grammars, tokenizer, (b"he", "llo!")).matcher(tokenizer.eos_ids)
    push(matcher, tokenizer, "hello")  # one token
    assert allowed(matcher, tokenizer) == {b"!"}


def test_mark_that_is_followed_by_something_else_holds_nothing(grammars: Grammars, tokenizer: Tokenizer):
    matcher = opened(grammars, tokenizer, (b"he", "x")).matcher(tokenizer.eos_ids)
    push(matcher, tokenizer, "hello")
    assert matcher.mask() is None


def test_each_opening_has_its_own_grammar_and_may_ask_for_a_line(grammars: Grammars, tokenizer: Tokenizer):
    constraint = opened(grammars, tokenizer, (b"<<", "1;"), (rb"\n *\[(?=a)", "ab"))
    matcher = constraint.matcher(tokenizer.eos_ids)
    push(matcher, tokenizer, "  [a")  # the text's beginning is a line's
    assert allowed(matcher, tokenizer) == {b"b"}
    push(matcher, tokenizer, "b x [a")
    assert matcher.mask() is None
    push(matcher, tokenizer, "\n[a")
    assert allowed(matcher, tokenizer) == {b"b"}
    push(matcher, tokenizer, "b<<")
    assert allowed(matcher, tokenizer) == {b"1"}


def test_guide_is_where_its_tokens_led_it(grammars: Grammars, tokenizer: Tokenizer):
    """An answer that is resumed pushes the tokens it had, and goes on as it would have."""
    free = opened(grammars, tokenizer, (b"<<", "1+;"))
    constraint = replace(free, tags=TAGS, inside=True, think_tokens=4)
    first = constraint.matcher(tokenizer.eos_ids)
    ids = tokenizer.encode(f"abcd{CLOSE}so <<1", bos=False)
    for count, id in enumerate(ids):
        again = constraint.matcher(tokenizer.eos_ids)
        for earlier in ids[:count]:
            again.advance(earlier)
        assert allowed(again, tokenizer) == allowed(first, tokenizer)
        first.advance(id)
    assert allowed(first, tokenizer) == {b"1", b";"}
