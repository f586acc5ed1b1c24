"""Names as people type them: Ollama's tags, hub ids and links, packed copies, and what must not be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog.entries import _tags
from freehold.base.catalog.entries import plain as without_place
from freehold.base.errors import ModelNotFound

NOWHERE = Path("/nowhere/catalogue.toml")
# a name as typed, a tab, the id that it means; none: it is unknown, or may be several
ROWS = (Path(__file__).parent / "names.tsv").read_text(encoding="utf-8").splitlines()
TYPED = [tuple(row.split("\t")) for row in ROWS]


def test_a_hundred_and_fifty_names_and_more_are_tried():
    assert len({name for name, _ in TYPED}) == len(TYPED) >= 150
    assert sum(not meant for _, meant in TYPED) >= 15


@pytest.mark.parametrize(("name", "meant"), TYPED, ids=[name for name, _ in TYPED])
def test_a_name_finds_its_model_and_no_other(name: str, meant: str):
    try:
        found = catalog.model(name, NOWHERE).id
    except ModelNotFound as e:
        assert e.hint
        found = ""
    assert found == meant


def test_every_tag_leads_to_a_model_of_the_catalogue():
    known = {m.id for m in catalog.models(NOWHERE)}
    assert set(_tags().values()) <= known


@pytest.mark.parametrize(
    ("typed", "name", "quant"),
    [
        ("llama3.1:8b-instruct-q8_0", "llama3.1:8b-q8_0", "Q8_0"),
        ("llama3.1:8b-instruct-q4_K_M", "llama3.1:8b", "Q4_K_M"),
        ("qwen3:30b-a3b", "qwen3:30b", "Q4_K_M"),
        ("qwen3:8b-fp16", "qwen3:8b-f16", "F16"),
        ("mistral:latest", "mistral:7b", "Q4_K_M"),
    ],
)
def test_a_tag_with_a_type_fetches_that_type_from_the_same_repository(typed: str, name: str, quant: str):
    entry = catalog.find(typed)
    assert (entry.name, entry.hub_quant) == (name, quant)
    assert entry.hub_repo == catalog.find(name.removesuffix(f"-{quant.lower()}")).hub_repo
    assert not entry.files or quant == "Q4_K_M"  # another file's digest is not known


@pytest.mark.parametrize("typed", ["llama3.1:8b-text-q8_0", "qwen2.5-coder:7b-base", "qwen3:9b-q4_K_M"])
def test_a_base_model_or_a_size_that_is_none_is_not_fetched_as_another(typed: str):
    with pytest.raises(ModelNotFound):
        catalog.find(typed)


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("hf.co/bartowski/X-GGUF:Q4_K_M", "bartowski/X-GGUF"),
        ("https://huggingface.co/Qwen/Qwen3-8B/", "Qwen/Qwen3-8B"),
        ("library/qwen3:8b-q4_K_M", "qwen3:8b"),
        ("llama3:latest", "llama3"),
        ("unsloth/X-GGUF:UD-Q4_K_XL", "unsloth/X-GGUF"),
        ("gpt-oss:20b", "gpt-oss:20b"),
        ("phi-2", "phi-2"),
        ("nvidia/X-30B-A3B-BF16", "nvidia/X-30B-A3B-BF16"),
    ],
)
def test_what_says_where_a_file_lies_and_how_it_is_packed_is_left_out(typed: str, plain: str):
    assert without_place(typed) == plain


def test_every_id_is_found_in_any_case_and_as_a_link():
    for model in catalog.models(NOWHERE)[::7]:
        if model.hub:
            assert catalog.model(model.id.lower(), NOWHERE).id == model.id
            assert catalog.model(f"https://huggingface.co/{model.id}", NOWHERE).id == model.id
