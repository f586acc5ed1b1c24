"""The ledger's file: what is reserved, booked once, and refused where it cannot be written."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freehold.base.errors import BudgetSpent, LedgerUnavailable, StoreError
from freehold.base.types import Usage
from freehold.route.router.gateway import SpendLimit
from freehold.route.router.ledger import rows as schema
from freehold.route.router.ledger import store
from freehold.route.router.ledger.rows import LedgerRow, Reservation, row_id
from freehold.route.router.ledger.store import Ledger
from tests.router.ledger.rows import DAY, NOON, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.sqlite"


def opened(path: Path, body: Callable[[Ledger], Awaitable[None]]) -> None:
    async def run() -> None:
        ledger = Ledger.open(path)
        try:
            await body(ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


def rows(path: Path) -> list[LedgerRow]:
    with sqlite3.connect(path) as db:
        found = db.execute(f"SELECT {schema.NAMES} FROM requests ORDER BY id").fetchall()
    db.close()
    return [schema.row_of(values) for values in found]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file as another process does that writes."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("COMMIT")
    other.close()


def test_row_is_read_as_it_was_booked(path):
    wanted = [row(), row(may_teach=None, labels=(), outcome="left", estimated=True, parent="x")]

    async def body(ledger: Ledger) -> None:
        for one in wanted:
            await ledger.book(one)

    opened(path, body)
    assert rows(path) == wanted


def test_row_booked_twice_is_one_row_and_is_paid_once(path):
    async def body(ledger: Ledger) -> None:
        name = row_id(NOON)
        await ledger.reserve(Reservation(name, "alice", DAY, 2000, NOON))
        assert await ledger.spent("alice", DAY, NOON) == (0, 2000)
        for _ in range(3):
            await ledger.book(row(name))
        assert await ledger.spent("alice", DAY, NOON) == (1000, 0)

    opened(path, body)
    assert len(rows(path)) == 1


def test_answer_that_no_provider_counted_costs_its_budget_what_was_reserved(path):
    """A provider charges for what it made until it noticed that its reader had gone, which is more than passed."""

    async def body(ledger: Ledger) -> None:
        name = row_id(NOON)
        await ledger.reserve(Reservation(name, "alice", DAY, 2000, NOON))
        await ledger.book(row(name, outcome="left", estimated=True, nano=300))
        assert await ledger.spent("alice", DAY, NOON) == (2000, 0)

    opened(path, body)
    assert rows(path)[0].nano == 300


def test_reservations_never_exceed_the_limit_and_are_refused_with_the_amounts(path):
    async def body(ledger: Ledger) -> None:
        for _ in range(10):
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 100_000, NOON))
        with pytest.raises(BudgetSpent) as e:
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
        said = e.value
        assert (said.spent, said.reserved, said.asked, said.limit) == (0, 1_000_000, 1, 1_000_000)
        assert said.renews_s == 12 * 3600 and "0.001 USD a day" in said.message
        assert "00:00 UTC" in said.hint
        await ledger.reserve(Reservation(row_id(NOON), "bob", DAY, 1_000_000, NOON))  # of another key
        await ledger.reserve(
            Reservation(row_id(NOON), "alice", DAY, 1_000_000, NOON + 86400)
        )  # and another day

    opened(path, body)


def test_budget_given_in_the_middle_of_a_window_counts_what_was_spent_in_it(path):
    async def body(ledger: Ledger) -> None:
        await ledger.book(row(at=NOON, nano=600_000))
        await ledger.book(row(at=NOON - 13 * 3600, nano=70_000))  # yesterday's
        with pytest.raises(BudgetSpent) as e:
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 500_000, NOON + 1))
        assert e.value.spent == 600_000
        week = SpendLimit(1_000_000, "week")
        assert await ledger.spent("alice", week, NOON) == (670_000, 0)

    opened(path, body)


def test_request_that_ends_after_midnight_is_paid_by_the_day_it_began(path):
    async def body(ledger: Ledger) -> None:
        late = NOON + 12 * 3600 - 1
        name = row_id(late)
        await ledger.reserve(Reservation(name, "alice", DAY, 5000, late))
        await ledger.reserve(Reservation(row_id(late + 2), "alice", DAY, 7000, late + 2))
        await ledger.book(row(name, late))
        assert await ledger.spent("alice", DAY, late) == (1000, 0)
        assert await ledger.spent("alice", DAY, late + 2) == (0, 7000)

    opened(path, body)


def test_reservation_shrinks_always_and_grows_where_there_is_room(path):
    async def body(ledger: Ledger) -> None:
        one, other = row_id(NOON), row_id(NOON)
        await ledger.reserve(Reservation(one, "alice", DAY, 900_000, NOON))
        await ledger.change(Reservation(one, "alice", DAY, 400_000, NOON))
        await ledger.reserve(Reservation(other, "alice", DAY, 500_000, NOON))
        await ledger.change(Reservation(one, "alice", DAY, 500_000, NOON))
        with pytest.raises(BudgetSpent):
            await ledger.change(Reservation(one, "alice", DAY, 500_001, NOON))
        assert await ledger.spent("alice", DAY, NOON) == (0, 1_000_000)

    opened(path, body)


def test_file_is_for_its_user_alone(path):
    async def body(ledger: Ledger) -> None:
        await ledger.book(row())
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    opened(path, body)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.sqlite"]


def test_locked_file_makes_requests_wait_and_the_loop_run(path):
    async def body(ledger: Ledger) -> None:
        with locked(path):
            booking = asyncio.create_task(ledger.book(row()))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not booking.done()
        await booking

    opened(path, body)
    assert len(rows(path)) == 1


def test_file_locked_for_too_long_refuses_and_withholds_but_loses_no_row(path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.03)

    async def body(ledger: Ledger) -> None:
        name = row_id(NOON)
        await ledger.reserve(Reservation(name, "alice", DAY, 2000, NOON))
        with locked(path):
            with pytest.raises(LedgerUnavailable, match="locked"):
                await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
            with pytest.raises(LedgerUnavailable):
                await ledger.book(row(name))
            assert ledger.owed == 1
        monkeypatch.setattr(store, "TICK_S", 0.001)
        keeping = asyncio.create_task(ledger.keep())
        while ledger.owed:
            await asyncio.sleep(0.001)
        keeping.cancel()
        assert await ledger.spent("alice", DAY, NOON) == (1000, 0)

    opened(path, body)
    (found,) = rows(path)
    assert found.outcome == "broken" and found.nano == 1000  # no client saw its end


def test_booking_that_is_cancelled_while_it_waits_is_booked(path):
    async def body(ledger: Ledger) -> None:
        with locked(path):
            booking = asyncio.create_task(ledger.book(row(outcome="left")))
            await asyncio.sleep(0.002)
            booking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await booking

    opened(path, body)
    assert [r.outcome for r in rows(path)] == ["left"]


def test_ledger_of_another_version_is_refused(path):
    opened(path, lambda ledger: ledger.book(row()))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="version 99"):
        Ledger.open(path)


def test_file_that_is_no_ledger_is_refused_by_name(path):
    path.parent.mkdir()
    path.write_bytes(b"no database, but long enough to be read as the header of one" * 100)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Ledger.open(path)


def test_reservations_of_the_dead_become_rows_and_the_unsent_cost_nothing(path):
    async def body() -> None:
        dead = Ledger.open(path)
        sent, unsent, told = (row_id(NOON) for _ in range(3))
        await dead.reserve(Reservation(sent, "alice", DAY, 3000, NOON))
        await dead.reserve(Reservation(unsent, "alice", DAY, 5000, NOON, sent=False))
        await dead.reserve(Reservation(told, "alice", DAY, 7000, NOON, sent=False))
        await dead.sent(told)
        living = Ledger.open(path)  # while the first one lives, its reservations stay
        assert await living.spent("alice", DAY, NOON) == (0, 15_000)
        dead._db.close()
        dead._owner.release(forget=False)  # what the kernel does when a process ends
        later = Ledger.open(path)
        assert await later.spent("alice", DAY, NOON) == (10_000, 0)
        await living.close()
        await later.close()

    asyncio.run(body())
    found = rows(path)
    assert [(r.outcome, r.nano, r.estimated) for r in found] == [
        ("lost", 3000, True),
        ("lost", 0, False),
        ("lost", 7000, True),
    ]


def test_living_process_books_what_the_dead_left(path, monkeypatch):
    monkeypatch.setattr(store, "TICK_S", 0.001)
    monkeypatch.setattr(store, "RECOVER_S", 0.0)

    async def body() -> None:
        living, dead = Ledger.open(path), Ledger.open(path)
        await dead.reserve(Reservation(row_id(NOON), "alice", DAY, 3000, NOON))
        dead._db.close()
        dead._owner.release(forget=False)
        keeping = asyncio.create_task(living.keep())
        while (await living.spent("alice", DAY, NOON))[1]:
            await asyncio.sleep(0.001)
        keeping.cancel()
        await living.close()

    asyncio.run(body())
    assert [r.outcome for r in rows(path)] == ["lost"]


@pytest.mark.parametrize("happened", ["deleted", "replaced", "emptied"])
def test_a_file_that_is_no_longer_the_ledger_refuses_requests_and_withholds_ends(path, happened):
    async def body(ledger: Ledger) -> None:
        await ledger.book(row())
        keeping = asyncio.create_task(ledger.keep())
        kept = path.with_name("kept")
        if happened == "emptied":
            path.write_bytes(b"")
        else:
            path.rename(kept)
        if happened == "replaced":
            path.write_bytes(kept.read_bytes())
        with pytest.raises(LedgerUnavailable, match="while the server runs"):
            await ledger.book(row())
        while not ledger.trouble:
            await asyncio.sleep(0.002)
        with pytest.raises(LedgerUnavailable, match="while the server runs"):
            await ledger.ready()
        with pytest.raises(LedgerUnavailable, match="while the server runs"):
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
        if happened != "emptied":
            kept.rename(path)
            await ledger.ready()
            assert not ledger.trouble
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
        keeping.cancel()

    monkey = pytest.MonkeyPatch()
    monkey.setattr(store, "TICK_S", 0.005)
    try:
        opened(path, body)
    finally:
        monkey.undo()
    if happened != "emptied":
        assert len(rows(path)) >= 2


@pytest.mark.parametrize("wrong", [{"nano": 1 << 64}, {"usage": Usage(1 << 70, 1)}])
def test_a_row_that_no_ledger_takes_is_refused_and_holds_up_no_other(path, wrong, monkeypatch):
    monkeypatch.setattr(store, "TICK_S", 0.002)

    async def body(ledger: Ledger) -> None:
        keeping = asyncio.create_task(ledger.keep())
        with pytest.raises(LedgerUnavailable, match="no such row"):
            await ledger.book(row(**wrong))
        await ledger.book(row())
        await asyncio.sleep(0.02)
        assert ledger.owed == 0 and not keeping.done()
        keeping.cancel()

    opened(path, body)
    assert len(rows(path)) == 1
