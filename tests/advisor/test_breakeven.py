"""Owning against APIs: worked sums, an article's ten million tokens a day, and what must move which way."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.catalog import prices, rig
from freehold.base.errors import UsageError
from freehold.choose.advisor import breakeven
from freehold.choose.advisor.breakeven import (
    HOURS,
    Comparison,
    Owned,
    Traffic,
    assumptions,
    compare,
    even_tokens,
    from_csv,
    from_figures,
    known,
)
from freehold.choose.advisor.interval import Interval

DAY = date(2026, 11, 25)
BARE = {"people": 0, "migration": 0, "spare": 0, "peak": 1, "load": 1, "api": 1}
TEN_MILLION = from_figures(10e6, 0.75, 0, 2000)
# Who means "sustained load": it hardly varies, the skill is in the house, nothing stands by.
LEAN = {"people": 8, "migration": 80, "spare": 0, "peak": 1.5}


def held(
    on: str, speed: float, *against: str, traffic: Traffic = TEN_MILLION, bought: bool = False, **given: float
) -> Comparison:
    owned = Owned(rig(on), bought)
    told = {key: Interval.exactly(value) for key, value in given.items()}
    assumed = assumptions(owned, breakeven.speed(Interval.within(speed, 1.3)), traffic, told)
    return compare(owned, assumed, traffic, [(prices.find(name), False) for name in against], DAY)


@pytest.mark.parametrize(
    "api, share", [("groq:openai/gpt-oss-120b", 0.54), ("gpt-5-mini", 0.18), ("gpt-6.1-sol", 0.034)]
)
def test_utilisation_at_break_even_is_the_worked_one(api: str, share: float):
    """gpt-oss-120b on 2xH100 at 6.26 $/h wrote 4,268 tokens/s, as many as it read: 0.41 $ for a million pairs."""
    even = held("2xh100", 4268, api, traffic=from_figures(1e9, 0.5, 0, 2000), hourly=6.26, **BARE).evens[0]
    assert even.utilisation.mid == pytest.approx(share, rel=0.02)


def test_a_month_is_the_sum_by_hand():
    rented = held(
        "h100", 1000, "gpt-5-mini", hourly=3, people=10, wage=100, migration=120, months=12, spare=1
    )
    assert rented.parts == pytest.approx(
        {"machines": 2 * 3 * HOURS, "power and rack": 0, "people": 1000, "moving over": 1000}
    )
    given_ = {"price": 30_000, "box": 0.2, "resale": 0.25, "years": 3, "overhead": 1.5, "draw": 0.5}
    given_ |= {"pue": 1.4, "electricity": 0.1, "rack": 200, "people": 0, "migration": 0, "spare": 0}
    bought = held("h100", 1000, "gpt-5-mini", bought=True, **given_)
    kw = 0.7 * 1.5
    assert bought.parts["machines"] == pytest.approx(30_000 * 1.2 * 0.75 / 36)
    assert bought.parts["power and rack"] == pytest.approx(kw * (0.5 * 1.4 * 0.1 * HOURS + 200))
    api = rented.evens[0].bill.month.mid
    assert api == pytest.approx((7.5 * 0.25 + 2.5 * 2) * 365.25 / 12)


@pytest.mark.parametrize("tokens, machines", [(1e6, 1), (1.2e8, 1), (1.25e8, 2), (1e9, 9)])
def test_machines_carry_the_busiest_hour(tokens: float, machines: int):
    found = held(
        "h100", 1000, "gpt-5-mini", traffic=from_figures(tokens, 0.5, 0, 2000), spare=0, peak=1, load=0.7
    )
    assert found.machines == machines  # one carries 1000 * 0.7 * 86,400 / 0.5 = 121 million tokens a day
    assert found.utilisation <= 0.7


# --- the article's "above about 10 million tokens a day self-hosting almost certainly beats API prices" ---


@pytest.mark.parametrize(
    "on, speed, api",
    [
        ("rtx-4090", 448, "claude-opus-4-6"),  # an 8B beside the dearest usual API of its month, April 2026
        ("rtx-4090", 448, "claude-opus-5-5"),
        ("rtx-4090", 448, "gpt-6.2-sol"),
        ("h100", 2025, "claude-opus-4-6"),  # gpt-oss-120b
    ],
)
def test_ten_million_tokens_a_day_hold_for_sustained_load_beside_a_frontier_api(
    on: str, speed: float, api: str
):
    even = held(on, speed, api, **LEAN).evens[0].tokens_per_day
    assert even.low < 11e6 and even.mid < 15e6


@pytest.mark.parametrize(
    "on, speed, api, given_",
    [
        ("h100", 2025, "claude-opus-4-6", {}),  # with a spare, people and usual peaks: 36 million
        ("h100", 2025, "claude-opus-5-5", {}),
        ("rtx-4090", 448, "gpt-5-mini", LEAN),  # 0.25 and 2 $ a million: 90 million
        ("h100", 2025, "groq:openai/gpt-oss-120b", LEAN),  # the same model at a host: hundreds of millions
        ("h100", 2025, "claude-haiku-5-5", LEAN),  # 0.10 and 0.50 $ since 2026-10-07
    ],
)
def test_dated_prices_contradict_ten_million_tokens_a_day(
    on: str, speed: float, api: str, given_: dict[str, float]
):
    assert held(on, speed, api, **given_).evens[0].tokens_per_day.low > 15e6


def test_some_apis_are_cheaper_whatever_the_traffic():
    even = held("h100", 1000, "claude-haiku-5-5").evens[0]
    assert math.isinf(even.tokens_per_day.mid) and even.utilisation.mid > 1


# --- what moves which way ------------------------------------------------------------------------

POINT = st.fixed_dictionaries(
    {
        "speed": st.floats(10, 1e5),
        "load": st.floats(0.1, 1),
        "peak": st.floats(1, 10),
        "spare": st.integers(0, 3),
        "people": st.floats(0, 500),
        "wage": st.floats(10, 300),
        "migration": st.floats(0, 1000),
        "months": st.floats(1, 60),
        "hourly": st.floats(0.1, 50),
    }
)
RENTED = Owned(rig("h100"), False)


@settings(max_examples=200, deadline=None)
@given(
    POINT,
    st.floats(1e-8, 1e-4),
    st.sampled_from(["speed", "load", "peak", "people", "wage", "migration", "hourly", "api"]),
    st.floats(1.01, 5),
)
def test_break_even_falls_with_price_speed_and_load_and_rises_with_cost(
    at: dict[str, float], price: float, key: str, more: float
):
    less = even_tokens(RENTED, at, price, 0.25)
    if key == "api":
        moved = even_tokens(RENTED, at, price * more, 0.25)
    else:
        moved = even_tokens(RENTED, {**at, key: at[key] * more}, price, 0.25)
    if key in ("api", "speed", "load"):
        assert moved <= less * (1 + 1e-9)
    else:
        assert moved >= less * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(POINT, st.floats(1e-7, 1e-4))
def test_at_break_even_owning_costs_what_the_api_does_and_no_less_below(at: dict[str, float], price: float):
    even = even_tokens(RENTED, at, price, 0.25)
    for tokens in (even, 0.97 * even, 0.5 * even):
        if not 1e3 < tokens < 1e14:
            continue
        traffic = from_figures(tokens, 0.75, 0, 2000)
        owned = sum(RENTED.month(at, traffic).values())
        rented = tokens * price * breakeven.DAYS
        assert owned <= rented * (1 + 1e-6) if tokens == even else owned > rented * (1 - 1e-6)


def test_the_range_holds_the_middle_and_the_widest_swing_comes_first():
    even = held("h100", 2025, "gpt-6.2-sol").evens[0]
    assert even.tokens_per_day.low < even.tokens_per_day.mid < even.tokens_per_day.high
    widths = [s.factor for s in even.swings]
    assert widths == sorted(widths, reverse=True) and len(widths) > 5


def test_a_thousand_draws_are_enough(monkeypatch: pytest.MonkeyPatch):
    few = held("h100", 2025, "gpt-6.2-sol").evens[0].tokens_per_day
    monkeypatch.setattr(breakeven, "DRAWS", 5000)
    many = held("h100", 2025, "gpt-6.2-sol").evens[0].tokens_per_day
    assert (few.low, few.high) == (pytest.approx(many.low, rel=0.05), pytest.approx(many.high, rel=0.1))


# --- bills ---------------------------------------------------------------------------------------


def test_each_length_of_request_is_priced_apart(tmp_path: Path):
    """A day priced as one request would lie beyond every tier."""
    path = tmp_path / "use.csv"
    path.write_text(
        "time,input_tokens,output_tokens,requests\n2026-11-24,1000000,10000,10\n2026-11-24,150000,1000,1\n",
        encoding="utf-8",
    )
    traffic = from_csv(path, prices.tiers())
    bill = breakeven.bill(prices.find("claude-haiku-5-5"), traffic, DAY)
    by_hand = (1_000_000 * 0.10 + 10_000 * 0.50 + 150_000 * 0.50 + 1_000 * 2.50) / 1e6
    assert bill.month.mid == pytest.approx(by_hand * breakeven.DAYS)


def test_a_csv_of_one_busy_hour_in_many_days_gives_the_peak_it_has(tmp_path: Path):
    path = tmp_path / "use.csv"
    path.write_text(
        "time,input_tokens,output_tokens\n2026-11-01T09:00,90000,9000\n2026-11-30T09:00,1,1\n",
        encoding="utf-8",
    )
    traffic = from_csv(path, prices.tiers())
    found = held("h100", 1000, "gpt-5-mini", traffic=traffic)
    assert found.assumptions["peak"].value.mid == pytest.approx(24 * 30, rel=0.01)


def test_hours_are_priced_by_their_share_of_the_traffic():
    offer = prices.find("deepseek:deepseek-flash")
    flat = breakeven.bill(offer, TEN_MILLION, DAY).month
    assert flat.mid == pytest.approx(flat.low * (17 + 7 * 2) / 24) and flat.high == pytest.approx(
        2 * flat.low
    )


def test_hardware_without_a_price_asks_for_one_and_options_of_the_other_mode_are_refused():
    fast = breakeven.speed(Interval.exactly(100))
    with pytest.raises(UsageError, match="no price to rent Apple") as raised:
        assumptions(Owned(rig("m4-max"), False), fast, TEN_MILLION, {})
    assert "--hourly" in raised.value.hint
    with pytest.raises(UsageError, match="rack"):
        assumptions(Owned(rig("h100"), False), fast, TEN_MILLION, {"rack": Interval.exactly(1)})


def test_every_assumption_is_dated_and_says_who_or_that_nobody_does():
    for one in known():
        assert one.value.low < one.value.high and one.unit and len(one.title) <= 36
        assert one.source and date(2025, 1, 1) < one.checked <= date.today()
