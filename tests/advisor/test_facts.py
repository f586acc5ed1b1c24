"""Facts have three values; what was not given stays unknown, and an invalid fact is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from importlib import resources
from pathlib import Path

import click
import pytest

from freehold.base import catalog
from freehold.base.catalog.licence import AMOUNTS, FLAGS, parse
from freehold.base.errors import UsageError
from freehold.choose.advisor.verdict import COUNTRIES, QUESTIONS, Facts, behind, from_table, holds, undecided
from freehold.cli.license import command
from freehold.cli.shared import FACT_OPTIONS


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
    assert undecided(condition, Facts(offers_access=False)) == ("purpose", "users")
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


def test_a_wrong_value_in_the_settings_names_their_file():
    with pytest.raises(UsageError, match=r"config\.toml: \[company\]: seat 'Germany' is not a country code"):
        from_table({"seat": "Germany"}, "config.toml: [company]")


def test_every_condition_in_the_licences_can_be_answered_by_an_option():
    """No card may ask `(shares?)` without an option that answers it."""
    asked = {
        fact
        for one in catalog.licences()
        for term in one.terms
        for way in term.when.ways
        for atom in way
        for fact in behind(atom.word)
    }
    assert asked <= {f.name for f in fields(Facts)}
    assert asked <= FACT_OPTIONS.keys() and asked <= QUESTIONS.keys()
    known = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert {FACT_OPTIONS[fact] for fact in asked} <= {flag for option in known for flag in option.opts}


def test_every_word_of_a_condition_leads_to_facts_with_a_question():
    assert {fact for word in (*FLAGS, *AMOUNTS) for fact in behind(word)} == QUESTIONS.keys()


def test_what_is_shared_is_asked_for_by_the_facts_behind_it():
    condition = parse("supplies")
    assert undecided(condition, Facts()) == ("redistributes", "offers_access", "embeds")
    assert undecided(condition, Facts(offers_access=False, redistributes=False)) == ("embeds",)
    assert holds(condition, Facts(embeds=True)) is True
    assert holds(condition, Facts(purpose="internal")) is False


def test_who_offers_this_model_sells_model_services_unless_said_otherwise():
    condition = parse("model_service")
    assert holds(condition, Facts(offers_access=True)) is True
    assert holds(condition, Facts(offers_access=False)) is False
    assert holds(condition, Facts(offers_access=False, model_service=True)) is True
    assert holds(condition, Facts()) is None


def test_every_country_of_iso_3166_is_known_and_no_other():
    """Compared with tzdata, of the system or of the package; the Union has a code without being a country."""
    tables = [Path("/usr/share/zoneinfo/iso3166.tab")]
    with suppress(ModuleNotFoundError):
        tables.append(Path(str(resources.files("tzdata").joinpath("zoneinfo", "iso3166.tab"))))
    text = next(path for path in tables if path.is_file()).read_text(encoding="utf-8")
    codes = {line.split("\t")[0] for line in text.splitlines() if line and not line.startswith("#")}
    assert len(codes) > 240 and {*COUNTRIES} - {"EU"} == codes


def test_a_firm_may_sit_in_norway():
    assert Facts(seat="no").flag("eu") is False
