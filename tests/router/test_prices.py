"""Integer prices against the sellers' tables, for every model in them and by every kind of token."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

import pytest

from freehold.base.catalog import prices
from freehold.base.catalog.prices import Offer, PricedRequest
from freehold.base.errors import UsageError
from freehold.base.types import Usage
from freehold.route.router.price import FEE, PICO, Price, TokenRates, price_of, resolve, table_version

DAY = datetime(2026, 11, 27, tzinfo=UTC)
PLAIN = TokenRates(
    input=2_000_000, output=12_000_000, cached=200_000, written=2_500_000, written_hour=4_000_000
)


def nano(dollars: Decimal) -> int:
    return int((dollars * 10**9).to_integral_value(ROUND_HALF_UP))


def drawn(draw: random.Random, price: Price) -> Usage:
    """A usage whose prompt is often beside a tier's edge."""
    edges = [over for over, _ in (*price.tiers, *price.batch_tiers)]
    prompt = draw.choice(
        [draw.randrange(1, 4000), draw.randrange(1, 400_000), *edges, *(e + 1 for e in edges)]
    )
    cached = draw.randrange(prompt + 1)
    written = draw.randrange(prompt - cached + 1)
    return Usage(prompt, draw.randrange(9000), cached, written_tokens=written)


def exact(offer: Offer) -> bool:
    """Whether every rate of an offer is a whole number of pico-dollars."""
    return all(
        (value * PICO) % 1 == 0
        for start in (0, 10**9)
        for found in (prices.rates_at(offer, start, DAY), prices.rates_at(offer, start, DAY, batch=True))
        if found is not None
        for value in (found.input, found.output, found.cached, found.written, found.written_hour)
    )


def asked(offer: Offer, usage: Usage, when: datetime, batch: bool) -> int | None:
    request = PricedRequest(
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.written_tokens
    )
    try:
        return nano(offer.cost(request, when, batch))
    except UsageError:
        return None


@pytest.mark.heavy
def test_every_model_of_the_table_costs_to_the_nano_dollar_what_its_seller_asks():
    draw, checked, inexact = random.Random(7), 0, 0
    for offer in prices.all_listed():
        price, whole = price_of(offer, DAY), exact(offer)
        inexact += not whole
        for batch in (False, True):
            when = DAY + timedelta(seconds=draw.randrange(86400), days=draw.randrange(90))
            usage = drawn(draw, price)
            wanted = asked(offer, usage, when, batch)
            if wanted is None:
                assert price.at(when.timestamp()).batch is None
                continue
            found = price.cost(usage, when.timestamp(), batch=batch)
            slack = 0 if whole else (usage.prompt_tokens + usage.completion_tokens) / 2000 + 1
            assert abs(found - wanted) <= slack, (offer.name, batch, usage, when)
            checked += 1
    assert checked > 2300 and inexact < 40


def test_price_by_the_half_hour_holds_from_its_first_second_to_its_last():
    offer = prices.listed("deepseek", "deepseek-chat")
    assert offer is not None
    price, usage = price_of(offer, DAY), Usage(1000, 500, 100)
    for second in (0, 1799, 1800, 59399, 59400, 86399):
        when = DAY + timedelta(seconds=second)
        assert price.cost(usage, when.timestamp()) == asked(offer, usage, when, False), second
    assert len({price.cost(usage, DAY.timestamp() + n * 1800) for n in range(48)}) == 2


def test_announced_change_holds_from_its_day_without_a_reload():
    offer = prices.listed("google", "gemini-3.6-flash")
    assert offer is not None and prices.changes(offer, DAY.date())
    price, usage = price_of(offer, DAY), Usage(1000, 500)
    for start, _ in price.later:
        for when in (start - 1, start):
            moment = datetime.fromtimestamp(when, UTC)
            assert price.cost(usage, when, batch=True) == asked(offer, usage, moment, True)


def test_tokens_written_for_an_hour_cost_more_than_those_for_minutes():
    price = resolve("anthropic", "claude-sonnet-4-5")
    assert price is not None
    assert (
        price.rates.written == price.rates.input * 5 // 4
        and price.rates.written_hour == price.rates.input * 2
    )
    usage = Usage(1000, 0, 100, written_tokens=200, written_hour_tokens=300)
    r = price.rates
    assert price.cost(usage) * 1000 == 400 * r.input + 100 * r.cached + 200 * r.written + 300 * r.written_hour


def test_thinking_costs_as_output_unless_its_seller_says_otherwise():
    price = resolve("openai", "gpt-5-mini")
    assert price is not None
    assert price.cost(Usage(0, 900, thought_tokens=800)) == price.cost(Usage(0, 900))
    offer = prices.listed("perplexity", "sonar-deep-research")
    assert offer is not None
    apart = price_of(offer, DAY).rates
    assert apart.thought == 3 * PICO != apart.output


def test_seller_that_charges_a_request_charges_it_once():
    offer = prices.listed("perplexity", "sonar")
    assert offer is not None
    price = price_of(offer, DAY)
    assert price.fee == 12 * FEE and price.cost(Usage(0, 0)) == 12_000_000


def test_embeddings_have_a_price_for_what_goes_in_alone():
    price = resolve("openai", "text-embedding-3-small")
    assert price is not None and price.rates.output == 0
    assert price.cost(Usage(1_000_000, 0)) == 20_000_000


@pytest.mark.parametrize("kind, model", [("openai", "gpt-6.2-sol"), ("gemini", "models/gemini-2.5-flash")])
def test_models_are_found_as_their_providers_name_them(kind, model):
    found = resolve(kind, model)
    assert found is not None and found.version == table_version()


@pytest.mark.parametrize("kind, model", [("openai", "no-such"), ("openai-compatible", "gpt-5-mini")])
def test_what_no_table_prices_has_no_price(kind, model):
    assert resolve(kind, model) is None


def test_dearest_answer_costs_no_less_than_any_answer():
    draw = random.Random(11)
    offers = [o for o in prices.all_listed() if o.provider in ("openai", "anthropic", "google", "deepseek")]
    for offer in draw.sample(offers, 150):
        price = price_of(offer, DAY)
        for batch in (False, True):
            usage, when = drawn(draw, price), DAY.timestamp() + draw.randrange(86400)
            later = when + draw.randrange(7200)
            most = price.most(
                usage.prompt_tokens + draw.randrange(500), usage.completion_tokens, when, batch=batch
            )
            assert price.cost(usage, later, batch=batch) <= most, offer.name


def test_one_rounding_a_request_and_half_goes_up():
    price = Price(TokenRates(1, 0, 1, 1, 1))
    assert [price.cost(Usage(n, 0)) for n in (499, 500, 1499, 1500)] == [0, 1, 1, 2]


def test_prompt_at_the_edge_of_a_tier_is_not_beyond_it():
    long = TokenRates(4_000_000, 24_000_000, 400_000, 5_000_000, 8_000_000)
    price = Price(PLAIN, tiers=((200_000, long),))
    assert price.cost(Usage(200_000, 1)) == 200_000 * 2000 + 12_000
    assert price.cost(Usage(200_001, 1)) == 200_001 * 4000 + 24_000


def test_table_of_all_models_has_what_the_extra_file_adds():
    assert {o.name for o in prices.offers()} <= {o.name for o in prices.all_listed()}
