"""Quality out of published results: hidden results are foreseen as often as the ranges claim."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from freehold.advisor.quality import LEVEL, Quality, Scale, line, measure, quantile, results
from freehold.catalog import models
from freehold.catalog.model import Model, Score
from freehold.catalog.tasks import task, tasks


@cache
def hidden() -> dict[str, list[tuple[Quality, float]]]:
    """Hide each known result of each task's scale in turn, and foresee it from all others."""
    known, found = models(), {}
    for work in tasks():
        scale = Scale(work, known).benchmark
        if scale and scale not in found:
            found[scale] = [_without(work, known, m, scale) for m in known if scale in results(m)]
    return found


def _without(work, known, model, scale):
    blind = replace(model, scores=tuple(s for s in model.scores if measure(s) != scale))
    quality = Scale(work, [blind if m.id == model.id else m for m in known]).of(blind)
    assert quality is not None
    return quality, results(model)[scale]


def test_ranges_hold_as_many_hidden_results_as_they_claim():
    pairs = [pair for found in hidden().values() for pair in found]
    held = sum(quality.range.low <= true <= quality.range.high for quality, true in pairs)
    assert len(pairs) > 100
    assert LEVEL - 0.07 <= held / len(pairs) <= LEVEL + 0.09


def test_a_result_carried_over_errs_less_than_one_by_likeness():
    errors = {"converted": [], "similar": []}
    for found in hidden().values():
        for quality, true in found:
            errors[quality.basis].append(abs(quality.range.mid - true))
    middle = {basis: sorted(e)[len(e) // 2] for basis, e in errors.items()}
    assert middle["converted"] < middle["similar"]
    assert middle["converted"] < 5


def test_a_published_result_stands_as_it_is():
    model = next(m for m in models() if "mmlu_pro" in results(m))
    quality = Scale(task("knowledge"), models()).of(model)
    assert quality is not None and quality.basis == "published"
    assert quality.range.mid == pytest.approx(results(model)["mmlu_pro"], abs=0.5)


def test_a_base_models_result_is_another_measure():
    assert measure(Score("mmlu", 50, "base 5-shot", "x")) == "mmlu/base"
    assert measure(Score("mmlu", 50, "instruct 5-shot", "x")) == "mmlu"


def test_a_model_of_unknown_size_and_no_result_is_not_judged():
    assert Scale(task("chat"), models()).of(Model("a/b", "", "", "", models()[0].checked, ())) is None


def test_a_line_is_not_moved_by_a_third_of_wrong_points():
    right = [(x / 10, 0.5 + 2 * x / 10) for x in range(20)]
    wrong = [(x / 7, 9.0) for x in range(8)]
    found = line(right + wrong)
    assert found.slope == pytest.approx(2, abs=0.3)
    assert line(right).slope == pytest.approx(2) and line(right).offset == pytest.approx(0.5)


def test_quantile_counts_the_new_value_too():
    assert quantile([1, 2, 3, 4], 0.8) == 4
    assert quantile(list(range(1, 100)), 0.8) == 80


def test_every_tasks_benchmarks_are_known():
    from freehold.catalog.benchmarks import BENCHMARKS

    assert {b.removesuffix("/base") for t in tasks() for b in t.benchmarks} <= set(BENCHMARKS)
