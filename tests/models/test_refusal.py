"""What the engine runs is asked of its families, of the whole structure and never of a list of names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog.model import Structure
from freehold.base.errors import UnsupportedModel
from freehold.run.models.binding.bind import check_structure, missing_part, refusal
from freehold.run.models.families import naming, registered

NOWHERE = Path("/nowhere/catalogue.toml")


@pytest.mark.parametrize(
    ("model_id", "why"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", ""),
        ("mistralai/Mistral-7B-Instruct-v0.1", ""),  # a window on every layer
        ("mistralai/Mistral-Nemo-Instruct-2407", ""),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", ""),
        ("Qwen/Qwen3-8B", ""),
        ("google/gemma-3-12b-it", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", ""),
        ("BAAI/bge-large-en-v1.5", ""),
        ("Qwen/Qwen3-Embedding-4B", ""),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", ""),  # GGUF calls it llama
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", ""),
        ("Qwen/Qwen3-30B-A3B", ""),
        ("Qwen/Qwen3.5-9B", ""),
        ("openai/gpt-oss-20b", ""),
        ("deepseek-ai/DeepSeek-V4-Pro", "architecture deepseek4"),
        ("google/gemma-2-9b-it", ""),
        ("ibm-granite/granite-4.1-30b", ""),
        ("HuggingFaceTB/SmolLM3-3B", ""),
        ("BAAI/bge-m3", "architecture xlm-roberta"),
        ("google/embeddinggemma-300m", "architecture gemma-embedding"),
        ("Qwen/Qwen3-Reranker-4B", "pairs of texts"),
        ("mixedbread-ai/mxbai-rerank-base-v2", "pairs of texts"),
    ],
)
def test_a_model_runs_or_is_refused_for_what_it_is(model_id: str, why: str):
    found = refusal(catalog.model(model_id, NOWHERE).structure)
    assert why in found and bool(found) is bool(why)


def test_mixtures_of_experts_run_where_a_family_computes_them():
    runs = {m.architecture for m in catalog.models(NOWHERE) if m.kind == "moe" and not refusal(m.structure)}
    listed = {m.architecture for m in catalog.models(NOWHERE)}
    assert runs == {f.gguf_architecture for f in registered() if f.experts} & listed
    assert "experts" in refusal(Structure("gemma3", experts=True))


def test_every_family_runs_what_it_says_of_itself():
    for family in registered():
        for name in (family.gguf_architecture, *family.model_types):
            assert refusal(Structure(name, family.keeps, family.experts)) == ""
            both = {f.experts for f in registered() if name in (f.gguf_architecture, *f.model_types)}
            other = refusal(Structure(name, family.keeps, not family.experts))
            assert ("experts" in other or "dense" in other) == (both != {True, False})


def test_the_catalogue_gives_layers_the_kinds_that_their_family_keeps():
    kept: dict[str, set[str]] = {}
    for family in registered():
        kept.setdefault(family.gguf_architecture, set()).update(family.keeps)
    strange = {
        m.id: kinds
        for m in catalog.models(NOWHERE)
        if (kinds := {g.kind for g in m.layers} - kept.get(m.architecture, {g.kind for g in m.layers}))
    }
    assert strange == {}
    assert refusal(catalog.model("Qwen/Qwen3.8-2.4T-A95B", NOWHERE).structure) == ""


@pytest.mark.parametrize("kind", ["latent", "deltanet", "mamba2", "compressed"])
def test_a_hybrid_under_a_known_name_is_refused(kind: str):
    assert kind in refusal(Structure("llama", frozenset({"full", kind})))


def test_a_download_that_would_not_run_is_refused_with_what_does():
    with pytest.raises(UnsupportedModel, match="architecture deepseek4") as e:
        check_structure(catalog.model("deepseek-ai/DeepSeek-V4-Flash", NOWHERE).structure)
    assert "the nearest that run are deepseek2, deepseek32" in e.value.hint
    with pytest.raises(UnsupportedModel, match="which is not known"):
        check_structure(Structure(""))


@pytest.mark.parametrize(
    ("name", "lack"),
    [
        ("deepseek4", "compressed sparse attention"),
        ("kimi-k3", "delta rule with a decay for each channel"),
        ("qwen4exp", "n-gram embeddings"),
        ("minimax-m3", "an index picks"),
        ("bloom", "ALiBi"),
    ],
)
def test_newer_architecture_is_refused_with_what_it_has_that_is_not_computed(name: str, lack: str):
    assert lack in refusal(Structure(name))
    with pytest.raises(UnsupportedModel, match=lack):
        check_structure(Structure(name))


def test_no_family_is_listed_as_not_computed():
    for family in registered():
        for name in (family.gguf_architecture, *family.hf_classes, *family.model_types):
            assert not missing_part(name), name


def test_each_name_finds_its_family_by_the_text_of_its_module():
    for family in registered():
        for name in (family.gguf_architecture, *family.hf_classes, *family.model_types, *family.wrappers):
            assert any(found is family for found in naming(name)), name


def test_one_architecture_leaves_other_families_unimported():
    code = (
        "import sys\n"
        "from freehold.base.catalog.model import Structure\n"
        "from freehold.run.models.binding.bind import refusal\n"
        "assert not refusal(Structure('llama')) and refusal(Structure('deepseek4'))\n"
        "prefix = 'freehold.run.models.families.'\n"
        "print(sum(name.startswith(prefix) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(registered()) / 3
