"""What a request costs is what the seller's own arithmetic says, written out by hand from its price list."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from freehold.base import catalog
from freehold.base.catalog import prices
from freehold.base.catalog.prices import PricedRequest
from freehold.base.errors import UsageError

# Columns: offer, at once or in batch, when (UTC), tokens (input, output, of the input cached, written to a
# cache), dollars = tokens * dollars a million + ...
CASES = """
# developers.openai.com/api/docs/pricing, 2026-10-14 (GPT-6.2: 2026-11-18); no cached rate in gpt-4.1's batch
openai:gpt-5-mini now 2026-11-25T12 10_000,500,8_000 0.0017 = 2_000*0.25 + 8_000*0.025 + 500*2
openai:gpt-5-mini batch 2026-11-25T12 10_000,500,8_000 0.00085 = 2_000*0.125 + 8_000*0.0125 + 500*1
openai:gpt-4.1 batch 2026-11-25T12 1_000,200,600 0.0015 = 400*1 + 600*0.50 + 200*4
openai:gpt-5.4 now 2026-11-25T12 272_000,1_000 0.695 = 272_000*2.50 + 1_000*15
openai:gpt-5.4 now 2026-11-25T12 272_001,1_000 1.382505 = 272_001*5 + 1_000*22.50
openai:gpt-6.1-sol now 2026-11-25T12 300_000,2_000,200_000 0.47 = 100_000*4 + 200_000*0.20 + 2_000*15
openai:gpt-6.2-sol now 2026-11-25T12 300_000,1_000,100_000,50_000 0.885 = 150_000*4 + 100_000*0.20 + 50_000*5 + 1_000*15
openai:gpt-6.2-astra batch 2026-11-25T12 10_000,1_000,4_000 0.0448 = 6_000*4 + 4_000*0.20 + 1_000*20
# platform.claude.com/docs/en/about-claude/pricing, 2026-10-14
anthropic:claude-sonnet-5-5 now 2026-11-25T12 9_000,100,4_000,5_000 0.0139 = 4_000*0.10 + 5_000*2.50 + 100*10
anthropic:claude-opus-5-5 batch 2026-11-25T12 20_000,2_000 0.06 = 20_000*2 + 2_000*10
# platform.claude.com/docs/en/models/haiku-5-5/overview: dearer beyond 100,000 tokens
anthropic:claude-haiku-5-5 now 2026-11-25T12 100_000,1_000 0.0105 = 100_000*0.10 + 1_000*0.50
anthropic:claude-haiku-5-5 now 2026-11-25T12 100_001,1_000,50_000 0.0300005 = 50_001*0.50 + 50_000*0.05 + 1_000*2.50
anthropic:claude-haiku-5-5 batch 2026-11-25T12 150_000,1_000 0.03875 = 150_000*0.25 + 1_000*1.25
# ai.google.dev/gemini-api/docs/pricing, 2026-10-14 (Neon: 2026-11-19); Argon's rates double in December
google:gemini-3.1-pro-preview now 2026-11-25T12 200_000,1_000 0.412 = 200_000*2 + 1_000*12
google:gemini-3.1-pro-preview now 2026-11-25T12 200_001,1_000,100_000 0.458004 = 100_001*4 + 100_000*0.40 + 1_000*18
google:gemini-2.5-pro batch 2026-11-25T12 100_000,1_000,40_000 0.0475 = 60_000*0.625 + 40_000*0.125 + 1_000*5
google:gemini-4-argon now 2027-01-05T12 1_000,1_000 0.024 = 1_000*4 + 1_000*20
google:gemini-4-neon batch 2026-11-25T12 10_000,1_000 0.0225 = 10_000*1.50 + 1_000*7.50
google:gemini-3.5-flash batch 2026-11-25T12 10_000,1_000,4_000 0.0096 = 6_000*0.75 + 4_000*0.15 + 1_000*4.50
# docs.x.ai/developers/models/grok-4.20-0309: dearer from 200k tokens on, 20 % less in batch
x-ai:grok-4.20 now 2026-11-25T12 199_999,1_000 0.25249875 = 199_999*1.25 + 1_000*2.50
x-ai:grok-4.20 now 2026-11-25T12 200_000,1_000,100_000 0.295 = 100_000*2.50 + 100_000*0.40 + 1_000*5
x-ai:grok-4.20 batch 2026-11-25T12 10_000,1_000 0.012 = 10_000*1 + 1_000*2
# api-docs.deepseek.com/quick_start/pricing, 2026-10-27: 01-04 and 06-10 UTC are the peak
deepseek:deepseek-flash now 2026-11-25T02 10_000,1_000,8_000 0.001848 = 2_000*0.30 + 8_000*0.006 + 1_000*1.20
deepseek:deepseek-flash now 2026-11-25T12 10_000,1_000,8_000 0.000924 = 2_000*0.15 + 8_000*0.003 + 1_000*0.60
# console.groq.com/docs/batch: half price, which does not add to the one for cached tokens
groq:openai/gpt-oss-120b now 2026-11-25T12 10_000,1_000,6_000 0.00165 = 4_000*0.15 + 6_000*0.075 + 1_000*0.60
groq:openai/gpt-oss-120b batch 2026-11-25T12 10_000,1_000,6_000 0.00105 = 10_000*0.075 + 1_000*0.30
# docs.mistral.ai/inference/pricing, 2026-10-29; the list rates held from 2026-10-20
mistral:mistral-large-4 batch 2026-11-25T12 10_000,2_000,5_000 0.004025 = 5_000*0.35 + 5_000*0.035 + 2_000*1.05
mistral:mistral-large-4 now 2026-10-25T12 1_000,1_000 0.00554 = 1_000*1.36 + 1_000*4.18
# fireworks.ai/pricing: batch at half of serverless
fireworks:gpt-oss-120b batch 2026-11-25T12 10_000,1_000,4_000 0.00078 = 6_000*0.075 + 4_000*0.0075 + 1_000*0.30
# platform.kimi.ai/docs/pricing/batch: 60 %
moonshotai:kimi-k2.5 batch 2026-11-25T12 1_000,1_000 0.00216 = 1_000*0.36 + 1_000*1.80
"""
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize("case", [line for line in CASES.splitlines() if line and line[0] != "#"])
def test_a_request_costs_what_the_price_list_says(case: str):
    told, arithmetic = case.split(" = ")
    name, how, when, tokens, dollars = told.split()
    parts = (part.replace("_", "").split("*") for part in arithmetic.split(" + "))
    by_hand = sum(Decimal(count) * Decimal(rate) for count, rate in parts) / 1_000_000
    asked = PricedRequest(*(int(count) for count in tokens.split(",")))
    moment = datetime.fromisoformat(f"{when}:30+00:00")
    assert prices.find(name).cost(asked, moment, batch=how == "batch") == Decimal(dollars) == by_hand


def test_offers_are_found_as_people_write_them():
    for text in ("gpt-5-mini", "openai:gpt-5-mini", "openai/gpt-5-mini", " GPT-5-mini "):
        assert prices.find(text).name == "openai:gpt-5-mini"
    assert prices.find("llama-3.3-70b-versatile").name == "groq:llama-3.3-70b-versatile"


@pytest.mark.parametrize(
    "text, hint",
    [("gpt-5-minni", "gpt-5-mini"), ("groq:gpt-oss-120", "gpt-oss-120b"), ("?", "provider:model")],
)
def test_an_unknown_name_is_answered_with_the_nearest(text: str, hint: str):
    with pytest.raises(UsageError, match="no price is known") as raised:
        prices.find(text)
    assert hint in raised.value.hint


def test_what_is_not_sold_by_tokens_or_not_in_batch_is_refused():
    with pytest.raises(UsageError, match="not sold by tokens"):
        prices.find("openai:tts-1")
    with pytest.raises(UsageError, match="no batch price"):
        prices.find("deepseek:deepseek-flash").cost(PricedRequest(1, 1), NOON, batch=True)


def test_hosts_sell_the_same_weights_under_their_own_names():
    found = {o.name for o in prices.hosts(catalog.model("openai/gpt-oss-120b"))}
    assert {"groq:openai/gpt-oss-120b", "fireworks:gpt-oss-120b", "together:openai/gpt-oss-120b"} <= found
    assert "openai:gpt-oss-120b" not in found  # the table notes a price, but the lab itself sells none
    assert not any("safeguard" in name or "-20b" in name for name in found)


def test_the_hours_of_a_day_are_priced_apart_where_the_seller_does():
    day = prices.find("deepseek:deepseek-flash").costs(PricedRequest(1_000_000, 0), date(2026, 11, 25))
    assert [h for h, price in enumerate(day) if price == Decimal("0.30")] == [1, 2, 3, 6, 7, 8, 9]
    assert len(set(prices.find("gpt-5-mini").costs(PricedRequest(1, 1), date(2026, 11, 25)))) == 1


def test_the_table_says_how_old_it_is_and_what_will_change():
    table = prices.table()
    assert table.age_days(table.noted) == 0 <= table.age_days(date.today())
    assert prices.find("google:gemini-4-argon").next_change(date(2026, 11, 25)) == date(2026, 12, 1)
    assert prices.find("gpt-5-mini").next_change(date(2026, 11, 25)) is None


def test_usual_offers_are_sold_and_tiers_are_known():
    assert [offer.name for offer in prices.usual()] == list(prices.USUAL)
    assert {100_000, 200_000, 272_000} <= set(prices.tiers())
