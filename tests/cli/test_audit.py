"""`freehold audit` says what left and to whom, counts what it is sure of, and exits 1 where something left."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from freehold.route.providers.contract import HOUSE, SetLabel
from freehold.route.router.ledger.rows import Attempt, LedgerRow
from freehold.route.router.ledger.store import Ledger
from tests.router.ledger.rows import row

PRIVATE = (SetLabel("private", "header"),)


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))

    def fill(*rows: LedgerRow) -> None:
        async def book() -> None:
            ledger = Ledger.open(tmp_path / "ledger.sqlite")
            for each in rows:
                await ledger.book(each)
            await ledger.close()

        asyncio.run(book())

    return fill


def stayed(at: float) -> LedgerRow:
    home = (Attempt("coder", HOUSE, "", 0, 0.1),)
    return row(at=at, labels=PRIVATE, place=HOUSE, owned=True, left_house=False, attempts=home)


def test_nothing_left_with_the_count_it_is_sure_of(run, fill):
    now = time.time()
    fill(stayed(now - 60), stayed(now - 50), row(at=now - 40))
    status, out, _ = run("audit", "--label", "private")
    assert status == 0
    assert out.startswith("none of 2 requests labelled private went to a provider\n")
    assert "3 requests in all" in out and "ledger begins" in out


def test_what_left_is_said_and_exits_1(run, fill):
    now = time.time()
    fill(stayed(now - 60), row(at=now - 40, labels=PRIVATE))
    status, out, _ = run("audit", "--label", "private", "--since", "1h")
    assert status == 1
    assert out.startswith("1 of 2 requests labelled private went to a provider: openai 1\n")


def test_a_misspelt_label_is_told_those_that_there_are(run, fill):
    fill(stayed(time.time() - 60))
    status, out, _ = run("audit", "--label", "privat")
    assert status == 0
    assert out.startswith("no requests labelled privat\nlabels that requests had: private\n")


def test_json_has_every_count(run, fill):
    fill(stayed(time.time() - 60))
    status, out, _ = run("audit", "--label", "private", "--since", "1h", "--json")
    found = json.loads(out)
    assert status == 0
    assert {name: found[name] for name in ("sure", "rows", "stayed", "left", "unknown", "deaths")} == {
        "sure": 1,
        "rows": 1,
        "stayed": 1,
        "left": 0,
        "unknown": 0,
        "deaths": [],
    }


def test_no_ledger_is_an_error_with_a_way_out(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    status, _, err = run("audit", "--label", "private")
    assert status != 0 and "there is no ledger" in err and "--gateway" in err
