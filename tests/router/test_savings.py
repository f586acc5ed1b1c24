"""What requests would have cost otherwise: exact where it is known, ranges where it is not, and never in favour."""

from __future__ import annotations

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import Usage
from freehold.choose.advisor.interval import Interval
from freehold.route.providers.contract import HOUSE, Provider, RemoteModel
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.ledger.rows import LedgerRow
from freehold.route.router.price import NANO, Price, TokenRates
from freehold.route.router.savings import TOKENS, OwnedMachine, Savings, busy_seconds, owned_machine, savings

DAY_S = 86_400.0
OPENAI = Provider("openai", "openai", "https://api.openai.com/v1")


def price(input_: int, output: int, cached: int) -> Price:
    """Dollars a million tokens."""
    return Price(TokenRates(*(1_000_000 * p for p in (input_, output, cached, input_, input_))))


def rented(name: str, *prices: int) -> GatewayModel:
    return GatewayModel(name, remote=RemoteModel(OPENAI, name), price=price(*prices))


BIG, SMALL = rented("big", 10, 40, 1), rented("small", 1, 4, 0)
CODER = GatewayModel("coder", local="qwen2.5-coder:1.5b")
MODELS = {m.name: m for m in (BIG, SMALL, CODER)}
USAGE = Usage(1000, 100)
MACHINE = OwnedMachine(
    owned_machine("rtx-4090", bought=True).owned, Interval.exactly(1.0), (), Interval(0.0, 0.5, 1.0)
)


def row(target: str, at: float = 0.0, outcome: str = "whole", task: str = "", **given) -> LedgerRow:
    model, usage = MODELS[target], given.get("usage", USAGE)
    return LedgerRow(
        id=f"{target}{at}", at=at, request_id="", answer_id="", key="", door="openai",
        asked=given.get("asked", "chat"), target=target, place=model.place, owned=model.owned, labels=(), task=task,
        candidates=(), attempts=(), usage=usage, nano=model.price.cost(usage) if model.price else 0,
        price_version="", estimated=False, batch=False, outcome=outcome, finish_reason="stop", first_s=0.1,
        whole_s=given.get("whole_s", 10.0), terms="", may_teach=None,
    )  # fmt: skip


def run(rows, before=(), **given) -> Savings:
    return savings(rows, before, MODELS, {HOUSE: MACHINE}, DAY_S, **given)


def named(found: Savings, name: str):
    return next(one for one in found.against if one.name.endswith(name))


def test_cost_is_the_providers_sum_and_the_machine_by_its_share():
    found = run([row("big"), row("coder", at=20.0)])
    assert found.rented == (1000 * 10 + 100 * 40) / 1e6
    assert found.owned.mid == pytest.approx(12.0)  # half a day of a dollar an hour
    assert found.owned.low == pytest.approx(10 / 3600) and found.owned.high == pytest.approx(24.0)
    assert found.cost.mid == pytest.approx(12.0 + found.rented)


def test_overlapping_requests_keep_a_machine_busy_once():
    assert busy_seconds([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13
    found = run([row("coder", at=0.0) for _ in range(50)])
    assert found.busy_s[HOUSE] == 10.0


def test_shadows_and_discarded_answers_are_paid_and_not_asked_again_elsewhere():
    found = run([row("big"), row("small", outcome="shadow"), row("small", outcome="discarded")])
    assert found.rented == pytest.approx((14_000 + 2 * 1400) / 1e6)
    dearest = named(found, "most expensive model")
    assert dearest.requests == 1 and dearest.cost.mid == pytest.approx(14_000 / 1e6)
    assert dearest.saved.mid < 0  # the mix cost more than one request to the dearest


def test_dearest_is_exact_for_its_own_rows_and_a_range_for_others():
    own = named(run([row("big")]), "most expensive model")
    assert own.what == "big" and own.cost.low == own.cost.high == 14_000 / 1e6 and own.saved.mid == 0
    other = named(run([row("small")]), "most expensive model").cost
    assert other.low == pytest.approx(TOKENS.low * 0.014) and other.high == pytest.approx(TOKENS.high * 0.014)


def test_cached_tokens_may_or_may_not_be_cached_elsewhere():
    found = named(run([row("small", usage=Usage(1000, 100, cached_tokens=800))]), "most expensive model").cost
    warm, cold = (200 * 10 + 800 * 1 + 4000) / 1e6, 0.014
    assert found.low == pytest.approx(TOKENS.low * warm) and found.high == pytest.approx(TOKENS.high * cold)
    assert found.mid == pytest.approx((warm + cold) / 2)


def test_cheapest_above_the_bar_leaves_rows_alone_whose_task_has_none():
    rows = [row("big", task="support"), row("big", task="law"), row("big")]
    found = named(run(rows, passing=lambda task, m: task == "support" and m is SMALL), "above the bar")
    assert (found.requests, found.unchanged, found.what) == (1, 2, "support: small")
    assert found.cost.mid == pytest.approx((1400 + 2 * 14_000) / 1e6)


def test_cheapest_host_of_the_same_weights_prices_the_owned_rows():
    hosts = {"coder": [("groq", price(2, 2, 2)), ("together", price(1, 1, 1))]}
    found = named(
        run([row("coder"), row("big", at=20)], hosts=lambda m: hosts.get(m.name, [])), "same weights"
    )
    assert found.what == "coder: together" and found.unchanged == 1
    assert found.cost.mid == pytest.approx(1100 / 1e6 + 14_000 / 1e6)  # and no machine any more
    assert found.saved.mid < 0  # the machine stood idle, and its day was paid


def test_yesterdays_mix_spreads_each_name_as_the_period_before():
    before = [row("big"), row("big", at=1.0), row("small", at=2.0), row("small", asked="other")]
    found = named(run([row("small"), row("small", asked="new")], before), "mix")
    assert found.unchanged == 1
    assert found.cost.mid == pytest.approx((2 / 3 * 14_000 + 1 / 3 * 1400 + 1400) / 1e6)


def test_all_owned_counterfactual_pays_the_machine():
    found = named(
        run([row("coder", whole_s=36.0), row("big", at=100, task="t")], passing=lambda t, m: m is CODER),
        "the bar",
    )
    assert found.cost.low > 0 and found.cost.mid == pytest.approx(12.0)


def test_place_without_a_cost_is_said():
    found = savings([row("coder")], (), MODELS, {}, DAY_S)
    assert found.owned.high == 0 and any(HOUSE in note for note in found.notes)


def test_hour_of_a_machine_is_amortisation_power_and_rack_with_sources():
    given = {
        k: Interval.exactly(v)
        for k, v in {"price": 1000, "box": 0, "resale": 0, "years": 1, "rack": 0}.items()
    }
    given |= {
        k: Interval.exactly(v) for k, v in {"overhead": 1, "draw": 1, "pue": 1, "electricity": 1}.items()
    }
    found = owned_machine("rtx-4090", bought=True, overrides=given)
    watts = found.owned.rig.watts
    assert found.hour.mid == pytest.approx(1000 / (365.25 * 24) + watts / 1000)
    assert found.hour.low == found.hour.high
    whole = owned_machine("rtx-4090", bought=True)
    assert whole.hour.low < whole.hour.mid < whole.hour.high
    assert all(a.source and a.checked for a in whole.assumed)
    with pytest.raises(UsageError):
        owned_machine("rtx-4090", overrides={"price": Interval.exactly(1)})  # rented: a price says nothing


def test_json_has_every_range():
    found = run([row("big"), row("coder", at=20.0)]).as_json()
    assert [set(one["saved"]) for one in found["against"]] == [{"low", "mid", "high"}] * 4
    assert found["rented"] * NANO == 14_000_000
