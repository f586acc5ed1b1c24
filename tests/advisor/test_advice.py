"""Advice: rules, ranking, what to relax, tiers; a made-up place stands for the machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base import catalog
from freehold.base.catalog.benchmarks import task
from freehold.base.catalog.model import Model, Score, Stretch
from freehold.base.errors import UsageError
from freehold.choose.advisor.advice import (
    RULES,
    Advice,
    AdviceRequest,
    Own,
    Placement,
    Refusal,
    advise,
    by_own,
)
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.verdict import Facts
from freehold.cli.report.advice import apart


def anywhere(model: Model, context: int) -> Placement:
    """A place that takes everything; what is small is fast."""
    speed = Interval.within(100 / model.params_b, 1.2)
    memory = round(model.params_b * 6e8)
    return Placement("here", "freehold", "Q4_K_M", memory, context, speed, speed, f"freehold run {model.id}")


def small(model: Model, context: int) -> Placement | Refusal:
    """A place with room for 10 billion parameters."""
    return anywhere(model, context) if model.params_b <= 10 else Refusal("memory", "needs more")


def made(name: str, score: float = 0, **facts) -> Model:
    scores = (Score("mmlu_pro", score, "instruct", "x"),) if score else ()
    known = {"params_b": 7.0, "context": 32768, "country": "US", "licence": "Apache-2.0", "instructed": True}
    return Model(
        f"lab/{name}", "", "lab", sources=("x",), checked=date(2026, 11, 1), scores=scores, **(known | facts)
    )  # type: ignore[arg-type]


def shelf() -> list[Model]:
    return [made(f"m{i}", 30 + i, params_b=1.0 + i) for i in range(20)]


def ask(models, place=anywhere, **conditions) -> Advice:
    return advise(AdviceRequest(task("knowledge"), min_speed=0, **conditions), models, place)


def test_the_best_lower_bound_comes_first():
    advice = ask(shelf())
    assert [j.model.id for j in advice.picks[:2]] == ["lab/m19", "lab/m18"]
    assert advice.benchmark == "mmlu_pro" and not advice.ruled_out


def test_a_known_result_beats_a_likely_one():
    unknown = made("unknown", params_b=20.0)
    assert ask([*shelf(), unknown]).picks[0].model.id == "lab/m19"


@pytest.mark.parametrize(
    ("model", "conditions", "rule"),
    [
        (made("x", 50, country="CN"), {"country_not": ("CN",)}, "country"),
        (made("x", 50, country=""), {"country_not": ("CN",)}, "country"),
        (made("x", 50, context=4096), {"min_context": 32768}, "context"),
        (made("x", 50, licence=""), {"facts": Facts(purpose="commercial")}, "licence"),
        (
            made("x", 50, licence="LicenseRef-scancode-mnpl-0.1"),
            {"facts": Facts(purpose="commercial")},
            "licence",
        ),
        (made("x", 50, params_b=9.0), {"max_params": 8.0}, "size"),
        (made("x", 50), {"held": ("lab/m1",)}, "held"),
        (made("x", 50, instructed=False), {}, "task"),
    ],
)
def test_each_rule_says_why(model, conditions, rule):
    advice = ask([*shelf(), model], **conditions)
    judged = next(j for j in advice.ruled_out if j.model.id == "lab/x")
    assert [r.rule for r in judged.refusals] == [rule] and judged.refusals[0].why


def test_the_place_rules_out_what_is_too_large_or_too_slow():
    advice = advise(AdviceRequest(task("knowledge"), min_speed=20), shelf(), small)
    assert {r.rule for j in advice.ruled_out for r in j.refusals} == {"memory", "speed"}
    assert all(j.placement and j.placement.decode.mid >= 20 for j in advice.picks)


def test_impossible_conditions_name_what_to_relax():
    advice = ask(shelf(), small, country_not=("US",), min_context=4096)
    assert not advice.picks
    assert advice.relax == (("--country-not", 10),)


def test_two_conditions_are_named_where_one_is_not_enough():
    advice = ask(shelf(), country_not=("US",), min_context=1_000_000)
    assert advice.relax == (("--country-not and --min-context", 20),)


def test_every_rule_has_a_way_out_or_is_the_tasks_own():
    assert [rule for rule, option in RULES.items() if not option] == ["task"]


def test_tiers_show_what_a_larger_machine_would_run():
    advice = ask([*shelf(), made("giant", 80, params_b=400.0)], small)
    assert advice.by_tier["xl"].model.id == "lab/giant"
    assert advice.by_tier["xl"].refusals[0].rule == "memory"
    assert not advice.by_tier["small"].refusals


def test_embeddings_are_an_encoders_and_nothing_else():
    advice = advise(AdviceRequest(task("embeddings")), catalog.models(), anywhere)
    assert advice.picks and all(j.model.role == "embedder" for j in advice.picks)


def test_a_commercial_user_is_not_offered_a_licence_for_research():
    request = AdviceRequest(task("code completion"), Facts(purpose="commercial"), min_context=8000)
    advice = advise(request, catalog.models(), anywhere)
    judged = next(j for j in advice.ruled_out if j.model.id == "mistralai/Codestral-22B-v0.1")
    assert any(r.rule == "licence" and "MNPL" in r.why.upper() for r in judged.refusals)


@pytest.mark.parametrize(
    "conditions",
    [{"country_not": ("China",)}, {"min_context": -1}, {"min_speed": -2.0}, {"min_context": 10**12}],
)
def test_a_condition_that_is_none_is_refused(conditions):
    with pytest.raises(UsageError):
        AdviceRequest(task("chat"), **conditions)


@settings(deadline=None, max_examples=8)
@given(
    st.sets(st.sampled_from(["US", "CN", "FR"]), max_size=3),
    st.integers(0, 200_000),
    st.floats(0, 100),
)
def test_nothing_is_lost_and_nothing_passes_twice(countries, context, speed):
    request = AdviceRequest(
        task("chat"), country_not=tuple(sorted(countries)), min_context=context, min_speed=speed
    )
    known = catalog.models()
    advice = advise(request, known, small)
    ids = [j.model.id for j in (*advice.picks, *advice.below, *advice.unproven, *advice.ruled_out)]
    assert len(ids) == len(set(ids)) == advice.considered
    assert len(ids) == sum(bool(m.params_b) and m.role == "generator" for m in known)
    for judged in advice.picks:
        assert not countries.intersection(judged.model.countries) and judged.model.context >= context


def test_nothing_good_enough_is_an_answer_with_what_would_be():
    poor = [j for j in shelf() if j.scores[0].value < 38]
    advice = advise(
        AdviceRequest(task("knowledge"), min_speed=0), [*poor, *shelf()[12:]], small, lambda: anywhere
    )
    assert not advice.picks and advice.bar == 40
    assert advice.below[0].model.id == "lab/m7"
    assert [j.model.id for j in advice.instead] == ["lab/m12", "lab/m13", "lab/m14"]
    assert all(j.placement and j.lower_bound >= advice.bar for j in advice.instead)


def test_models_without_evidence_stand_apart_and_are_never_ranked():
    advice = ask([*shelf(), made("bare")])
    assert [j.model.id for j in advice.unproven] == ["lab/bare"]
    assert "lab/bare" not in [j.model.id for j in (*advice.picks, *advice.below)]
    assert all(j.lower_bound >= advice.bar > k.lower_bound for j in advice.picks for k in advice.below)


def test_a_published_result_beats_a_wider_one_carried_over():
    """Ranked by what is published as it is, and what is carried over by its low end."""
    carried = replace(made("carried"), scores=(Score("mmlu", 70, "instruct", "x"),))
    both = [
        replace(m, scores=(*m.scores, Score("mmlu", 40 + 2 * i, "instruct", "x")))
        for i, m in enumerate(shelf())
    ]
    ids = [j.model.id for j in ask([*both, carried]).picks]
    quality = next(j.quality for j in ask([*both, carried]).picks if j.model.id == "lab/carried")
    assert quality and quality.basis == "converted"
    above = [j for j in ask([*both, carried]).picks if j.quality and j.quality.range.mid >= quality.range.low]
    assert ids.index("lab/carried") == len(above) - 1


def test_every_model_is_counted_once_whatever_rules_stand_against_it():
    """The answer said that 247 of 229 were ruled out: it counted rules."""
    advice = ask(catalog.models(), small, country_not=("US", "CN"), min_context=100_000)
    assert len(advice.ruled_out) <= advice.considered
    assert sum(len(j.refusals) for j in advice.ruled_out) > advice.considered


def test_what_to_relax_for_a_good_one_counts_those_that_pass_the_bar():
    barred = [replace(m, country="CN") for m in shelf()]
    advice = ask([*barred, made("weak", 20)], country_not=("CN",))
    assert not advice.picks and [j.model.id for j in advice.below] == ["lab/weak"]
    ((option, good),) = advice.relax_to_good
    assert option == "--country-not" and 0 < good < dict(advice.relax)[option] == 20


def test_the_best_of_a_tier_follows_the_users_own_cases():
    first, second = made("first", 80, params_b=8.0), made("second", 70, params_b=7.0)
    advice = ask([*shelf(), first, second])
    assert advice.by_tier["small"].model is first
    own = {m.id: Own(4, passed, Interval(0, 50, 100)) for m, passed in ((first, 1), (second, 4))}
    tried = by_own(advice, own)
    assert tried.by_tier["small"].model is second
    order = [j.model for j in tried.picks if j.model in (first, second)]
    assert order == [second, first]


def test_models_that_reach_a_context_by_their_cards_scaling_are_named_apart():
    reaching = Stretch("yarn", 4.0, 32768, 1e6)
    far, near = made("far", 80, stretch=reaching), made("near", 90)
    advice = ask([*shelf(), near, far], min_context=100_000)
    assert not advice.picks and [j.model.id for j in advice.stretched] == [far.id]
    assert [r.why for r in advice.stretched[0].refusals] == [
        "its context is 32,768 tokens, and its card stretches that to 131,072"
    ]
    (said,) = apart(advice)
    assert said.startswith("with a stretched context of 100,000 tokens: 1 (far)")
    assert "freehold deploy MODEL --context 100000" in said
    assert not ask([far], min_context=200_000).stretched and not ask([far], min_context=30_000).stretched


def test_a_distill_of_r1_is_placed_with_room_for_its_thoughts():
    rooms: dict[str, int] = {}

    def noted(model: Model, context: int) -> Placement:
        rooms[model.id] = context
        return anywhere(model, context)

    distills = [m for m in catalog.models() if "R1-Distill" in m.id]
    plain = catalog.model("Qwen/Qwen2.5-7B-Instruct")
    advise(AdviceRequest(task("reasoning")), [*distills, plain], noted)
    assert len(distills) > 4 and all(rooms[m.id] >= 8000 for m in distills)
    assert rooms[plain.id] == task("reasoning").min_context
    advise(AdviceRequest(task("reasoning"), min_context=5000), distills, noted)  # what was asked for counts
    assert {rooms[m.id] for m in distills} == {5000}
