"""What a request costs is what the seller's own arithmetic says, written out by hand from its price list."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from freehold import catalog
from freehold.catalog import prices
from freehold.catalog.prices import Request
from freehold.errors import UsageError

OPENAI = "developers.openai.com/api/docs/pricing, 2026-10-14; GPT-6.2: 2026-11-18"
CLAUDE = "platform.claude.com/docs/en/about-claude/pricing, 2026-10-14"
HAIKU = "platform.claude.com/docs/en/models/haiku-5-5/overview"
GEMINI = "ai.google.dev/gemini-api/docs/pricing, 2026-10-14; Gemini 4 Neon: 2026-11-19"
GROK = "docs.x.ai/developers/models/grok-4.20-0309: higher from 200k on, 20 % less in batch"
DEEPSEEK = "api-docs.deepseek.com/quick_start/pricing, 2026-10-27: 01-04 and 06-10 UTC are the peak"
GROQ = "console.groq.com/docs/batch: half price, which does not add to the one for cached tokens"
MISTRAL = "docs.mistral.ai/inference/pricing, 2026-10-29"
FIREWORKS = "fireworks.ai/pricing: batch at half of serverless"
KIMI = "platform.kimi.ai/docs/pricing/batch: 60 %"
NOON, PEAK = datetime(2026, 11, 25, 12, tzinfo=UTC), datetime(2026, 11, 25, 2, 30, tzinfo=UTC)
OCTOBER, JANUARY = datetime(2026, 10, 25, 12, tzinfo=UTC), datetime(2027, 1, 5, 12, tzinfo=UTC)

# offer, batch, when, Request(input, output, cached, written), "tokens@dollars a million ...", dollars, price list
CASES = [
    (
        "openai:gpt-5-mini",
        False,
        NOON,
        Request(10_000, 500, 8_000),
        "2_000@0.25 8_000@0.025 500@2",
        "0.0017",
        OPENAI,
    ),
    (
        "openai:gpt-5-mini",
        True,
        NOON,
        Request(10_000, 500, 8_000),
        "2_000@0.125 8_000@0.0125 500@1",
        "0.00085",
        OPENAI,
    ),
    ("openai:gpt-4.1", True, NOON, Request(1_000, 200, 600), "400@1 600@0.50 200@4", "0.0015", OPENAI),
    ("openai:gpt-5.4", False, NOON, Request(272_000, 1_000), "272_000@2.50 1_000@15", "0.695", OPENAI),
    ("openai:gpt-5.4", False, NOON, Request(272_001, 1_000), "272_001@5 1_000@22.50", "1.382505", OPENAI),
    (
        "openai:gpt-6.1-sol",
        False,
        NOON,
        Request(300_000, 2_000, 200_000),
        "100_000@4 200_000@0.20 2_000@15",
        "0.47",
        OPENAI,
    ),
    (
        "openai:gpt-6.2-sol",
        False,
        NOON,
        Request(300_000, 1_000, 100_000, 50_000),
        "150_000@4 100_000@0.20 50_000@5 1_000@15",
        "0.885",
        OPENAI,
    ),
    (
        "openai:gpt-6.2-astra",
        True,
        NOON,
        Request(10_000, 1_000, 4_000),
        "6_000@4 4_000@0.20 1_000@20",
        "0.0448",
        OPENAI,
    ),
    (
        "anthropic:claude-sonnet-5-5",
        False,
        NOON,
        Request(50_000, 1_000, 40_000, 5_000),
        "5_000@2 40_000@0.10 5_000@2.50 1_000@10",
        "0.0365",
        CLAUDE,
    ),
    ("anthropic:claude-opus-5-5", True, NOON, Request(20_000, 2_000), "20_000@2 2_000@10", "0.06", CLAUDE),
    (
        "anthropic:claude-haiku-5-5",
        False,
        NOON,
        Request(100_000, 1_000),
        "100_000@0.10 1_000@0.50",
        "0.0105",
        HAIKU,
    ),
    (
        "anthropic:claude-haiku-5-5",
        False,
        NOON,
        Request(100_001, 1_000, 50_000),
        "50_001@0.50 50_000@0.05 1_000@2.50",
        "0.0300005",
        HAIKU,
    ),
    (
        "anthropic:claude-haiku-5-5",
        True,
        NOON,
        Request(150_000, 1_000),
        "150_000@0.25 1_000@1.25",
        "0.03875",
        HAIKU,
    ),
    (
        "google:gemini-3.1-pro-preview",
        False,
        NOON,
        Request(200_000, 1_000),
        "200_000@2 1_000@12",
        "0.412",
        GEMINI,
    ),
    (
        "google:gemini-3.1-pro-preview",
        False,
        NOON,
        Request(200_001, 1_000, 100_000),
        "100_001@4 100_000@0.40 1_000@18",
        "0.458004",
        GEMINI,
    ),
    (
        "google:gemini-2.5-pro",
        True,
        NOON,
        Request(100_000, 1_000, 40_000),
        "60_000@0.625 40_000@0.125 1_000@5",
        "0.0475",
        GEMINI,
    ),
    ("google:gemini-4-argon", False, JANUARY, Request(1_000, 1_000), "1_000@4 1_000@20", "0.024", GEMINI),
    ("google:gemini-4-neon", True, NOON, Request(10_000, 1_000), "10_000@1.50 1_000@7.50", "0.0225", GEMINI),
    (
        "google:gemini-3.5-flash",
        True,
        NOON,
        Request(10_000, 1_000, 4_000),
        "6_000@0.75 4_000@0.15 1_000@4.50",
        "0.0096",
        GEMINI,
    ),
    ("x-ai:grok-4.20", False, NOON, Request(199_999, 1_000), "199_999@1.25 1_000@2.50", "0.25249875", GROK),
    (
        "x-ai:grok-4.20",
        False,
        NOON,
        Request(200_000, 1_000, 100_000),
        "100_000@2.50 100_000@0.40 1_000@5",
        "0.295",
        GROK,
    ),
    ("x-ai:grok-4.20", True, NOON, Request(10_000, 1_000), "10_000@1 1_000@2", "0.012", GROK),
    (
        "deepseek:deepseek-flash",
        False,
        PEAK,
        Request(10_000, 1_000, 8_000),
        "2_000@0.30 8_000@0.006 1_000@1.20",
        "0.001848",
        DEEPSEEK,
    ),
    (
        "deepseek:deepseek-flash",
        False,
        NOON,
        Request(10_000, 1_000, 8_000),
        "2_000@0.15 8_000@0.003 1_000@0.60",
        "0.000924",
        DEEPSEEK,
    ),
    (
        "groq:openai/gpt-oss-120b",
        False,
        NOON,
        Request(10_000, 1_000, 6_000),
        "4_000@0.15 6_000@0.075 1_000@0.60",
        "0.00165",
        GROQ,
    ),
    (
        "groq:openai/gpt-oss-120b",
        True,
        NOON,
        Request(10_000, 1_000, 6_000),
        "10_000@0.075 1_000@0.30",
        "0.00105",
        GROQ,
    ),
    (
        "mistral:mistral-large-4",
        True,
        NOON,
        Request(10_000, 2_000, 5_000),
        "5_000@0.35 5_000@0.035 2_000@1.05",
        "0.004025",
        MISTRAL,
    ),
    (
        "mistral:mistral-large-4",
        False,
        OCTOBER,
        Request(1_000, 1_000),
        "1_000@1.36 1_000@4.18",
        "0.00554",
        MISTRAL,
    ),
    (
        "fireworks:gpt-oss-120b",
        True,
        NOON,
        Request(10_000, 1_000, 4_000),
        "6_000@0.075 4_000@0.0075 1_000@0.30",
        "0.00078",
        FIREWORKS,
    ),
    ("moonshotai:kimi-k2.5", True, NOON, Request(1_000, 1_000), "1_000@0.36 1_000@1.80", "0.00216", KIMI),
]


@pytest.mark.parametrize(
    "name, batch, when, request_, parts, dollars, source", CASES, ids=lambda v: str(v)[:40]
)
def test_a_request_costs_what_the_price_list_says(
    name: str, batch: bool, when: datetime, request_: Request, parts: str, dollars: str, source: str
):
    by_hand = sum(
        Decimal(tokens.replace("_", "")) * Decimal(rate) / 1_000_000
        for tokens, rate in (part.split("@") for part in parts.split())
    )
    assert by_hand == Decimal(dollars), "the case is wrong"
    assert prices.find(name).cost(request_, when, batch) == Decimal(dollars), source


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
        prices.find("deepseek:deepseek-flash").cost(Request(1, 1), NOON, batch=True)


def test_hosts_sell_the_same_weights_under_their_own_names():
    found = {o.name for o in prices.hosts(catalog.model("openai/gpt-oss-120b"))}
    assert {"groq:openai/gpt-oss-120b", "fireworks:gpt-oss-120b", "together:openai/gpt-oss-120b"} <= found
    assert not any("safeguard" in name or "-20b" in name for name in found)


def test_the_hours_of_a_day_are_priced_apart_where_the_seller_does():
    day = prices.find("deepseek:deepseek-flash").costs(Request(1_000_000, 0), date(2026, 11, 25))
    assert [h for h, price in enumerate(day) if price == Decimal("0.30")] == [1, 2, 3, 6, 7, 8, 9]
    assert len(set(prices.find("gpt-5-mini").costs(Request(1, 1), date(2026, 11, 25)))) == 1


def test_the_table_says_how_old_it_is_and_what_will_change():
    table = prices.table()
    assert table.age_days(table.noted) == 0 <= table.age_days(date.today())
    assert prices.find("google:gemini-4-argon").next_change(date(2026, 11, 25)) == date(2026, 12, 1)
    assert prices.find("gpt-5-mini").next_change(date(2026, 11, 25)) is None


def test_usual_offers_are_sold_and_tiers_are_known():
    assert [prices.find(name).name for name in prices.USUAL] == list(prices.USUAL)
    assert {100_000, 200_000, 272_000} <= set(prices.tiers())
