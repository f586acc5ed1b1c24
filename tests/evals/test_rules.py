"""Each rule of the instruction task has a text that obeys it and one that breaks it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from freehold.adapt.evals.evaluate import ModelReply
from freehold.adapt.evals.tasks.instructions import (
    METRICS,
    RULES,
    instruction_of,
    instructions,
    obeys,
    obeys_loosely,
)

# rule, options, a text that obeys, one that breaks
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("words_at_most", {"n": 3}, "One, two - three.", "it's one two three"),
    ("words_at_least", {"n": 3}, "one don't three", "one don't -- ."),
    ("sentences_at_most", {"n": 2}, "One. Two costs 3.50!", "One. Two? Three."),
    ("paragraphs", {"n": 2}, "One\nstill one\n\n\n\ntwo", "one\ntwo"),
    ("bullets", {"n": 2}, "Here:\n- one\n* two", "- one\n- two\n- three"),
    ("numbered", {"n": 2}, "1. one\n2. two", "1. one\n1. two"),
    ("lowercase", {}, "all lower, 3 times", "Not all"),
    ("uppercase", {}, "ALL OF IT!", "ALL BUT one"),
    ("no_commas", {}, "one; two", "one, two"),
    ("keyword", {"word": "bread", "n": 2}, "Bread and bread", "bread and breadth"),
    ("without", {"word": "rain"}, "a train", "The Rain falls"),
    ("starts_with", {"text": "Dear sir"}, "Dear sir, hello", "Hello, Dear sir"),
    ("ends_with", {"text": "Yours"}, "and so on. yours.", "Yours truly"),
    ("title", {}, "<<A day>>\ntext", "<< >> text"),
    ("quoted", {}, '"all of it"', '"a" and b'),
    ("json", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("highlights", {"n": 2}, "*one* and **two words**", "*one* and 2 * 3"),
    ("placeholders", {"n": 2}, "[name] of [place]", "[] of [place]"),
    ("postscript", {}, "Text.\nP.S. more", "Text, P.S."),
    ("letter", {"letter": "r", "n": 3}, "Rarer", "rate"),
    ("capitals", {"n": 2}, "STOP at the RED light", "STOP at A light"),
    ("sections", {"n": 2}, "## Section 1\na\nSection 2: b", "Section 1\nSection 3"),
    ("two_answers", {}, "one\n******\ntwo", "one\n******\none"),
    ("repeats", {"request": "Say it."}, "Say it. Here it is.", "Here it is. Say it."),
    ("one_of", {"options": ["yes", "no"]}, "Yes.", "Yes, of course"),
]


def test_there_are_twenty_five_rules_and_a_case_of_each():
    assert len(RULES) == 25 and {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize(("name", "options", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_rule_tells_the_text_that_obeys_from_the_one_that_breaks(
    name: str, options: dict[str, Any], good: str, bad: str
):
    assert obeys(good, name, options) and not obeys(bad, name, options)
    assert not obeys(" \n", name, options), "an empty reply obeys nothing"
    assert instruction_of(name, options)


def test_loose_marking_forgives_an_introduction_and_asterisks_and_nothing_else():
    assert not obeys("Sure, here it is:\nno comma", "no_commas", {})
    assert obeys_loosely("Sure, here it is:\nno comma", "no_commas", {})
    assert obeys_loosely("**Dear sir** hello", "starts_with", {"text": "Dear sir hello"})
    assert not obeys_loosely("a, b\nc, d\ne, f", "no_commas", {})


def test_prompts_are_many_differ_and_use_every_rule():
    text = (
        resources.files("freehold.adapt.evals")
        .joinpath("data", "instructions.jsonl")
        .read_text(encoding="utf-8")
    )
    docs = [json.loads(line) for line in text.splitlines()]
    used = {name for doc in docs for name, _ in doc["rules"]}
    assert len(docs) >= 100 and len({doc["ask"] for doc in docs}) == len(docs) and used == set(RULES)
    assert sum(len(doc["rules"]) > 1 for doc in docs) > len(docs) / 2
    prompts = [item.question.messages[0].content for item in instructions().items]
    assert not [prompt for prompt in prompts if "{" in prompt]


def test_prompt_counts_as_followed_only_where_all_its_rules_hold():
    item = instructions().items[0]  # at most 60 words, no commas
    mark = item.mark(ModelReply("blue, because of scattering"))
    assert mark.metrics == dict(zip(METRICS, (0.0, (1.0, 0.0), 0.0, (1.0, 0.0)), strict=True))
    assert mark.why == "breaks no_commas"
    assert item.mark(ModelReply("scattering")).metrics[METRICS[0]] == 1.0
