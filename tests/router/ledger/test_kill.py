"""kill -9 under load, and disks that are full: no answer that a client saw whole is without its row."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from freehold.base.errors import LedgerUnavailable
from freehold.route.router.ledger import store
from freehold.route.router.ledger.rows import Reservation, row_id, rows_in
from freehold.route.router.ledger.store import Ledger
from tests.http.test_full_disk import Disk, disk
from tests.router.ledger.killed import CLIENTS, LIMIT, MOST
from tests.router.ledger.rows import DAY, NOON, row

__all__ = ["disk"]
ROOT = Path(__file__).parent.parent.parent.parent


def killed(folder: Path, kills: int) -> None:
    command = [sys.executable, "-m", "tests.router.ledger.killed", str(folder), str(kills), "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_killed_under_load_no_whole_answer_lacks_its_row_and_none_has_two(tmp_path, kills):
    killed(tmp_path, kills)
    path = tmp_path / "ledger.sqlite"

    async def body() -> tuple[int, int]:
        ledger = Ledger.open(path)  # the next start: what the dead reserved is booked
        found = await ledger.spent("alice", LIMIT, NOON)
        await ledger.close()
        return found

    spent, reserved = asyncio.run(body())
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    rows = list(rows_in(path, NOON - 1, NOON + 1))
    booked = {row.id: row.nano for row in rows if row.outcome == "whole"}
    whole = {name: int(nano) for kind, name, _, nano in log if kind == "whole"}
    assert len(whole) > 10 * kills and whole.items() <= booked.items()
    answers = Counter(row.answer_id for row in rows if row.answer_id)
    assert max(answers.values()) == 1
    charged = sum(int(nano) for kind, _, key, nano in log if kind == "charged" and key == "alice")
    assert charged <= spent <= LIMIT.nano and reserved == 0
    lost = [row for row in rows if row.outcome == "lost"]
    assert len(lost) <= kills * CLIENTS and all(row.nano == MOST and row.estimated for row in lost)
    assert [file.name for file in tmp_path.iterdir() if "owner" in file.name] == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(store, "TICK_S", 0.005)
    monkeypatch.setattr(store, "FREE_BYTES", 64 << 10)


def test_full_disk_refuses_before_anything_is_sent_and_books_what_it_owes(disk: Disk, small):
    path = disk.path / "ledger.sqlite"

    async def body() -> None:
        ledger = Ledger.open(path)
        name = row_id(NOON)
        await ledger.reserve(Reservation(name, "alice", DAY, 5000, NOON))
        disk.fill()
        seen = 0
        with pytest.raises(LedgerUnavailable, match="disk"):
            for _ in range(100):  # what the log still has room for
                await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
                seen += 1
        with pytest.raises(LedgerUnavailable):  # of a key without a budget, before it is sent
            await ledger.ready()
        with pytest.raises(LedgerUnavailable):  # the answer's last byte is withheld
            for _ in range(100):
                await ledger.book(row(row_id(NOON), nano=1))
        with pytest.raises(LedgerUnavailable):
            await ledger.book(row(name))
        owed = ledger.owed
        assert owed >= 2 and ledger.trouble
        disk.free()
        keeping = asyncio.create_task(ledger.keep())
        while ledger.owed or ledger.trouble:
            await asyncio.sleep(0.002)
        await ledger.ready()
        keeping.cancel()
        await ledger.close()

    asyncio.run(body())
    found = {row.id: row for row in rows_in(path, NOON - 1, NOON + 1)}
    assert [r.outcome for r in found.values() if r.nano == 1000] == ["broken"]


def test_disk_that_is_nearly_full_refuses_new_requests_and_books_those_in_flight(
    disk: Disk, small, monkeypatch
):
    monkeypatch.setattr(store, "FREE_BYTES", 1 << 20)  # more than this disk has

    async def body() -> None:
        ledger = Ledger.open(disk.path / "ledger.sqlite")
        name = row_id(NOON)
        await ledger.reserve(Reservation(name, "alice", DAY, 5000, NOON))
        keeping = asyncio.create_task(ledger.keep())
        while not ledger.trouble:
            await asyncio.sleep(0.002)
        with pytest.raises(LedgerUnavailable, match="are needed"):
            await ledger.ready()
        with pytest.raises(LedgerUnavailable, match="are needed"):
            await ledger.reserve(Reservation(row_id(NOON), "alice", DAY, 1, NOON))
        await ledger.book(row(name))
        assert await ledger.spent("alice", DAY, NOON) == (1000, 0)
        keeping.cancel()
        await ledger.close()

    asyncio.run(body())
