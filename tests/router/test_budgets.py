"""Budgets under many requests at once: never exceeded, nearly all of it usable, no wait in vain."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import BudgetSpent
from freehold.base.prompts import prompt_size
from freehold.base.serving import Job
from freehold.base.types import Image, Message, Tool
from freehold.route.router import record
from freehold.route.router.gateway import SpendLimit
from freehold.route.router.ledger.rows import Reservation, row_id, window
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.record import Budgets
from tests.router.ledger.rows import DAY, NOON, row

ACTUAL, MOST = 1000, 2500  # of one answer: what it costs, and what is reserved for it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def opened(path: Path, body: Callable[[Budgets, Ledger], Awaitable[None]]) -> None:
    async def run() -> None:
        ledger = Ledger.open(path)
        try:
            await body(Budgets(ledger), ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


class Provider:
    """Charges for what it answers, whether a client receives it or not."""

    def __init__(self) -> None:
        self.charged = 0

    async def answer(self, nano: int, seconds: float = 0.001) -> int:
        self.charged += nano
        await asyncio.sleep(seconds)
        return nano


@pytest.mark.parametrize("clients, wait_s", [(200, 5.0), (200, 0.0)])
def test_two_hundred_clients_share_a_budget_for_twenty(path, clients, wait_s):
    limit = SpendLimit(20 * ACTUAL, "day")

    async def body(books: Budgets, ledger: Ledger) -> None:
        provider, refused = Provider(), 0

        async def client() -> None:
            nonlocal refused
            name = row_id(NOON)
            try:
                await books.reserve(Reservation(name, "alice", limit, MOST, NOON), wait_s=wait_s)
            except BudgetSpent:
                refused += 1
                return
            await books.book(row(name, nano=await provider.answer(ACTUAL)))

        started = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        spent, reserved = await ledger.spent("alice", limit, NOON)
        assert spent == provider.charged <= limit.nano and reserved == 0
        assert refused == clients - spent // ACTUAL
        if wait_s:
            assert spent >= 0.9 * limit.nano
            assert time.monotonic() - started < wait_s  # those whom no wait can help are refused at once
        else:
            assert spent >= limit.nano // MOST * ACTUAL

    opened(path, body)


def test_request_that_can_never_fit_is_refused_without_waiting(path):
    async def body(books: Budgets, ledger: Ledger) -> None:
        await ledger.book(row(nano=999_000))
        started = time.monotonic()
        with pytest.raises(BudgetSpent):
            await books.reserve(Reservation(row_id(NOON), "alice", DAY, 2000, NOON), wait_s=60.0)
        assert time.monotonic() - started < 30

    opened(path, body)


def test_waiting_ends_at_its_limit_and_says_what_is_reserved(path):
    async def body(books: Budgets, ledger: Ledger) -> None:
        await books.reserve(Reservation(row_id(NOON), "alice", DAY, 900_000, NOON))
        with pytest.raises(BudgetSpent) as e:
            await books.reserve(Reservation(row_id(NOON), "alice", DAY, 200_000, NOON), wait_s=0.02)
        assert e.value.reserved == 900_000 and "reserved for requests in flight" in e.value.message
        assert not books._waiting

    opened(path, body)


def test_waiting_requests_are_served_in_order_and_one_that_left_holds_nobody_up(path):
    served: list[int] = []

    async def body(books: Budgets, ledger: Ledger) -> None:
        name = row_id(NOON)
        await books.reserve(Reservation(name, "alice", DAY, 1_000_000, NOON))

        async def client(n: int) -> None:
            await books.reserve(Reservation(row_id(NOON), "alice", DAY, 100_000, NOON), wait_s=10.0)
            served.append(n)

        waiting = [asyncio.create_task(client(n)) for n in range(5)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0)
        await books.book(row(name, nano=10_000))
        await asyncio.gather(*waiting[1:])

    opened(path, body)
    assert served == [1, 2, 3, 4]


def test_room_that_another_process_made_is_found(path, monkeypatch):
    monkeypatch.setattr(record, "LOOK_S", 0.01)

    async def body(books: Budgets, ledger: Ledger) -> None:
        other, name = Ledger.open(path), row_id(NOON)
        await other.reserve(Reservation(name, "alice", DAY, 1_000_000, NOON))
        waiting = asyncio.create_task(
            books.reserve(Reservation(row_id(NOON), "alice", DAY, 500_000, NOON), wait_s=10.0)
        )
        await asyncio.sleep(0.01)
        await other.book(row(name, nano=500_000))
        await waiting
        await other.close()

    opened(path, body)


# One step of a request: what it may cost at most, what it does cost, how it ends.
steps = st.lists(
    st.tuples(
        st.sampled_from(["whole", "left", "broken", "dearer", "killed", "unsent"]),
        st.integers(1, 300_000),
        st.floats(0, 1),
        st.sampled_from(["alice", "bob"]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(steps=steps, seed=st.integers(0, 1000))
def test_no_interleaving_of_requests_and_kills_exceeds_a_budget(tmp_path_factory, steps, seed):
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    charged = {"alice": 0, "bob": 0}
    draw = random.Random(seed)

    async def one(books: Budgets, how: str, most: int, share: float, key: str, pause: int) -> None:
        name, nano = row_id(NOON), int(most * share)
        waits = 0.01 if draw.random() < 0.5 else 0.0
        try:
            await books.reserve(Reservation(name, key, DAY, most, NOON, sent=how != "unsent"), wait_s=waits)
            if how != "unsent":
                charged[key] += nano
            if how == "dearer":  # the first target broke, and another one may cost as much again
                await books.change(Reservation(name, key, DAY, nano + most, NOON))
                charged[key] += nano
                nano += nano
        except BudgetSpent:
            return
        for _ in range(pause):
            await asyncio.sleep(0)
        if how not in ("killed", "unsent"):
            await books.book(row(name, key=key, nano=nano, outcome="left" if how == "left" else "whole"))

    async def run() -> None:
        ledger = Ledger.open(path)
        books = Budgets(ledger)
        await asyncio.gather(*(one(books, *step) for step in steps))
        ledger._db.close()
        ledger._owner.release(forget=False)  # killed
        again = Ledger.open(path)
        for key, sum_ in charged.items():
            spent, reserved = await again.spent(key, DAY, NOON)
            assert sum_ <= spent <= DAY.nano and reserved == 0
        await again.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "per, start, stop",
    [
        ("hour", "2026-11-27 12:00", "2026-11-27 13:00"),
        ("day", "2026-11-27 00:00", "2026-11-28 00:00"),
        ("week", "2026-11-23 00:00", "2026-11-30 00:00"),
        ("month", "2026-11-01 00:00", "2026-12-01 00:00"),
    ],
)
def test_windows_are_those_of_the_calendar_in_utc(per, start, stop):
    from datetime import UTC, datetime

    at = datetime(2026, 11, 27, 12, 34, 56, tzinfo=UTC).timestamp()
    found = window(per, at)
    ends = [datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M") for s in (found.start, found.stop)]
    assert ends == [start, stop]
    assert window(per, found.stop).start == found.stop and window(per, found.stop - 0.001) == found


@pytest.mark.parametrize("text", ["Qx" * 500, "aZ" * 500, "zqxj " * 200, "é" * 300, "0123456789" * 100])
def test_prompt_is_never_counted_below_its_bytes(text):
    """Letters that are no words are a token each in released vocabularies; a key's holder chooses them."""
    size = prompt_size(Job(messages=(Message("user", text),)))
    assert size.most >= len(text.encode())


def test_a_prompts_bound_holds_for_pictures_tools_and_names():
    """What providers count: a picture up to 16,384 tokens, gpt-4o-mini's up to 48,169; 804 for Claude's tools."""
    picture = Message("user", "", parts=(Image("image/png", "AAAA"),))
    assert prompt_size(Job(messages=(picture,))).most >= 16_384
    assert prompt_size(Job(messages=(picture,))).most_of("gpt-4o-mini-2024-07-18") >= 48_169
    assert prompt_size(Job(messages=(Message("user", "hi"),), tools=(Tool("f"),))).most > 804
    named = Message("tool", "", name="n" * 500, tool_call_id="i" * 500)
    assert prompt_size(Job(messages=(named,))).most > 1_000
