"""What the catalogue says of models: the data is linted here, and lookups are claims."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import date
from importlib import resources
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import schema
from freehold.base.catalog.licence import covering
from freehold.base.catalog.models import sources
from freehold.base.catalog.schema import gaps, parse
from freehold.base.errors import ModelNotFound, StoreError

DATA = sorted(
    resources.files("freehold.base.catalog").joinpath("data", "models").iterdir(), key=lambda p: p.name
)
NOWHERE = Path("/nowhere/catalogue.toml")
MODELS = catalog.models(NOWHERE)
IDS = {m.id for m in MODELS}
SHARED = ("lab", "country", "family")


@pytest.mark.parametrize("file", DATA, ids=lambda p: p.name)
def test_every_file_passes_the_linter_and_names_known_sources(file):
    text = file.read_text(encoding="utf-8")
    for table in tomllib.loads(text)["model"]:
        cited = [*table["sources"], *(s["source"] for s in table.get("scores", ()))]
        assert sources().keys() >= set(cited), table["id"]
    tables = parse(file.name, text)
    told = [
        (t.id, t.checked, key)
        for t in tables
        for key in t.values.keys() - {"id", "checked", "sources", *SHARED}
    ]
    assert len(set(told)) == len(told), "two tables of one id and day say the same key"
    assert all(date(2026, 1, 1) <= t.checked <= date.today() for t in tables)


def test_a_model_lies_in_one_file():
    owners = [{t.id for t in parse(f.name, f.read_text(encoding="utf-8"))} for f in DATA]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(MODELS)


def test_at_least_120_models_are_known_with_their_lab_and_family():
    assert len(MODELS) >= 200
    assert all(m.lab and m.family for m in MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.id)
def test_every_entry_has_layers_context_weights_and_precision_or_says_where_they_were_looked_for(model):
    assert gaps(model) == ()


def test_few_facts_are_excused():
    excused = [key for m in MODELS for key, _ in m.not_published]
    assert len(excused) <= 30 and excused.count("layers") <= 6 and "context" not in excused


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        ({"layers": ()}, "layers is missing"),
        ({"context": 0}, "context is missing"),
        ({"parameters": 0}, "parameters is missing"),
        ({"native": ""}, "native is missing"),
        ({"text_parameters": 8_200_000_000}, "exceed parameters"),
        ({"active_parameters": 10**12}, "active_parameters"),
        ({"params_b": 9.0}, "params_b = 9.0 is far from 8.191"),
        ({"not_published": (("context", "card"),)}, "not_published names context, which is known"),
        ({"role": "embedder"}, "dimensions is missing"),
        ({"kind": "moe"}, "experts is missing"),
    ],
)
def test_an_entry_with_a_gap_is_named(change: dict, gap: str):
    (found,) = gaps(replace(catalog.model("Qwen/Qwen3-8B", NOWHERE), **change))
    assert gap in found


def test_a_gap_is_excused_by_a_source_that_was_looked_through():
    known = catalog.model("Qwen/Qwen3-8B", NOWHERE)
    assert gaps(replace(known, native="", not_published=(("native", "its card"),))) == ()


def test_embedders_and_rerankers_are_known_with_what_choosing_one_needs():
    found = [m for m in MODELS if m.role != "generator"]
    assert sum(m.role == "embedder" for m in found) >= 20 and sum(m.role == "reranker" for m in found) >= 8
    for m in found:
        assert m.context and m.licence and m.languages and m.parameters and m.native and m.layers, m.id
        assert bool(m.dimensions) is (m.role == "embedder"), m.id


def test_no_generator_is_asked_for_vectors_and_no_embedder_for_text():
    roles = {m.id: m.role for m in MODELS}
    assert roles["BAAI/bge-m3"] == roles["Qwen/Qwen3-Embedding-8B"] == "embedder"
    assert roles["BAAI/bge-reranker-v2-m3"] == "reranker" and roles["Qwen/Qwen3-8B"] == "generator"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Qwen/Qwen3-8B", "de", True),
        ("Qwen/Qwen3-8B", "no", True),  # named as Bokmal and Nynorsk
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "de", False),
        ("google/gemma-3-27b-it", "de", None),  # over 140 are claimed and none is named
        ("MiniMaxAI/MiniMax-M2", "de", None),  # nothing is stated
        ("meta-llama/Llama-3.3-70B-Instruct", "ja", False),
        ("BAAI/bge-m3", "mul", True),
        ("mixedbread-ai/mxbai-embed-large-v1", "mul", False),
    ],
)
def test_a_language_is_stated_denied_or_unknown(name: str, code: str, said: bool | None):
    assert catalog.model(name, NOWHERE).speaks(code) is said


def test_every_set_of_languages_names_codes_and_a_source_that_is_spelled_out():
    for found in schema.sets().values():
        assert found.codes and len(set(found.codes)) == len(found.codes)
        assert all(schema.CODE.fullmatch(code) for code in found.codes)
        assert sources().keys() >= set(found.sources)


def test_every_parents_licence_can_be_read_from_its_entry_or_from_a_licence_that_covers_it():
    parents = {parent for m in MODELS for parent in m.base}
    assert parents and all(p in IDS or covering(p) for p in parents)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("qwen3:8b", "Qwen/Qwen3-8B"),
        ("qwen2.5-coder:0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
        ("qwen2.5-coder", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
        ("deepseek-r1:70b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
    ],
)
def test_a_model_answers_to_its_id_its_short_name_and_its_files(asked: str, found: str):
    assert catalog.model(asked, NOWHERE).id == found


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ModelNotFound, match="no model 'Qwen3-9B'") as e:
        catalog.model("Qwen3-9B", NOWHERE)
    assert "Qwen/Qwen3-8B" in e.value.hint
    with pytest.raises(ModelNotFound) as e:
        catalog.model("zzzz", NOWHERE)
    assert "freehold models" in e.value.hint


def test_one_model_read_alone_is_the_same_as_among_all():
    for m in MODELS[::10]:
        assert catalog.model(m.id, NOWHERE) == m


OWN = """
[[model]]
id = "me/Tuned-8B"
lab = "Me"
params_b = 8
base = ["Qwen/Qwen3-8B"]
licence = "Apache-2.0"
sources = ["my own notes"]
checked = 2026-11-20

[[model]]
id = "Qwen/Qwen3-8B"
context = 40960
sources = ["config.json"]
checked = 2027-01-25
"""


def score(benchmark: str, value: float, setting: str) -> str:
    return f'{{ benchmark = "{benchmark}", value = {value}, setting = "{setting}", source = "s" }}'


@pytest.fixture
def user(tmp_path: Path) -> Path:
    path = tmp_path / "catalogue.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_the_users_own_models_and_newer_facts_are_read_with_ours(user: Path):
    assert catalog.model("me/Tuned-8B", user).base == ("Qwen/Qwen3-8B",)
    newer = catalog.model("Qwen/Qwen3-8B", user)
    assert newer.context == 40960 and newer.checked == date(2027, 1, 25)
    assert newer.params_b == 8.19 and newer.name == "qwen3:8b" and newer.sources[-1] == "config.json"
    assert len(catalog.models(user)) == len(MODELS) + 1


def test_an_older_fact_of_the_user_does_not_win(user: Path):
    user.write_text(OWN.replace("2027-01-25", "2026-11-01"), encoding="utf-8")
    assert catalog.model("Qwen/Qwen3-8B", user).context == 40960


def test_scores_of_dated_tables_add_up_and_the_newer_replaces_its_own_setting(user: Path):
    older = [score("humaneval", 60, "instruct"), score("mmlu", 70, "5-shot"), score("mmlu", 71, "chat")]
    newer = [score("mmlu", 72, "5-shot"), score("mbpp", 50, "")]
    tables = [("2026-11-26", newer), ("2026-11-20", older), ("2026-11-27", [])]
    for day, scores in tables:
        told = f"scores = [{', '.join(scores)}]" if scores else "context = 4096"
        text = f'\n[[model]]\nid = "me/Scored"\n{told}\nsources = ["s"]\nchecked = {day}\n'
        user.write_text(user.read_text(encoding="utf-8") + text, encoding="utf-8")
    found = [(s.benchmark, s.value, s.setting) for s in catalog.model("me/Scored", user).scores]
    assert found == [
        ("humaneval", 60, "instruct"),
        ("mmlu", 72, "5-shot"),
        ("mmlu", 71, "chat"),
        ("mbpp", 50, ""),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("[[model]]", "[[model", 2, "is not valid TOML"),
        ("params_b = 8", "params_b = '8'", 5, "params_b = '8' must be a number"),
        ("params_b = 8", "param_b = 8", 5, "unknown key 'param_b'"),
        ("context = 40960", "context = true", 13, "must be a whole number"),
        ("context = 40960", "context = -1", 13, "is not within"),
        ("checked = 2027-01-25", "", 11, "checked is missing"),
        ("checked = 2027-01-25", "checked = 2027-01-25T10:00:00", 15, "must be a date"),
        ('"Apache-2.0"', '"Apache 2"', 7, "is not an SPDX"),
        ('["Qwen/Qwen3-8B"]', '["qwen3:8b"]', 6, "which is not org/repo"),
        ("params_b = 8", "active_b = 9\nparams_b = 8", 5, "active_b = 9 exceeds params_b = 8"),
        ("params_b = 8", 'layers = [{ kind = "full", count = 2 }]', 5, "full layers need kv_heads"),
        ("params_b = 8", 'layers = [{ kind = "ful" }]', 5, "needs a kind out of full, window"),
        ("params_b = 8", 'thinking = "often"', 5, "'often' is not one of none, switchable, only"),
        ("params_b = 8", 'modalities = ["smell"]', 5, "modality 'smell'"),
        ("params_b = 8", 'released = "last May"', 5, "'last May' is not 2025-04-28 or 2025-04"),
        (
            "params_b = 8",
            f"scores = [{score('mmlu', 120, '')}]",
            5,
            "mmlu = 120 is not within 0..100",
        ),
        (
            "params_b = 8",
            f"scores = [{score('humanevals', 50, '')}]",
            5,
            "unknown benchmark 'humanevals'",
        ),
        (
            "params_b = 8",
            f"scores = [{', '.join(2 * [score('humaneval', 50, 'instruct')])}]",
            5,
            "humaneval (instruct) is given twice",
        ),
    ],
)
def test_a_damaged_user_file_is_named_with_its_line(user: Path, old: str, new: str, line: int, message: str):
    user.write_text(OWN.replace(old, new), encoding="utf-8")
    with pytest.raises(StoreError) as e:
        catalog.models(user)
    assert e.value.message.startswith(f"{user}:{line}: ") and message in e.value.message
    assert e.value.hint


def test_a_user_file_that_is_no_text_is_named(user: Path):
    user.write_bytes(b"[[model]]\n\xff\xfe")
    with pytest.raises(StoreError, match=r"catalogue.toml:2: is not UTF-8"):
        catalog.models(user)


def test_a_huge_user_file_is_refused(user: Path):
    user.write_bytes(b"#" * (5 << 20))
    with pytest.raises(StoreError, match="more than a catalogue may have"):
        catalog.models(user)


def test_the_guides_own_entry_is_a_sound_one():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "models.md"
    text = guide.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    (facts,) = parse("guide", text)
    assert facts.id == "acme/Helpdesk-8B"
