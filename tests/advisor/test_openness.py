"""The spectrum of the source article: each statement holds, or the dated fact against it stands beside.

An article of April 2026 sorts open models into four levels; each test quotes its level and checks the catalogue.
"""

from __future__ import annotations

import pytest

from freehold.base import catalog
from freehold.choose.advisor.lineage import openness, subject

HOLDS = [
    # 1 fully open (weights, training code, data, evaluation code): OLMo
    ("allenai/Olmo-3-7B-Instruct", 1),
    ("allenai/OLMo-2-1124-13B", 1),
    # 2 open weights, permissive: Mistral 7B and Mixtral (Apache-2.0), DeepSeek (MIT), Nemotron (NVIDIA's)
    ("mistralai/Mistral-7B-Instruct-v0.3", 2),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", 2),
    ("deepseek-ai/DeepSeek-R1", 2),
    ("deepseek-ai/DeepSeek-V4-Pro", 2),
    ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 2),
    # 3 open weights, custom licence: larger Qwen (smaller ones Apache-2.0), some NVIDIA
    ("Qwen/Qwen2.5-72B-Instruct", 3),
    ("Qwen/Qwen2.5-7B-Instruct", 2),
    ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", 3),
    # 4 significant restrictions: some early Qwen, research-only models
    ("Qwen/Qwen2.5-3B-Instruct", 4),
    ("mistralai/Mistral-Large-Instruct-2411", 4),
    ("meta/llama-1-7b", 4),
]
CONTRADICTED = [
    # "DeepSeek (MIT)": V2 and the V3 of December 2024 came under DeepSeek's own agreement
    ("deepseek-ai/DeepSeek-V3", 2, 3, "LicenseRef-scancode-deepseek-la-1.0"),
    # "DeepSeek (MIT)" of a distilled model: Llama's terms come along
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 2, 3, "LicenseRef-scancode-llama-3.3-license-2024"),
    # "OLMo: fully open": the instructed OLMo 2 adds Gemma's terms for the outputs that trained it
    ("allenai/OLMo-2-1124-13B-Instruct", 1, 3, "LicenseRef-ai2-apache-with-gemma"),
    # "larger Qwen: Qwen licence": since Qwen3 the largest are Apache-2.0
    ("Qwen/Qwen3-235B-A22B", 3, 2, "Apache-2.0"),
    # "smaller ones Apache-2.0": the 3B of Qwen2.5 is for research only
    ("Qwen/Qwen2.5-3B-Instruct", 2, 4, "LicenseRef-qwen-research-2024"),
]


@pytest.mark.parametrize(("name", "level"), HOLDS)
def test_the_article_holds(name: str, level: int):
    assert openness(subject(name)).level == level


@pytest.mark.parametrize(("name", "claimed", "found", "licence"), CONTRADICTED)
def test_where_the_article_does_not_hold_the_dated_licence_says_so(
    name: str, claimed: int, found: int, licence: str
):
    from freehold.choose.advisor.lineage import standing

    asked = subject(name)
    assert openness(asked).level == found != claimed
    told = [choice for place in standing(asked) for choice in place.choices if choice.id == licence]
    assert told and told[0].checked


def test_the_osi_asks_for_data_and_code_so_most_open_models_are_open_weights():
    """The article's own caution: of all models placed by their licence, few pass the OSI's definition."""
    placed = [openness(subject(m)) for m in catalog.models()]
    passing = [p for p in placed if p.osi == "passes"]
    assert passing and len(passing) < 0.1 * len(placed)
    assert all(p.level == 1 for p in passing)


def test_the_least_open_ancestor_counts():
    assert openness(subject("tatsu-lab/alpaca-7b")).level == 4


def test_a_model_of_unknown_licence_has_no_level():
    assert openness(subject("mistralai/Mistral-Large-4-1T-A52B")).level == 0


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-chat-hf", "xai-org/grok-2"])
def test_what_the_osi_named_as_failing_fails(name: str):
    assert openness(subject(name)).osi == "fails"
