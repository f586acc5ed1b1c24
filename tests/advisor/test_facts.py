"""Facts have three values; what was not said stays unknown, and what is no fact is refused."""

from __future__ import annotations

import pytest

from freehold.advisor.facts import Facts, from_table, holds, undecided
from freehold.catalog.conditions import parse
from freehold.errors import UsageError


@pytest.mark.parametrize(
    ("text", "said", "truth"),
    [
        ("", {}, True),
        ("commercial", {}, None),
        ("commercial", {"purpose": "research"}, False),
        ("commercial", {"purpose": "internal"}, True),
        ("production", {"purpose": "evaluation"}, False),
        ("internal", {"purpose": "evaluation"}, True),
        ("users > 100", {"users": 100}, False),
        ("users > 100", {"users": 101}, True),
        ("revenue_month > 20", {"revenue_year": 241.0}, True),
        ("revenue_year > 20", {"revenue_month": 1.0}, False),
        ("commercial and users > 100", {"users": 5}, False),
        ("commercial and users > 100", {"users": 500}, None),
        ("commercial or users > 100", {"users": 500}, True),
        ("not end_user", {}, True),
        ("shares", {"offers_access": False}, None),
        ("shares", {"offers_access": True}, True),
        ("shares", {"purpose": "internal"}, False),
        ("shares", {"purpose": "internal", "redistributes": True}, True),
        ("eu", {"seat": "de"}, True),
        ("eu", {"seat": "GB"}, False),
        ("uk", {"seat": "GB"}, True),
        ("korea", {"seat": "KR"}, True),
    ],
)
def test_a_condition_over_what_was_said(text: str, said: dict, truth: bool | None):
    assert holds(parse(text), Facts(**said)) is truth


def test_only_facts_that_could_still_decide_are_asked_for():
    condition = parse("commercial and users > 100 or offers_access and revenue_year > 5")
    assert undecided(condition, Facts(offers_access=False)) == ("commercial", "users")
    assert undecided(condition, Facts(users=1, revenue_year=9)) == ("offers_access",)


@pytest.mark.parametrize(
    "wrong", [{"purpose": "fun"}, {"seat": "Germany"}, {"users": -1}, {"revenue_year": float("nan")}]
)
def test_a_value_that_is_none_is_refused(wrong: dict):
    with pytest.raises(UsageError):
        Facts(**wrong)


def test_a_table_of_settings_becomes_facts():
    assert from_table({"purpose": "commercial", "users": 5, "revenue_year": 1e6}, "x").users == 5


@pytest.mark.parametrize(
    ("table", "hint"), [({"user": 5}, "did you mean users?"), ({"users": "many"}, ""), ({"distils": 1}, "")]
)
def test_a_wrong_table_names_the_key_and_the_nearest(table: dict, hint: str):
    with pytest.raises(UsageError, match=next(iter(table))) as e:
        from_table(table, "config.toml: [company]")
    assert e.value.hint == hint
