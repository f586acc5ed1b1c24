"""The licence data is linted here; its lookups are claims."""

from __future__ import annotations

import re
from datetime import date

import pytest

from freehold import catalog
from freehold.catalog.conditions import parse
from freehold.catalog.licence import TOPICS, Licence, build, covering, find
from freehold.errors import StoreError, UsageError

RAW = {
    "id": "X-1.0",
    "name": "X",
    "class": "custom",
    "url": "https://example.org",
    "text": "nowhere",
    "evidence": "text",
    "checked": date(2026, 11, 25),
}


@pytest.fixture(params=catalog.licences(), ids=lambda one: one.id)
def one(request) -> Licence:
    return request.param


def test_there_are_at_least_forty_texts_and_most_were_read():
    known = catalog.licences()
    assert len(known) >= 40
    assert sum(1 for one in known if one.evidence in ("text", "copy")) >= 25


def test_every_licence_speaks_of_every_topic(one: Licence):
    spoken = {t.topic for t in one.terms}
    assert spoken >= TOPICS.keys() - {"service"}


def test_every_term_names_its_clause_in_our_own_short_words(one: Licence):
    for t in one.terms:
        assert t.clause.strip() and t.says.strip(), t
        assert len(t.says) < 250, t.says


def test_every_licence_is_dated_and_says_where_its_text_is(one: Licence):
    assert date(2026, 11, 1) <= one.checked <= date.today()
    assert one.url.startswith("https://") and one.text
    assert re.fullmatch(r"[0-9a-f]{64}", one.sha256) if one.evidence == "text" else not one.sha256


def test_what_is_to_be_shown_word_for_word_is_given(one: Licence):
    for t in one.terms:
        assert (t.duty in ("notice", "display", "prefix")) <= bool(t.text), t


def test_an_unknown_term_says_when_it_would_matter(one: Licence):
    for t in one.terms:
        if t.effect == "unknown" and t.topic not in ("patents", "termination", "law"):
            assert t.when.ways, f"{t.topic} would block everybody"


def test_every_name_leads_to_one_licence():
    for one in catalog.licences():
        for name in (one.id, one.name, *one.aliases):
            assert find(name) is one, name


def test_every_model_of_the_catalogue_that_names_a_licence_names_one_we_know():
    unknown = {
        part
        for m in catalog.models()
        for part in re.split(r" (?:AND|OR) ", m.licence)
        if m.licence and find(part) is None
    }
    assert not unknown


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("llama3.1", "LicenseRef-scancode-llama-3.1-license-2024"),
        ("Apache-2.0", "Apache-2.0"),
        ("apache 2.0", "Apache-2.0"),
        ("LicenseRef-MRL-0.1", "LicenseRef-MRL-0.1"),
        ("mrl", "LicenseRef-MRL-0.1"),
        ("gemma", "LicenseRef-scancode-gemma-tou-2025-03-24"),
        ("OpenMDW-1.1", "LicenseRef-OpenMDW-1.1"),
        ("nvidia-open-model-license", "LicenseRef-scancode-nvidia-open-model-2025-04-28"),
    ],
)
def test_a_licence_is_found_by_identifier_and_by_the_hubs_tag(said: str, meant: str):
    found = find(said)
    assert found is not None and found.id == meant


@pytest.mark.parametrize(
    ("repository", "meant"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "LicenseRef-qwen-research-2024"),
        ("Qwen/Qwen2.5-72B-Instruct", "LicenseRef-scancode-qwen-2024"),
        ("zai-org/GLM-5.3", "LicenseRef-glm-5.3"),
        ("zai-org/GLM-5.3-Flash", "MIT"),
        ("nobody/nothing", None),
        ("mistralai/Codestral-22B-v0.1", "LicenseRef-MNPL-0.1"),
    ],
)
def test_a_generation_is_split_by_repository(repository: str, meant: str | None):
    found = covering(repository)
    assert (found.id if found else None) == meant


def test_an_unknown_licence_names_the_nearest():
    with pytest.raises(UsageError) as e:
        catalog.licence("lama3.1")
    assert "llama3.1" in e.value.hint


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"url": ""}, "url is missing"),
        ({"class": "free"}, "class = 'free' is none of"),
        (
            {"term": [{"topic": "weather", "effect": "grants", "clause": "1", "says": "x"}]},
            "topic = 'weather'",
        ),
        ({"term": [{"topic": "law", "effect": "requires", "clause": "1", "says": "x"}]}, "what to `do`"),
        (
            {"term": [{"topic": "law", "effect": "grants", "clause": "1", "says": "x", "when": "rich"}]},
            "'rich' is no flag",
        ),
        ({"term": [{"topic": "law", "effect": "grants", "says": "x"}]}, "'clause'"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(change: dict, complaint: str):
    with pytest.raises(StoreError, match=re.escape(complaint)):
        build("x.toml", "X", RAW | change)


def test_a_restated_topic_replaces_what_is_inherited():
    parent = build("x.toml", "X", RAW | {"term": [_term("law", "one"), _term("use", "kept")]})
    child = build("x.toml", "X", RAW | {"term": [_term("law", "two")]}, parent)
    assert [t.says for t in child.terms] == ["kept", "two"]


@pytest.mark.parametrize("text", ["users", "commercial > 5", "users >= 5", "commercial and", "nonsense"])
def test_a_condition_that_is_none_is_refused(text: str):
    with pytest.raises(ValueError):
        parse(text)


def _term(topic: str, says: str) -> dict[str, str]:
    return {"topic": topic, "effect": "notes", "clause": "1", "says": says}
