"""Quality out of published results: what is carried over, its bounds, and how often the ranges hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from freehold.base.catalog import model as named
from freehold.base.catalog import models
from freehold.base.catalog.benchmarks import BENCHMARKS, task, tasks
from freehold.base.catalog.model import Model, Score
from freehold.base.catalog.quants import loss, mixes
from freehold.choose.advisor.quality import LEVEL, Scale, benchmark, line, quantile, rounded


def made(name: str, params: float, *scores: tuple[str, float], **facts) -> Model:
    told = tuple(Score(b, v, "instruct", "x") for b, v in scores)
    known = {"family": name, "thinking": "none", "released": "2025-01"} | facts
    return Model(f"lab/{name}", known.pop("family"), "lab", "", date(2026, 11, 1), (), params_b=params,
                 scores=told, **known)  # fmt: skip


def shelf(n: int = 20) -> list[Model]:
    """Models of 1 to n billion with both measures on one line."""
    return [made(f"m{i}", float(i), ("mmlu_pro", 30 + i), ("mmlu", 55 + i)) for i in range(1, n + 1)]


def of(model: Model, *others: Model, work: str = "knowledge"):
    return Scale(task(work), [*shelf(), *others]).of(model)


@pytest.mark.heavy
def test_ranges_hold_as_many_hidden_results_as_they_claim():
    """Hide every fourth known result of one scale; benches/choose/published_quality.py hides all of them."""
    known, inside, errors = models(), 0, []
    whole = Scale(task("chat"), known)
    for model in [m for m in known if any(s.benchmark == "arena" for s in m.scores)][::4]:
        blind = replace(model, scores=tuple(s for s in model.scores if s.benchmark != "arena"))
        true = whole.of(model)
        found = Scale(task("chat"), [m for m in known if m.id != model.id]).of(blind)
        if found and true:
            inside += true.range.mid in found.range
            errors.append(abs(found.range.mid - true.range.mid))
    assert len(errors) > 15 and inside / len(errors) >= LEVEL - 0.1
    assert sorted(errors)[len(errors) // 2] < 3


def test_released_results_that_fell_outside_are_held_or_not_foreseen():
    """The 90.5 of Kimi-K2.6 and the 90.1 of DeepSeek-V4-Pro lay outside their 80 % ranges."""
    known = models()
    for name in ("moonshotai/Kimi-K2.6", "deepseek-ai/DeepSeek-V4-Pro"):
        model = named(name)
        blind = replace(model, scores=tuple(s for s in model.scores if s.benchmark != "gpqa_diamond"))
        others = [m for m in known if m.family != model.family]
        found = Scale(task("reasoning"), others, ruler="gpqa_diamond").of(blind)
        told = [s.value for s in model.scores if s.benchmark == "gpqa_diamond"]
        assert told and (found is None or all(value in found.range for value in told))


def test_a_published_result_stands_as_it_is():
    found = of(named("Qwen/Qwen2.5-7B-Instruct"))
    assert found is not None and found.basis == "published" and found.standing == found.range.mid


@pytest.mark.parametrize("value", [0.0, 4.0, 99.9, 100.0])
def test_a_result_below_guessing_or_at_the_top_is_shown_as_it_is(value):
    model = made("odd", 7.0, ("mmlu_pro", value))
    found = of(model)
    assert found is not None and found.range.mid == value and value in found.range
    less = rounded(found, "Q4_K_M", model)
    assert less.range.mid <= value and less.range.low <= less.range.mid <= less.range.high


def test_one_carried_over_stands_by_its_low_end():
    found = of(made("new", 10.0, ("mmlu", 65)))
    assert found is not None and found.basis == "converted"
    assert 35 < found.range.mid < 45 and found.standing == found.range.low


def test_nothing_is_carried_over_beyond_what_a_line_was_laid_through():
    assert of(made("strong", 10.0, ("mmlu", 90))) is None
    assert of(made("weak", 10.0, ("mmlu", 40))) is None
    assert of(made("giant", 300.0, ("mmlu", 65))) is None
    assert of(made("nameless", 0.0, ("mmlu", 65))) is None


def test_a_specialists_own_skill_is_not_turned_into_general_quality():
    """qwen2.5-coder:0.5b was third for chat by HumanEval, where its sibling's published figure is 15."""
    coder = named("qwen2.5-coder:0.5b")
    found = Scale(task("chat"), models()).of(coder)
    assert found is None or found.range.high < 35
    only = replace(coder, scores=tuple(s for s in coder.scores if BENCHMARKS[s.benchmark].skill != "general"))
    assert Scale(task("chat"), models()).of(only) is None
    maths = named("Qwen/Qwen2.5-Math-7B-Instruct")
    only = replace(maths, scores=tuple(s for s in maths.scores if BENCHMARKS[s.benchmark].skill == "maths"))
    assert only.scores and Scale(task("knowledge"), models()).of(only) is None


def test_what_is_carried_over_is_bounded_by_size_and_by_siblings():
    small = made("small", 2.0, ("mmlu", 74))
    found = of(small)
    assert found is not None and found.range.mid <= 35  # no model up to twice its size has more
    sibling = made("big", 30.0, ("mmlu_pro", 40), family="kin")
    found = of(made("little", 10.0, ("mmlu", 65), family="kin"), sibling)
    free = of(made("little", 10.0, ("mmlu", 65)))
    assert found is not None and free is not None
    assert found.range.mid <= 40.01 and found.range.high == pytest.approx(free.range.high, abs=2)


def test_a_model_without_results_is_not_judged():
    assert of(made("bare", 7.0)) is None
    assert of(made("other", 7.0, ("humaneval", 80))) is None


def test_results_with_thinking_compare_with_such_alone():
    aloud = [
        made(f"t{i}", float(i), ("mmlu_pro", 60 + i), ("mmlu", 55 + i), thinking="only") for i in range(1, 6)
    ]
    asked = made("asked", 3.0, ("mmlu", 58), thinking="only")
    assert of(asked, *aloud) is None  # five are too few for a line of their own
    plain = of(made("plain", 3.0, ("mmlu", 58)), *aloud)
    assert plain is not None and plain.range.mid < 40


def test_quick_work_counts_no_thinking():
    told = (Score("mmlu_pro", 40, "non-thinking", "x"), Score("mmlu_pro", 70, "thinking", "x"))
    both = replace(made("both", 8.0, thinking="switchable"), scores=told)
    slow, fast = (Scale(task("knowledge"), [*shelf(), both], quick=q).of(both) for q in (False, True))
    assert slow is not None and fast is not None
    assert (round(slow.range.mid), round(fast.range.mid)) == (70, 40)


def test_a_quantisation_costs_quality_and_says_how_much():
    model = made("q", 8.0, ("mmlu_pro", 50))
    found = of(model)
    assert found is not None
    fine, coarse = rounded(found, "Q8_0", model), rounded(found, "Q2_K", model)
    assert 0 < found.range.mid - fine.range.mid < 0.1
    assert (
        8 < found.range.mid - coarse.range.mid < 13
        and "less" in coarse.evidence
        and "Q2_K" in coarse.evidence
    )
    assert rounded(found, "BF16", model) is found
    native = replace(model, native="INT4")
    assert rounded(found, "INT4", native) is found and rounded(found, "Q8_0", native) is found


def test_every_quantisation_has_a_cost_that_falls_with_its_bits():
    costs = {m.name: loss(m.name, 8.0) for m in mixes()}
    assert (
        costs["Q2_K"]
        > costs["Q3_K_M"]
        > costs["Q4_K_M"]
        > costs["Q5_K_M"]
        > costs["Q6_K"]
        > costs["Q8_0"]
        > 0
    )
    assert loss("Q4_K_M", 0.5) > loss("Q4_K_M", 8.0) > loss("Q4_K_M", 70.0) > 0


def test_a_line_is_not_moved_by_a_third_of_wrong_points():
    right = [(x / 10, 0.5 + 2 * x / 10) for x in range(20)]
    wrong = [(x / 7, 9.0) for x in range(8)]
    found = line(right + wrong)
    assert found.slope == pytest.approx(2, abs=0.3)
    assert line(right).slope == pytest.approx(2) and line(right).offset == pytest.approx(0.5)


def test_quantile_counts_the_new_value_too():
    assert quantile([1, 2, 3, 4], 0.8) == 4
    assert quantile(list(range(1, 100)), 0.8) == 80


def test_every_tasks_benchmarks_are_known_and_humaneval_is_no_scale():
    named_ = {t.id: t.benchmarks for t in tasks() if t.benchmarks}
    assert {benchmark(b) for bs in named_.values() for b in bs} <= set(BENCHMARKS)
    old = ("humaneval", "mbpp", "mmlu", "gsm8k", "math")
    known = models()
    for work, names in named_.items():
        scale = Scale(task(work), known)
        assert scale.benchmark == names[0] and scale.benchmark not in old
        assert 0 < task(work).bar < 100
