"""Weights counted from config.json, against what the hub counts in the files and llama.cpp in its GGUFs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.base import catalog
from freehold.base.catalog.counting import FAMILIES, count
from freehold.base.errors import UnsupportedModel
from freehold.run.formats import open_model_file

# sizes of 88 published configurations, with the hub's count of the tensors in the files; `beside`: of them towers
# for images, draft layers and buffers
CONFIGS = json.loads((Path(__file__).parent / "configs.json").read_text(encoding="utf-8"))
WHOLE = [c for c in CONFIGS if "beside" not in c]
BY_ID = {c["id"]: c for c in CONFIGS}
NOWHERE = Path("/nowhere/catalogue.toml")


@pytest.mark.parametrize("published", WHOLE, ids=lambda c: c["id"])
def test_the_count_is_the_hubs_to_the_last_weight(published: dict[str, Any]):
    assert count(published["config"]).total == published["total"]


def test_sixty_and_more_models_of_every_kind_are_held_against_the_hub():
    assert len(WHOLE) >= 60
    counted = {c["config"]["model_type"].removesuffix("_text") for c in CONFIGS}
    assert len(counted & FAMILIES.keys()) >= 18


@pytest.mark.parametrize("published", [c for c in CONFIGS if "beside" in c], ids=lambda c: c["id"])
def test_what_is_beside_the_text_is_what_the_files_hold_more(published: dict[str, Any]):
    assert count(published["config"]).total + published["beside"] == published["total"]
    assert -1e-6 < published["beside"] / published["total"] < 0.1


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [  # as llama-bench prints its GGUFs, which have no towers; and as DeepSeek and Zhipu state them without MTP
        ("Qwen/Qwen3.5-35B-A3B", 34.66),
        ("google/gemma-4-26B-A4B-it", 25.23),
        ("google/gemma-4-E2B-it", 4.65),
        ("google/gemma-4-E4B-it", 7.52),
        ("deepseek-ai/DeepSeek-V3", 671.03),
    ],
)
def test_the_text_half_is_as_large_as_others_count_it(model_id: str, billions: float):
    assert count(BY_ID[model_id]["config"]).total / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [  # what their makers call active
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("openai/gpt-oss-120b", 5.1),
        ("deepseek-ai/DeepSeek-V3", 37),
        ("google/gemma-4-26B-A4B-it", 3.8),
        ("google/gemma-4-E2B-it", 2.3),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 12.9),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 12.7),
    ],
)
def test_active_weights_are_those_that_the_makers_name(model_id: str, billions: float):
    """Within 6 %; makers count the embedding's table with them, or not."""
    found = count(BY_ID[model_id]["config"])
    rows = 0 if model_id.startswith("google") else found.embed
    assert found.active / 1.06e9 <= billions <= (found.active + rows) / 0.94e9


def test_two_generations_with_the_same_draft_layer_have_the_same_beside():
    assert BY_ID["zai-org/GLM-5"]["beside"] == BY_ID["zai-org/GLM-5.2"]["beside"]


@pytest.mark.parametrize("published", CONFIGS, ids=lambda c: c["id"])
def test_the_catalogue_holds_what_is_counted(published: dict[str, Any]):
    model = catalog.model(published["id"], NOWHERE)
    text = count(published["config"]).total
    assert model.parameters == published["total"]
    assert (model.text_parameters or model.parameters) == pytest.approx(text, abs=20_000)


def test_an_encoder_is_counted_without_its_pooler():
    """bge-m3: XLM-R large of 8,194 positions; its file holds a pooler of 1024 x 1024 besides."""
    config = {
        "model_type": "xlm-roberta",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "vocab_size": 250002,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
    }
    assert count(config).total + 1024 * 1024 + 1024 == catalog.model("BAAI/bge-m3", NOWHERE).parameters


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "rwkv7"}, "'rwkv7' cannot be counted"),
        ({"model_type": "llama", "hidden_size": -1}, "hidden_size is '-1'"),
        ({"model_type": "llama", "hidden_size": "x" * 1000}, "which is not a size"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "not made of M"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(config: dict[str, Any], said: str):
    with pytest.raises(UnsupportedModel, match=said):
        count(config)


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("smollm2:135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("qwen2.5-coder:0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
        pytest.param("qwen2.5-coder:1.5b", "Qwen/Qwen2.5-1.5B-Instruct", marks=pytest.mark.big),
        ("gemma3:270m", "google/gemma-3-270m"),
    ],
)
def test_a_file_holds_as_many_weights_as_its_configuration_asks_for(
    model_path: Callable[[str], Path], name: str, model_id: str
):
    with open_model_file(model_path(name)) as opened:
        held = {t.name: math.prod(t.shape) for t in opened.tensors.values()}
    copies = held.get("output.weight", 0)  # some GGUFs store the tied head a second time
    assert sum(held.values()) - copies == count(BY_ID[model_id]["config"]).total
