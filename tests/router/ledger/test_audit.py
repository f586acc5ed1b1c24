"""The audit counts what it is sure of, names whom a request reached, and says what it cannot know."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from freehold.base.errors import LedgerUnavailable, ModelNotFound
from freehold.route.providers.contract import HOUSE, SetLabel
from freehold.route.router.ledger.rows import Attempt, LabelAudit, LedgerRow, audit
from freehold.route.router.ledger.store import Ledger
from tests.router.ledger.rows import NOON, row

PRIVATE = (SetLabel("private", "key alice"),)
AT_HOME = {"place": HOUSE, "owned": True, "left_house": False, "labels": PRIVATE}


def stay(**changed) -> LedgerRow:
    return row(**{**AT_HOME, "attempts": (Attempt("coder", HOUSE, "", 0, 0.1),), **changed})


def audited(tmp_path: Path, *rows: LedgerRow, label: str = "private", since: float = NOON - 10) -> LabelAudit:
    path = tmp_path / "ledger.sqlite"

    async def fill() -> None:
        ledger = Ledger.open(path)
        for each in rows:
            await ledger.book(each)
        await ledger.close()

    asyncio.run(fill())
    return audit(path, label, since, NOON + 10)


def test_what_stayed_is_counted_and_nothing_left(tmp_path: Path):
    found = audited(tmp_path, stay(), stay(), stay(outcome="refused", attempts=(), place=""), row())
    assert (found.rows, found.sure, found.left, found.all_rows) == (3, 3, 0, 4)
    assert found.stayed_at == {HOUSE: 2, "": 1} and found.left_to == {}


def test_what_left_is_named_with_every_place_it_reached(tmp_path: Path):
    tries = (Attempt("big", "openai", "server", 500, 0.1), Attempt("m", "mistral", "", 200, 0.1))
    found = audited(tmp_path, row(labels=PRIVATE, attempts=tries, place="mistral"), stay())
    assert (found.left, found.stayed, found.left_to) == (1, 1, {"mistral": 1, "openai": 1})
    assert found.departures[0].places == ("mistral", "openai")


def test_an_owned_provider_is_not_among_those_it_left_to(tmp_path: Path):
    at_box = stay(place="box", attempts=(Attempt("b", "box", "", 200, 0.1),))
    tries = (Attempt("b", "box", "server", 500, 0.1), Attempt("big", "openai", "", 200, 0.1))
    found = audited(tmp_path, at_box, row(labels=PRIVATE, attempts=tries))
    assert found.left_to == {"openai": 1} and found.stayed_at == {"box": 1}


@pytest.mark.parametrize("labels", ["privat", "private2", "a,private", "rivate", "%"])
def test_labels_are_compared_whole(tmp_path: Path, labels: str):
    other = tuple(SetLabel(name, "header") for name in labels.split(",") if name != "private")
    assert audited(tmp_path, stay(labels=other)).rows == 0


def test_one_label_of_several_is_found(tmp_path: Path):
    several = tuple(SetLabel(name, "header") for name in ("eu", "private", "zebra"))
    for label in ("eu", "private", "zebra"):
        assert audited(tmp_path, stay(labels=several), label=label).rows >= 1


def test_other_times_are_left_out(tmp_path: Path):
    found = audited(tmp_path, stay(at=NOON - 100), stay(at=NOON), since=NOON - 50)
    assert found.rows == 1 and found.begins == NOON - 100


def test_rows_of_a_killed_server_are_not_known(tmp_path: Path):
    found = audited(tmp_path, stay(), row(labels=PRIVATE, outcome="lost", attempts=(), left_house=True))
    assert (found.rows, found.sure, found.unknown, found.left) == (2, 1, 1, 0)


def test_a_server_that_was_killed_is_a_gap(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    if (child := os.fork()) == 0:
        Ledger.open(path)
        os._exit(0)
    os.waitpid(child, 0)
    asyncio.run(Ledger.open(path).close())
    found = audit(path, "private", 0.0, 4e9)
    assert len(found.deaths) == 1 and found.begins is None


def test_a_clean_end_is_no_gap(tmp_path: Path):
    audited(tmp_path)
    assert audited(tmp_path).deaths == ()


def test_no_ledger_is_said(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="there is no ledger"):
        audit(tmp_path / "none.sqlite", "private", 0, 1)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_file_that_is_no_ledger_is_said(tmp_path: Path):
    (tmp_path / "a.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        audit(tmp_path / "a.sqlite", "private", 0, 1)


def test_it_reads_while_a_server_writes(tmp_path: Path):
    audited(tmp_path, stay())
    path = tmp_path / "ledger.sqlite"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert audit(path, "private", NOON - 10, NOON + 10).rows == 1
    writer.close()
