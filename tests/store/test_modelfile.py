"""Modelfiles: what is read, what is refused with its line, and nothing that brings the reader down."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.run.store import parameters
from freehold.run.store.create import MAX_CHARS, MAX_LICENCES, WORDS, Recipe, parse
from freehold.run.store.overlays import MAX_MESSAGES
from freehold.run.store.parameters import HONOURED

WHOLE = '''
# comments and empty lines are nothing
FROM qwen2.5-coder:0.5b

PARAMETER temperature 0.2
parameter num_ctx 4096
PARAMETER stop "<|im_end|>"
PARAMETER stop User:\t
SYSTEM """
You write code.
# this is not a comment
"""
MESSAGE user hi
MESSAGE assistant """Hello,
you."""
LICENSE MIT
REQUIRES 0.14.0
'''


def test_a_whole_modelfile_is_read():
    assert parse(WHOLE) == Recipe(
        base="qwen2.5-coder:0.5b",
        parameters={"temperature": 0.2, "num_ctx": 4096, "stop": ["<|im_end|>", "User:"]},
        system="\nYou write code.\n# this is not a comment\n",
        messages=(("user", "hi"), ("assistant", "Hello,\nyou.")),
        licence=("MIT",),
        notes=("REQUIRES was ignored: it names a version of another program",),
    )


@pytest.mark.parametrize(
    "line, value",
    [
        ("SYSTEM plain words", "plain words"),
        ('SYSTEM "in quotes"', "in quotes"),
        ('SYSTEM "with \\"more\\" \\n"', 'with "more" \n'),
        ('SYSTEM """in three"""', "in three"),
        ('SYSTEM """a "quoted" word"""', 'a "quoted" word'),
        ('SYSTEM ""', ""),
        ("SYSTEM", ""),
        ("  system\tindented", "indented"),
    ],
)
def test_a_value_ends_with_its_line_or_its_quotes(line, value):
    assert parse(f"FROM x\n{line}\n").system == value


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "no FROM"),
        ("# nothing", "no FROM"),
        ("FROM", "line 1: FROM says nothing"),
        ("FROM a\nFROM b\nFROM c", "line 3: a third FROM"),
        ("FROM a\nPARAMETR x 1", "did you mean PARAMETER"),
        ("FROM a\nPARAMETER temprature 1", "temprature"),
        ("FROM a\nPARAMETER temperature hot", "line 2: temperature is 'hot'"),
        ("FROM a\nPARAMETER temperature 1000", "line 2"),
        ("FROM a\nPARAMETER seed", "line 2"),
        ("FROM a\nPARAMETER", "line 2"),
        ("FROM a\nMESSAGE robot hi", "robot"),
        ("FROM a\nMESSAGE user", "line 2"),
        ('FROM a\nSYSTEM """never closed\n', "never closed"),
        ('FROM a\nSYSTEM """x""" y', "follows the closing"),
        ('FROM a\nSYSTEM x """y"""', "in the middle"),
        ("FROM a\n???", "is not an instruction"),
        ("FROM a\n" + "x" * MAX_CHARS, "at most"),
        ("\n" * 30_000, "lines"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, part):
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert part in f"{raised.value.message}; {raised.value.hint}"


words = st.sampled_from(
    [*WORDS, *HONOURED, "from", '"""', '"', "#", "\n", "\\", "user", "1", "-1", "0.5", "REQUIRES"]
)
texts = st.lists(words | st.text(max_size=8), max_size=30).map(" ".join)


@given(texts | st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_recipe_or_a_named_error(text):
    try:
        recipe = parse(text)
    except UsageError:
        return
    assert recipe.base and parameters.read(recipe.parameters, strict=True) is not None


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = leaves | st.lists(leaves, max_size=4) | st.dictionaries(st.text(max_size=4), leaves, max_size=3)


@given(st.dictionaries(st.sampled_from(HONOURED) | st.text(max_size=10), values, max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_options_are_read_or_a_named_error(given_options, strict):
    try:
        read = parameters.read(given_options, strict=strict)
    except UsageError as e:
        assert len(e.message) < 400
        return
    assert read.max_tokens is None or read.max_tokens > 0


@pytest.mark.parametrize(
    "options, want",
    [
        ({"num_predict": -1}, {"max_tokens": None}),
        ({"num_predict": -2}, {"max_tokens": None}),
        ({"num_predict": 7}, {"max_tokens": 7}),
        ({"seed": -1}, {"sampling": {}}),
        ({"seed": 0}, {"sampling": {"seed": 0}}),
        ({"top_k": -1}, {"sampling": {"top_k": 0}}),
        ({"top_k": 40.0}, {"sampling": {"top_k": 40}}),
        ({"repeat_last_n": -1}, {"sampling": {"penalty_window": 0}}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"temperature": None}, {"sampling": {}}),
    ],
)
def test_numbers_mean_what_they_mean_there(options, want):
    read = parameters.read(options)
    assert {name: getattr(read, name) for name in want} == want


def test_no_window_is_no_penalty():
    read = parameters.read({"repeat_last_n": 0, "repeat_penalty": 1.5, "presence_penalty": 1})
    assert read.sampling == {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@pytest.mark.parametrize("line, most", [("MESSAGE user x", MAX_MESSAGES), ("LICENSE x", MAX_LICENCES)])
def test_messages_and_licences_are_counted_as_they_come(line, most):
    parse("FROM a\n" + f"{line}\n" * most)
    with pytest.raises(UsageError, match=f"line {most + 2}: there are more than"):
        parse("FROM a\n" + f"{line}\n" * (most + 9))


def test_an_idle_word_is_noted_once():
    assert len(parse("FROM a\n" + "PARSER x\n" * 500).notes) == 1
