"""A whole server with a gateway under load, killed at random moments: its ledger against what clients saw."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from freehold.route.router.ledger.rows import rows_in
from freehold.serve.http.core.keys import KeyFile, key_of
from tests.cli.test_serve_gateway import FILE, ask, eventually, served
from tests.providers.standin import Answer, StandIn
from tests.providers.standin.billing import Rates, Tariff
from tests.providers.standin.script import Tokens

CLIENTS, KILLS = 24, 5
PROMPT, MADE, MOST = 90, 40, 60  # tokens of a request, as the provider counts them, and its max_tokens
# Nano-dollars; an answer costs 500,000. One is always open, so that each death leaves reservations; one is spent soon.
BUDGETS = {"alice": 10**10, "carol": 10**7}
SECRETS = {name: f"fh-{name}-0123456789abcdefghijklmnopqrstuv" for name in ("alice", "bob", "carol")}
PATHS = {"chat": "/v1/chat/completions", "whole": "/v1/chat/completions", "messages": "/v1/messages"}


@dataclass
class Seen:
    """What clients saw: requests answered to the end, those that were asked, and how many of each status."""

    whole: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn({"gpt-test": Tariff(Rates("2.0", "8.0"))}) as running:
        running.behave = lambda _: Answer(
            ("some ", "more ", "words"), tokens=Tokens(PROMPT, MADE), event_s=0.004
        )
        yield running


async def one(client: httpx2.AsyncClient, url: str, name: str, seen: Seen) -> None:
    """Ask once; note whether the answer came to its end."""
    key, door, _ = name.split(".")
    body = {"model": "chat", "max_tokens": MOST, "messages": [{"role": "user", "content": name}]}
    headers = {"authorization": f"Bearer {SECRETS[key]}", "x-request-id": name}
    seen.asked[key] += 1
    asked = {**body, "stream": door != "whole"}
    async with client.stream("POST", url + PATHS[door], json=asked, headers=headers) as answer:
        seen.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            await answer.aread()
            await asyncio.sleep(0.01)
        elif door == "whole":
            if json.loads(await answer.aread())["choices"][0]["finish_reason"] == "stop":
                seen.whole.add(name)
        else:
            async for line in answer.aiter_lines():
                if '"finish_reason":"stop"' in line or '"stop_reason":"end_turn"' in line:
                    seen.whole.add(name)  # the last word of the answer: nothing that follows is waited for


async def load(url: str, life: int, seen: Seen) -> None:
    """Ask until the server is gone."""
    limits = httpx2.Limits(max_connections=CLIENTS)

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        key, door = tuple(SECRETS)[number % 3], tuple(PATHS)[number // 3 % 3]
        count = 0
        while True:
            count += 1
            try:
                await one(http, url, f"{key}.{door}.{life}-{number}-{count}", seen)
            except (httpx2.HTTPError, json.JSONDecodeError):
                return

    async with httpx2.AsyncClient(timeout=20, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(CLIENTS)))


def settled(home: Path) -> list[tuple[str, int, int]]:
    """Return what each key has spent and reserved in each month, once nothing of the dead is reserved."""
    with closing(sqlite3.connect(home / "ledger.sqlite")) as db:
        (open_,) = db.execute("SELECT count(*) FROM reservations").fetchone()
        return [] if open_ else db.execute("SELECT key, spent, reserved FROM spend").fetchall()


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.big) for seed in range(2, 6))])
def test_a_killed_server_loses_no_row_of_an_answer_that_a_client_saw(
    tmp_path: Path, standin: StandIn, seed: int
):
    """Five moments a seed: thirty in all."""
    draw, seen = random.Random(seed), Seen()
    (tmp_path / "config.toml").write_text("adopt = false\n")
    keys = KeyFile(tmp_path / "keys.json")
    for name, secret in SECRETS.items():
        keys.add(key_of(name, secret))
    file = tmp_path / "gateway.toml"
    text = FILE.format(url=standin.url("openai"))
    budget = '[keys.{}]\nbudget = {{ usd = {}, per = "month" }}\n'
    budgets = "".join(budget.format(name, nano / 1e9) for name, nano in BUDGETS.items())
    file.write_text(text.replace('[keys.alice]\nlabel = "private"\n', budgets))
    for life in range(KILLS):
        with served(tmp_path, "--gateway", str(file), "--log-level", "warning") as (process, said):

            async def until_killed(process=process, url=said["url"], life=life) -> None:
                asked = asyncio.create_task(load(url, life, seen))
                await asyncio.sleep(0.15 + draw.random() * 0.5)
                # A busy machine's moments may all come too early.
                while life == KILLS - 1 and not (seen.whole or asked.done()):
                    await asyncio.sleep(0.01)
                process.kill()
                await asked

            asyncio.run(until_killed())
    with served(tmp_path, "--gateway", str(file)) as (_, said):
        held = eventually(lambda: settled(tmp_path))  # of the dead, at the next start
        assert (
            ask(said["url"], "chat", headers={"authorization": f"Bearer {SECRETS['bob']}"}).status_code == 200
        )
    rows = list(rows_in(tmp_path / "ledger.sqlite", 0, 4e9))
    whole = {row.request_id: row for row in rows if row.outcome == "whole"}
    assert seen.whole <= set(whole), "an answer that a client saw has no row"
    assert seen.whole, seen.statuses  # how many they are says how fast the machine is
    assert max(Counter(row.request_id for row in rows).values()) == 1, "a request has two rows"
    bills = {bill.answer_id: bill.nano for bill in standin.bills}
    assert all(row.nano == bills[row.upstream_id] and not row.estimated for row in whole.values())
    lost = [row for row in rows if row.outcome == "lost"]
    assert 0 < len(lost) <= KILLS * CLIENTS
    charged = Counter[str]()
    for bill in standin.bills:
        charged[json.loads(standin.received[bill.number].body)["messages"][-1]["content"].split(".")[0]] += (
            bill.nano
        )
    assert held and seen.statuses[402] > 0, seen.statuses
    for key, limit in BUDGETS.items():
        months = [(spent, reserved) for name, spent, reserved in held if name == key]
        assert all(spent <= limit and reserved == 0 for spent, reserved in months), months
        assert charged[key] <= sum(spent for spent, _ in months) > 0
