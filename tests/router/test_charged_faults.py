"""Answers that were made and charged, and did not arrive: what they cost is not spent twice of a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from freehold.base.errors import FreeholdError
from freehold.base.serving import EmbedJob, Origin
from freehold.route.router.opening import ProviderModels
from tests.providers.standin import Answer, Fault, StandIn
from tests.providers.standin.script import Tokens
from tests.router.house import Within, job, within
from tests.router.test_money import TARIFF, file_of


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn({"big": TARIFF}) as running:
        running.checks = False
        yield running


FILE = """
[routes.chat]
targets = ["openai-big", "mistral-big", "compatible-big"]
retries = 2
timeout = "20s"
breaker = {{ failures = 1000, cooldown = "1s" }}
[keys.alice]
budget = {{ usd = {usd:.9f}, per = "day" }}
"""


def spend(tmp_path: Path, standin: StandIn, answers: int, ask) -> None:
    usd = answers * TARIFF.nano(Tokens(40, 200)) / 1e9

    async def body() -> None:
        text = file_of(standin, FILE.format(usd=usd))
        rented = ProviderModels()
        async with within(tmp_path, base=text, rented=rented) as house:
            limit = house.gateway.keys["alice"].budget
            assert limit is not None
            for _ in range(5 * answers):
                with suppress(FreeholdError):
                    await ask(house)
            spent, reserved = await house.ledger.spent("alice", limit, house.rows[0].at)
        await rented.close()
        assert 0 < standin.nano <= limit.nano, (standin.nano, limit.nano)
        assert standin.nano <= spent <= limit.nano and reserved == 0

    asyncio.run(body())


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["cut", "cut_reset", "wrong_length", "bad_utf8"])
def test_retries_of_answers_that_were_cut_stay_within_the_budget(tmp_path: Path, standin, kind, whole):
    made = Answer(("word ",) * 40, tokens=Tokens(40, 200))
    standin.behave = lambda received: Fault(kind, at=300 if whole else 20, answer=made)

    async def ask(house: Within) -> None:
        await house.text("chat", job("x" * 40, max_tokens=200, whole=whole), key="alice")

    spend(tmp_path, standin, 20, ask)


@pytest.mark.parametrize("kind", ["cut", "wrong_length"])
def test_embeddings_that_were_cut_stay_within_the_budget(tmp_path: Path, standin, kind):
    standin.behave = lambda received: Fault(kind, at=30)

    async def ask(house: Within) -> None:
        handle = await house.models.asked_by(Origin(key="alice")).use("chat")
        await handle.embed(EmbedJob(("one text " * 8, "another " * 8)))

    spend(tmp_path, standin, 2, ask)
