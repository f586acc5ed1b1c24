"""The licence data is linted here; its lookups are claims."""

from __future__ import annotations

import re
from datetime import date

import pytest

from freehold.base import catalog
from freehold.base.catalog.licence import (
    TOPICS,
    Licence,
    _tags,
    build,
    covered,
    covering,
    expand,
    find,
    parse,
    serving,
    tag_source,
    unpacked,
)
from freehold.base.errors import StoreError, UsageError
from freehold.choose.advisor.verdict import Facts, verdict

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
        assert bool(t.text) >= t.says.endswith((":", "starts with")), t
        if t.text and not t.text.startswith("http"):
            assert t.says.endswith((":", "starts with")), (
                f"the words follow with nothing to announce them: {t}"
            )


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
        ("stabilityai/stablelm-3b-4e1t", "CC-BY-SA-4.0"),
        ("stabilityai/stablelm-2-12b", "LicenseRef-scancode-stability-ai-nc-2023-12-06"),
        ("stabilityai/stablelm-9-1t", None),
        ("Qwen/Qwen1.5-4B", "LicenseRef-tongyi-qianwen-research-2023"),
        ("Qwen/Qwen1.5-14B", "LicenseRef-scancode-tongyi-qianwen-2023"),
        ("Qwen/Qwen-1_8B-Chat", "LicenseRef-tongyi-qianwen-research-2023"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "LicenseRef-scancode-qwen-2024"),
        ("nvidia/Nemotron-H-8B-Base-8K", "LicenseRef-nvidia-internal-research"),
        ("CohereLabs/aya-101", "Apache-2.0"),
        ("CohereLabs/aya-expanse-8b", "LicenseRef-cohere-cc-by-nc-4.0"),
        ("deepseek-ai/deepseek-coder-6.7b-instruct", "LicenseRef-scancode-deepseek-la-1.0"),
        ("deepseek-coder-6.7b-instruct", "LicenseRef-scancode-deepseek-la-1.0"),
        ("mosaicml/mpt-7b-chat", "CC-BY-NC-SA-4.0"),
        ("mosaicml/mpt-7b", "Apache-2.0"),
        ("moonshotai/Kimi-K2-Instruct-0905", "LicenseRef-scancode-moonshot-ai-modified-mit-2025"),
    ],
)
def test_a_generation_is_split_by_repository(repository: str, meant: str | None):
    found = covering(repository)
    assert (found.id if found else None) == meant


def test_a_licence_names_its_repositories_whole_and_each_belongs_to_one():
    owners: dict[str, set[str]] = {}
    for one in catalog.licences():
        for repository in one.covers:
            owners.setdefault(repository.lower(), set()).add(one.id)
    assert not {name for name in owners if "*" in name}
    assert not {name: ids for name, ids in owners.items() if len(ids) > 1}


def test_a_publishers_tag_names_a_known_licence_and_a_repository_that_nothing_else_names():
    known = {one.id for one in catalog.licences()}
    named = {name.lower() for one in catalog.licences() for name in one.covers}
    assert set(_tags().names.values()) <= known
    assert not _tags().names.keys() & named
    entries = {m.id.lower(): m.licence for m in catalog.models()}
    assert not {n for n, tag in _tags().names.items() if n in entries and tag not in entries[n]}


def test_a_licence_known_by_its_tag_alone_says_so():
    found = covering("openai/gpt-oss-safeguard-20b")
    assert found is not None and found.id == "Apache-2.0"
    assert "tags on the hub" in tag_source("openai/gpt-oss-safeguard-20b")
    assert tag_source("Qwen/Qwen1.5-4B") == ""


def test_what_a_licence_covers_agrees_with_the_entry_of_the_same_model():
    differing = {
        m.id: (m.licence, found.id)
        for m in catalog.models()
        if m.licence and (found := covering(m.id)) and found.id not in m.licence
    }
    assert not differing


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpt-4o-2024-08-06", "LicenseRef-openai-services"),
        ("openai/gpt-5.6-sol", "LicenseRef-openai-services"),
        ("o3", "LicenseRef-openai-services"),
        ("claude-opus-4-8", "LicenseRef-anthropic-commercial"),
        ("anthropic/claude-sonnet-5", "LicenseRef-anthropic-commercial"),
        ("gemini-3.1-pro-preview", "LicenseRef-google-gemini-api"),
        ("grok-4.5", "LicenseRef-xai-services"),
        ("magistral-medium-2506", "LicenseRef-mistral-services"),
        ("deepseek-chat", "LicenseRef-deepseek-open-platform"),
        ("qwen3.7-max", "LicenseRef-alibaba-model-studio"),
        ("GPT4o", "LicenseRef-openai-services"),
        ("Opus 4.1", "LicenseRef-anthropic-commercial"),
        ("kimi-k2-0905-preview", "LicenseRef-moonshot-open-platform"),
        ("glm-4-flash", "LicenseRef-zai-api"),
        ("gpt-oss-safeguard-20b", None),
        ("gpt4all-j", None),
        ("opus-mt-en-de", None),
        ("glm-4.5-air", None),
        ("grok-2", None),
    ],
)
def test_a_model_behind_an_api_stands_under_the_terms_of_the_service(name: str, meant: str | None):
    found = serving(name)
    assert (found.id if found else None) == meant


def test_no_model_with_weights_is_taken_for_a_service():
    short = {name for m in catalog.models() for name in (m.name, m.id.rpartition("/")[2]) if name}
    tails = {name.rpartition("/")[2] for name in covered()}
    assert not {name: found.id for name in short | tails if (found := serving(name))}


def test_a_pattern_of_names_never_grants_training():
    raw = RAW | {"class": "service", "serves": ["x-*"], "term": [_term("outputs", "free")]}
    with pytest.raises(StoreError, match="serves has a pattern"):
        build("x.toml", "X", raw)


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen1.5-4B-Chat-GPTQ-Int4", "Qwen/Qwen1.5-4B-Chat"),
        ("zai-org/GLM-5.3-FP8", "zai-org/GLM-5.3"),
        ("zai-org/GLM-5.3-Flash", "zai-org/GLM-5.3-Flash"),
    ],
)
def test_how_weights_are_packed_does_not_change_their_licence(packed: str, plain: str):
    assert unpacked(packed) == plain


def test_braces_spell_out_every_name():
    assert expand("a/{b,c}-{1,2}{,-x}") == [f"a/{m}-{n}{x}" for m in "bc" for n in "12" for x in ("", "-x")]


def test_an_unknown_licence_names_the_nearest():
    with pytest.raises(UsageError) as e:
        catalog.licence("lama3.1")
    assert "llama3.1" in e.value.hint


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"url": ""}, "url is missing"),
        ({"covers": ["org/model-*"]}, "covers names 'org/model-*'"),
        ({"covers": ["model"]}, "covers names 'model'"),
        ({"class": "free"}, "class = 'free' is not one of"),
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


def test_terms_that_were_never_read_grant_nothing():
    """Solar-Open2's licence is known by a summary alone: with every fact given it is still not allowed."""
    facts = Facts(purpose="internal", users=10, revenue_year=1e6, modifies=False, distils=False, seat="NO")
    assert verdict(catalog.model("upstage/Solar-Open2-250B"), facts).answer == "unknown"
