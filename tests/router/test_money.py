"""The ledger's sum against the bill of a stand-in that counts by its own decimal arithmetic, and budgets under load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.base.errors import BudgetSpent
from freehold.base.serving import EmbedJob, Origin
from freehold.base.types import Usage
from freehold.route.providers.contract import UpstreamFault
from freehold.route.router.opening import ProviderModels
from freehold.route.router.price import Price, TokenRates
from tests.providers.standin import Answer, Fault, StandIn
from tests.providers.standin.billing import Rates, Tariff
from tests.providers.standin.script import Tokens
from tests.router.house import Within, job, within

SHORT = Rates("2.0", "10.0", cached="0.2", written="2.5", written_hour="4.0")
LONG = Rates("4.0", "15.0", cached="0.4", written="5.0", written_hour="8.0")
TARIFF = Tariff(SHORT, tiers=((5000, LONG),))
FINE = Tariff(Rates("0.0375", "0.15", cached="0.01875", written="0.05", written_hour="0.075"))
DIALECTS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "gemini",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "compatible": "openai-compatible",
}
PRICE = """{ input = 2.0, cached = 0.2, written = 2.5, written_hour = 4.0, output = 10.0, over = 5000,
long = { input = 4.0, cached = 0.4, written = 5.0, written_hour = 8.0, output = 15.0 } }""".replace("\n", " ")
CHEAP = "{ input = 0.0375, cached = 0.01875, written = 0.05, written_hour = 0.075, output = 0.15 }"


def file_of(standin: StandIn, more: str = "") -> str:
    parts = []
    for dialect, kind in DIALECTS.items():
        url = standin.url(dialect)
        parts.append(f'[providers.{dialect}]\nkind = "{kind}"\nurl = "{url}"\nkey = "env:REMOTE_KEY"\n')
        for name, price in (("big", PRICE), ("small", CHEAP)):
            parts.append(
                f'[models.{dialect}-{name}]\nprovider = "{dialect}"\nmodel = "{name}"\nprice = {price}\n'
            )
    return "".join(parts) + more


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn({"big": TARIFF, "small": FINE}) as running:
        running.checks = False
        yield running


def drawn(draw: random.Random, dialect: str) -> Tokens:
    """Tokens that a provider of this dialect can report."""
    prompt = draw.choice([draw.randrange(1, 3000), draw.randrange(4990, 5010), draw.randrange(5001, 90_000)])
    cached = draw.randrange(prompt + 1) if draw.random() < 0.5 else 0
    output = draw.randrange(1, 900)
    written = hour = 0
    if dialect == "anthropic":
        written = draw.randrange(prompt - cached + 1)
        hour = draw.randrange(prompt - cached - written + 1)
    thought = draw.randrange(output) if dialect in ("openai", "gemini") else 0
    return Tokens(prompt, output, cached, written, hour, thought)


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=pytest.mark.long)])
def test_ledger_of_mixed_requests_equals_the_providers_bill_to_the_nano_dollar(
    tmp_path: Path, standin, count
):
    draw = random.Random(3)
    standin.behave = lambda received: Answer(("a", "b", "c"), tokens=drawn(draw, received.path.split("/")[1]))

    async def one(house: Within, name: str) -> None:
        if draw.random() < 0.1 and name.startswith(("openai", "mistral", "compatible")):
            handle = await house.models.asked_by(Origin()).use(name)
            await handle.embed(EmbedJob(("one text", "another")))
        else:
            await house.text(name, job(max_tokens=1000, whole=draw.random() < 0.5))

    async def body() -> None:
        async with within(tmp_path, base=file_of(standin), rented=ProviderModels()) as house:
            names = list(house.gateway.models)
            for _ in range(0, count, 20):
                await asyncio.gather(*(one(house, draw.choice(names)) for _ in range(20)))
            rows = house.rows
        assert len(rows) == len(standin.bills) == count and not any(row.estimated for row in rows)
        bills = {bill.answer_id: bill for bill in standin.bills}
        for row in rows:
            if row.upstream_id in bills:
                bill = bills[row.upstream_id]
                assert row.nano == bill.nano, (row.place, row.usage, bill)
        assert sum(row.nano for row in rows) == standin.nano > 0
        by_place = {place: sum(row.nano for row in rows if row.place == place) for place in DIALECTS}
        assert all(by_place.values())

    asyncio.run(body())


@pytest.mark.parametrize("stream", [True, False])
def test_two_hundred_clients_spend_most_of_a_budget_for_twenty_and_never_more(
    tmp_path: Path, standin, stream
):
    """With providers that break first, a dearer fallback, and clients that leave."""
    cost = TARIFF.nano(Tokens(40, 200))
    draw = random.Random(9)
    leaves = Answer(("word ",) * 40, tokens=Tokens(40, 200), event_s=0.002)

    def behave(received):
        if b'"small"' in received.body:
            return Fault("status", status=500)
        return leaves

    standin.behave = behave
    usd = 20 * cost / 1e9
    more = f"""
[routes.chat]
targets = ["openai-small", "openai-big"]
retries = 0
breaker = {{ failures = 1000, cooldown = "1s" }}
[keys.alice]
budget = {{ usd = {usd:.9f}, per = "day" }}
"""

    async def asked(house: Within) -> str:
        leaver = stream and draw.random() < 0.1
        try:
            answer = await house.start("chat", job("x" * 40, max_tokens=200, whole=not stream), key="alice")
        except BudgetSpent:
            return "refused"
        except UpstreamFault:  # the budget covered the target that fails, and not the dearer one
            return "failed"
        try:
            async for _ in answer:
                if leaver:
                    return "left"
        finally:
            await answer.aclose()
        return "whole"

    async def client(house: Within) -> str:
        ended = ""
        for _ in range(5):  # clients try again
            ended = await asked(house)
            if ended in ("whole", "left"):
                break
            await asyncio.sleep(0.1)
        return ended

    async def body() -> None:
        async with within(tmp_path, base=file_of(standin, more), rented=ProviderModels()) as house:
            limit = house.gateway.keys["alice"].budget
            assert limit is not None
            ended = await asyncio.gather(*(client(house) for _ in range(200)))
            spent, reserved = await house.ledger.spent("alice", limit, house.rows[0].at)
            assert "whole" in ended and reserved == 0
            assert standin.nano <= limit.nano and spent <= limit.nano
            assert spent >= 0.9 * limit.nano

    asyncio.run(body())


WORDS = "A ledger shows what was paid, to whom, when and why; nobody has to believe it because anybody can add it up. "


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "deepseek"])
def test_streams_that_broke_or_were_left_are_estimated_within_a_tenth_of_the_bill(
    tmp_path: Path, standin, dialect
):
    draw, broken, left = random.Random(5), 30, 30
    words = tuple(f"{word} " for word in WORDS.split())

    def answer(event_s: float = 0.0) -> Answer:
        return Answer(tuple(draw.choice(words) for _ in range(draw.randrange(150, 250))), event_s=event_s)

    def fault() -> Fault:
        whole = answer()
        kind = draw.choice(("cut", "cut_reset", "error_event", "endless"))
        at = draw.randrange(30, 140)  # events; or bytes, of which the leanest event has some fifty
        return Fault(kind, at=at if kind == "error_event" else at * 50, answer=whole)

    async def ended(house: Within, leave: int = 0) -> str:
        """Ask; return how it ended, or leave after so many chunks."""
        stream = await house.start("often", job(WORDS * draw.randrange(2, 6), max_tokens=400))
        try:
            async for _ in stream:
                leave -= 1
                if not leave:
                    return "left"
        except UpstreamFault:
            return "broken"
        finally:
            await stream.aclose()
        return "whole"

    more = f"""
[routes.often]
targets = ["{dialect}-big"]
breaker = {{ failures = 1000, cooldown = "1s" }}
"""

    async def body() -> None:
        rented = ProviderModels()
        async with within(tmp_path, base=file_of(standin, more), rented=rented) as house:
            standin.behave = lambda _: answer()
            for _ in range(8):  # what a target's tokens are like is learnt from its whole answers
                assert await ended(house) == "whole"
            standin.behave = lambda _: fault()
            for _ in range(broken):
                assert await ended(house) == "broken"
            standin.behave = lambda _: answer(0.001)
            leavers = (ended(house, leave=draw.randrange(40, 140)) for _ in range(left))
            assert set(await asyncio.gather(*leavers)) == {"left"}
            assert await asyncio.to_thread(standin.wait_for, lambda: len(standin.bills) == 8 + broken + left)
            rows = house.rows
        await rented.close()
        bills = {"broken": standin.bills[8 : 8 + broken], "left": standin.bills[8 + broken :]}
        for outcome, charged in bills.items():
            booked = [row for row in rows if row.outcome == outcome]
            assert len(booked) == len(charged) and all(row.estimated for row in booked)
            bill, sum_ = sum(one.nano for one in charged), sum(row.nano for row in booked)
            assert 0.9 * bill <= sum_ <= 1.1 * bill, (outcome, sum_ / bill)

    asyncio.run(body())


def test_stand_in_and_prices_agree_by_the_hour_and_in_batches():
    """The stand-in's own arithmetic, in decimals, against whole pico-dollars."""

    def rates(r: Rates) -> TokenRates:
        pico = [round(float(x) * 1_000_000) for x in (r.input, r.output, r.cached, r.written, r.written_hour)]
        return TokenRates(*pico)

    hours = tuple(Rates(f"{n}.5", f"{n}.25", "0.1", "0.2", "0.3") for n in range(24))
    tariff = Tariff(SHORT, hours=hours, batch=LONG)
    price = Price(rates(SHORT), slots=tuple(map(rates, hours)), batch=rates(LONG))
    draw = random.Random(4)
    for _ in range(2000):
        t, hour, batch = drawn(draw, "anthropic"), draw.randrange(24), draw.random() < 0.3
        usage = Usage(
            t.prompt, t.output, t.cached, written_tokens=t.written, written_hour_tokens=t.written_hour
        )
        when = 86400 * draw.randrange(20000) + 3600 * hour + draw.randrange(3600)
        assert price.cost(usage, when, batch=batch) == tariff.nano(t, hour=hour, batch=batch)
