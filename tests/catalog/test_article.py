"""An article of April 2026 on open-weight models, statement by statement, against the dated facts.

A statement holds, or the fact that contradicts it stands beside it. docs/details/models.md shows the same table.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from freehold.base import catalog
from freehold.base.catalog.model import Model

NOWHERE = Path("/nowhere/catalogue.toml")
MODELS = catalog.models(NOWHERE)
GUIDE = Path(__file__).parents[2] / "docs" / "details" / "models.md"
Q4 = 4.85 / 8  # bytes a weight of Q4_K_M


def known(model_id: str) -> Model:
    return catalog.model(model_id, NOWHERE)


# tier -> the models it names that exist
NAMED = [
    ("micro", "microsoft/Phi-3.5-mini-instruct"),
    ("small", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("small", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    ("medium", "Qwen/QwQ-32B"),
    ("medium", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
    ("large", "Qwen/Qwen3.5-122B-A10B"),
    ("large", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"),
    ("large", "mistralai/Mistral-Small-4-119B-2603"),
    ("xl", "deepseek-ai/DeepSeek-V3"),
    ("xl", "mistralai/Mistral-Large-3-675B-Instruct-2512"),
    ("xl", "Qwen/Qwen3.5-397B-A17B"),
]


@pytest.mark.parametrize(("tier", "model_id"), NAMED)
def test_a_model_is_of_the_tier_that_the_article_gives_it(tier: str, model_id: str):
    assert known(model_id).tier == tier


@pytest.mark.parametrize(
    ("tier", "billions"),
    [
        ("nano", (0.5, 1.5)),
        ("micro", (3, 4)),
        ("small", (7, 8)),
        ("medium", (14, 32)),
        ("large", (100, 123)),
        ("xl", (200, 2800)),
    ],
)
def test_both_ends_of_a_tiers_range_are_of_that_tier(tier: str, billions: tuple[float, float]):
    for size in billions:
        made = Model("a/b", "", "", "", MODELS[0].checked, (), params_b=size)
        assert made.tier == tier


# a name of the article's own -> the Qwen3.5 of that tier which was released
INVENTED = [
    ("nano", "Qwen/Qwen3.5-0.5B", {"Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-2B"}),
    ("nano", "Qwen/Qwen3.5-1.5B", {"Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-2B"}),
    ("micro", "Qwen/Qwen3.5-3B", {"Qwen/Qwen3.5-4B"}),
    ("small", "Qwen/Qwen3.5-8B", {"Qwen/Qwen3.5-9B"}),
    ("medium", "Qwen/Qwen3.5-14B", {"Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B"}),
    ("medium", "Qwen/Qwen3.5-32B", {"Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B"}),
]


@pytest.mark.parametrize(("tier", "name", "released"), INVENTED, ids=[i[1] for i in INVENTED])
def test_qwen35_was_released_in_other_sizes_than_the_article_names(tier: str, name: str, released: set[str]):
    ids = {m.id for m in MODELS}
    assert name not in ids
    assert {i for i in ids if i.startswith("Qwen/Qwen3.5-") and known(i).tier == tier} == released


MMLU = [("nano", 40, 50), ("small", 65, 75), ("medium", 75, 83), ("large", 83, 88), ("xl", 87, 92)]


def published(tier: str) -> list[float]:
    """Return the published MMLU results of a tier's models of June 2024 or later that are not for code alone."""
    recent = [m for m in MODELS if m.tier == tier and m.released >= "2024-06" and "Coder" not in m.id]
    return [s.value for m in recent for s in m.scores if s.benchmark == "mmlu"]


@pytest.mark.parametrize(("tier", "low", "high"), MMLU)
def test_the_middle_of_a_tiers_published_mmlu_lies_in_its_range(tier: str, low: float, high: float):
    assert low <= median(published(tier)) <= high


def test_micro_models_score_more_than_the_article_gives_them():
    """It says 55-63; the 3B models of late 2024 published 63.4 (Llama 3.2) and 65.6 (Qwen2.5)."""
    assert min(published("micro")) > 63


@pytest.mark.parametrize(
    ("tier", "gigabytes"),
    [("nano", 2), ("micro", 4), ("small", 8), ("medium", 24), ("large", 80)],
)
def test_a_tiers_named_models_fit_its_hardware_at_4_bits(tier: str, gigabytes: int):
    """Weights alone: a phone, a laptop, a consumer GPU, one of 24 GB, one H100."""
    sizes = {"nano": [1.5], "micro": [4.0]}.get(tier) or [known(i).params_b for t, i in NAMED if t == tier]
    assert all(size * Q4 < gigabytes for size in sizes)


def test_the_largest_fit_eight_gpus_of_80_gb_at_4_bits_but_not_as_released():
    """The article says 2-8 GPUs; DeepSeek-V3 is released in FP8, a byte a weight: 671 GB against 640."""
    xl = [known(i).params_b for t, i in NAMED if t == "xl"]
    assert all(2 * 80 < size * Q4 < 8 * 80 for size in xl)
    assert known("deepseek-ai/DeepSeek-V3").params_b > 8 * 80


def test_nemotron_3_ultra_is_larger_than_it_was_announced():
    ultra = known("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4")
    assert (ultra.params_b, ultra.active_b) == (550, 55) != (500, 50)
    assert ultra.released == "2026-06-04" and "500B-A50B" in ultra.note


def test_r1_followed_v3():
    """The article's line runs V2.5, R1, V3."""
    dates = [known(f"deepseek-ai/DeepSeek-{v}").released for v in ("V2.5", "V3", "R1")]
    assert dates == sorted(dates)


@pytest.mark.parametrize(
    ("model_id", "total", "active"),
    [
        ("deepseek-ai/DeepSeek-V2-Chat", 236, 21),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", 675, 41),
        ("mistralai/Mistral-Small-4-119B-2603", 119, 6.63),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, 3.2),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 120.6, 12.7),
        ("Qwen/Qwen3-235B-A22B", 235, 22),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480, 35),
    ],
)
def test_sizes_are_the_articles_before_rounding(model_id: str, total: float, active: float):
    found = known(model_id)
    assert (found.params_b, found.active_b, found.kind) == (total, active, "moe")


def test_deepseek_v2_has_160_experts_and_nemotron_3_a_million_tokens():
    assert known("deepseek-ai/DeepSeek-V2-Chat").experts == 160
    for size in ("Nano-30B-A3B-BF16", "Super-120B-A12B-BF16", "Ultra-550B-A55B-NVFP4"):
        model = known(f"nvidia/NVIDIA-Nemotron-3-{size}")
        assert model.stretch is not None and model.stretch.context == 1 << 20  # its config.json has a quarter


def test_the_distills_of_r1_go_from_1_to_70_billion_and_name_their_parents():
    distills = [m for m in MODELS if m.id.startswith("deepseek-ai/DeepSeek-R1-Distill-")]
    # 1.78 counted: its head is a matrix of its own, which Qwen2.5-1.5B's is not
    assert (min(m.params_b for m in distills), max(m.params_b for m in distills)) == (1.78, 70)
    assert all("deepseek-ai/DeepSeek-R1" in m.base and len(m.base) == 2 for m in distills)


def test_super_scores_the_79_of_gpqa_that_the_article_gives_it():
    (score,) = [
        s.value
        for s in known("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16").scores
        if s.benchmark == "gpqa_diamond" and "OpenBench" not in s.source
    ]
    assert round(score, 1) == 79.2


def test_the_guide_shows_each_contradiction_beside_the_article():
    text = GUIDE.read_text(encoding="utf-8")
    for fact in ("Qwen3.5-0.8B", "Qwen3.5-4B", "Qwen3.5-9B", "Qwen3.5-27B", "65.6", "671 GB", "550B-A55B"):
        assert fact in text
