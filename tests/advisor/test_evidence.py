"""Published figures as evidence: what they are results of, and how far a repeat strays."""

from __future__ import annotations

from datetime import date

import pytest

from freehold.base.catalog import models
from freehold.base.catalog.model import Model, Score
from freehold.choose.advisor.quality import (
    Evidence,
    logit,
    made_for,
    measure,
    per_cent,
    sampling,
    says_something,
)


def made(*scores: tuple[str, float, str], name: str = "m", **facts) -> Model:
    told = tuple(Score(b, v, s, "x") for b, v, s in scores)
    return Model(f"lab/{name}", "", "lab", "", date(2026, 11, 1), (), scores=told, **facts)


@pytest.mark.parametrize(
    ("benchmark", "setting", "facts", "key"),
    [
        ("mmlu", "base 5-shot", {}, "mmlu/base"),
        ("mmlu", "instruct 5-shot", {}, "mmlu"),
        ("mmlu", "5-shot", {"instructed": False}, "mmlu/base"),
        ("gpqa_diamond", "thinking, GPQA", {}, "gpqa_diamond/thinking"),
        ("gpqa_diamond", "non-thinking", {"thinking": "switchable"}, "gpqa_diamond"),
        ("gpqa_diamond", "", {"thinking": "switchable"}, "gpqa_diamond/thinking"),
        ("gpqa_diamond", "", {"thinking": "none", "released": "2026-01"}, "gpqa_diamond"),
        ("gpqa_diamond", "", {"released": "2026-01"}, "gpqa_diamond/thinking"),
        ("livecodebench", "thinking, v6", {}, "livecodebench/thinking"),
        ("livecodebench", "instruct, 2407-2409", {}, "livecodebench@old"),
        ("bfcl", "instruct 0-shot, BFCL", {}, "bfcl@old"),
        ("ruler", "32K, as run by NVIDIA", {}, "ruler@short"),
        ("vectara_faithful", "", {"thinking": "switchable"}, "vectara_faithful"),
    ],
)
def test_a_result_is_one_of_its_mode_and_version(benchmark, setting, facts, key):
    assert measure(Score(benchmark, 50, setting, "x"), made(**facts)) == key


def test_a_figure_that_two_sources_share_counts_once():
    twice = made(("gpqa_diamond", 60, "a"), ("gpqa_diamond", 60, "b"), name="twice")
    other = made(("gpqa_diamond", 60, "a"), ("gpqa_diamond", 64, "b"), name="other")
    evidence = Evidence([other, *models()])
    assert evidence.of(twice)["gpqa_diamond"].sources == 1
    both = evidence.of(other)["gpqa_diamond"]
    assert both.sources == 2 and 60 < both.value < 64


def test_no_spread_is_narrower_than_the_draw_of_the_items():
    """99 of AIME's 30 problems was given with "99 to 99"."""
    evidence = Evidence(models())
    for value in (5.0, 50.0, 99.0, 100.0):
        found = evidence.of(made(("aime25", value, "")))["aime25"]
        assert found.deviation >= sampling("aime25", value) > 0.15
    top = evidence.of(made(("aime25", 99.0, "")))["aime25"]
    low = per_cent("aime25", logit("aime25", 99.0) - top.spread)
    assert low < 97.5


def test_sources_of_one_benchmark_differ_by_what_was_measured():
    evidence = Evidence(models())
    assert 0.05 < evidence.between("gpqa_diamond") < 0.3
    assert evidence.between("gpqa_diamond") < evidence.between("swe_bench_verified")
    assert evidence.between("arena") == evidence.between("livebench") < 0.1


def test_what_guessing_would_give_says_nothing():
    assert not says_something("gpqa_diamond", 29) and says_something("gpqa_diamond", 33)
    assert says_something("aime25", 3)


@pytest.mark.parametrize("key", ["gpqa_diamond", "mmlu_pro/thinking", "aime25", "livecodebench@old"])
def test_a_logit_leads_back_to_its_result(key):
    for value in (30.0, 55.5, 99.0):
        assert per_cent(key, logit(key, value)) == pytest.approx(value)


def test_specialists_are_known_by_their_names():
    assert made_for(made(name="Qwen2.5-Coder-0.5B-Instruct")) == {"code"}
    assert made_for(made(name="Kimi-K2.7-Code")) == {"code"}
    assert made_for(made(name="Qwen2.5-Math-7B-Instruct")) == {"maths"}
    assert not made_for(made(name="Qwen3-8B"))
