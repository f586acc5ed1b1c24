"""A disk that is full: answers go on, spending and batch results wait in memory, and clients get a warning.

On a real small filesystem where this user may mount one, and everywhere with the fault at the call that writes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from freehold.serve.http.batches import desk as desks
from freehold.serve.http.batches import record as journals
from freehold.serve.http.core import accounts as ledger
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.keys import Ring
from tests.http.fakes import Script
from tests.http.test_batches import Batches, jsonl, line
from tests.http.test_door import bearer, key, secret
from tests.http.test_streams import eventually

URL = "/v1/chat/completions"
CHAT = {"model": "fake:1b", "messages": [{"role": "user", "content": "one two"}]}
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """A folder on a disk that can be filled and freed."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may mount no small filesystem; the tests below it make the fault themselves")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SAVE_S", 0.02)
    monkeypatch.setattr(journals, "PAUSE_S", 0.05)
    monkeypatch.setattr(desks, "DISK_PAUSE_S", 0.05)


def test_full_disk_costs_no_answer_and_no_token_of_the_account(serving, disk, often, caplog):
    keys = Ring([key("ann")])
    with caplog.at_level(logging.WARNING, "freehold.serve.http"):
        server = serving(keys=keys, accounts=disk.path / "accounts")
        disk.fill()
        used = 0
        for _ in range(5):
            answer = server.client.post(URL, json=CHAT, headers=bearer("ann"))
            assert answer.status_code == 200, answer.text
            used += answer.json()["usage"]["total_tokens"]
        account = server.doors.server.accounts
        assert eventually(lambda: bool(account.trouble)) and account.today() == {"ann": used}
        health = server.client.get("/health")
        assert health.status_code == 200 and "No space left" in health.json()["warnings"][0]
        shown = server.client.get("/metrics", headers=bearer("ann")).text
        assert float(_gauge(shown, "freehold_accounts_unsaved_seconds")) > 0
        disk.free()
        assert eventually(lambda: not account.trouble)
    assert server.client.get("/health").json() == {"status": "ok"}
    assert Accounts(disk.path / "accounts").today() == {"ann": used}
    told = [r.message for r in caplog.records if "token counts" in r.message]
    assert len(told) == 2 and "kept in memory" in told[0] and "saved again" in told[1]


def _gauge(text: str, name: str) -> str:
    return next(row.split()[1] for row in text.splitlines() if row.startswith(name + " "))


@pytest.mark.heavy
def test_batch_on_a_full_disk_waits_tells_its_owner_and_loses_no_result(serving, disk, often):
    server = serving(Script(text="word " * 200, delay=0.005), keys=Ring([key("ann")]), home=disk.path)
    client = Batches(server.url, secret("ann"))
    batch = client.begin([line(f"n{i}") for i in range(12)])
    assert eventually(lambda: client.api.batches.retrieve(batch.id).request_counts.completed >= 1)
    disk.fill()
    assert eventually(lambda: bool(client.api.batches.retrieve(batch.id).errors))
    told = client.api.batches.retrieve(batch.id)
    assert (
        told.errors.data[0].code == "disk_failed" and "continues automatically" in told.errors.data[0].message
    )
    assert told.status == "in_progress"
    asked = len(server.models.served["fake:1b"].jobs)
    assert "batches wait" in server.client.get("/health").json()["warnings"][0]
    disk.free()
    ended = client.end(batch)
    assert ended.status == "completed" and ended.errors is None
    assert set(client.lines(ended.output_file_id)) == {f"n{i}" for i in range(12)}
    assert asked <= len(server.models.served["fake:1b"].jobs) == 12  # none was asked twice
    client.api.close()


def test_upload_to_a_full_disk_is_507_and_says_whose_fault_it_is(serving, disk):
    server = serving(home=disk.path)
    disk.fill()
    file = {"file": ("a.jsonl", jsonl([line("a")]))}
    answer = server.client.post("/v1/files", files=file, data={"purpose": "batch"})
    assert answer.status_code == 507, answer.text
    assert answer.json()["error"]["code"] == "disk_full"
    assert str(disk.path) not in answer.text
    disk.free()


# The same with the fault at the call that writes.


def test_accounts_that_cannot_be_saved_are_kept_and_told_once(tmp_path, monkeypatch, caplog):
    now = [86400.0 * 20000]
    accounts = Accounts(tmp_path / "accounts", now=lambda: now[0])

    def full(path: Path, value: object) -> None:
        raise NO_SPACE

    with monkeypatch.context() as broken:
        broken.setattr(ledger, "write_json", full)
        for tokens in (3, 4):
            accounts.spend("ann", tokens)
            accounts.save()
        now[0] += 86400  # the day ends on a full disk
        accounts.spend("ann", 5)
        accounts.save()
        assert accounts.trouble == "No space left on device"
    accounts.save()
    assert accounts.trouble == "" and [r.levelname for r in caplog.records] == ["ERROR", "WARNING"]
    for at, want in ((now[0] - 86400, 7), (now[0], 5)):
        assert Accounts(tmp_path / "accounts", now=lambda at=at: at).today() == {"ann": want}


def _result(custom_id: str) -> object:
    return {"custom_id": custom_id}


async def _journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], journals.Journal]:
    told: list[Any] = []
    monkeypatch.setattr(journals, "PAUSE_S", 0.01)
    return told, journals.Journal(folder, told.append)


def test_results_a_full_disk_refuses_are_written_whole_when_it_takes_them(tmp_path, monkeypatch):

    write = journals.os.pwrite
    room = [20]  # bytes the disk has

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if room[0] < len(data):
            write(fd, data[: room[0]], at)
            raise NO_SPACE
        return write(fd, data, at)

    async def body() -> None:
        told, journal = await _journal(tmp_path, monkeypatch)
        monkeypatch.setattr(journals.os, "pwrite", pwrite)
        adding = [
            asyncio.create_task(journal.add(f"n{i}", partial(_result, f"n{i}"), failed=i == 1))
            for i in range(3)
        ]
        while not told:
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in adding) and not (tmp_path / "output.jsonl").read_bytes()
        room[0] = 1 << 20
        await asyncio.gather(*adding)
        assert told[-1] is None and journal.counts == {"output.jsonl": 2, "errors.jsonl": 1}
        await journal.close()
        again = journals.Journal(tmp_path)
        assert again.done == {"n0", "n1", "n2"} and again.counts == journal.counts
        await again.close()

    asyncio.run(body())


def test_journal_of_a_full_disk_can_be_closed(tmp_path, monkeypatch):

    def full(*_: object) -> int:
        raise NO_SPACE

    async def body() -> None:
        told, journal = await _journal(tmp_path, monkeypatch)
        monkeypatch.setattr(journals.os, "pwrite", full)
        adding = asyncio.create_task(journal.add("n0", partial(_result, "n0"), failed=False))
        while not told:
            await asyncio.sleep(0.001)
        with pytest.raises(OSError, match="No space"):
            await journal.close()
        with pytest.raises(OSError, match="No space"):
            await adding

    asyncio.run(body())


def test_tokens_booked_as_a_day_begins_are_saved_with_the_day_before(tmp_path):
    begins = 86400.0 * 20000
    looks = [begins - 0.001]  # the last one stays
    accounts = Accounts(tmp_path / "accounts", now=lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    looks[:] = [begins - 0.001, begins]  # between two looks of one booking
    accounts.spend("ann", 5)
    accounts.spend("ann", 7)
    accounts.save()
    for at, want in ((begins - 1, 5), (begins, 7)):
        assert Accounts(tmp_path / "accounts", now=lambda at=at: at).today() == {"ann": want}


def test_a_clock_that_jumps_and_returns_costs_no_token_of_the_account(tmp_path):
    now = [86400.0 * 20000]
    accounts = Accounts(tmp_path / "accounts", now=lambda: now[0])
    for offset in (0, 1, 0, -1, 3650, 0, 1):
        now[0] = 86400.0 * (20000 + offset)
        accounts.spend("ann", 1)
        accounts.save()
        accounts._forget_saved()
    for offset, want in ((0, 3), (1, 2), (-1, 1), (3650, 1)):
        at = 86400.0 * (20000 + offset)
        assert Accounts(tmp_path / "accounts", now=lambda at=at: at).today() == {"ann": want}
