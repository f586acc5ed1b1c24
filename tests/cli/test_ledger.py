"""`freehold ledger` sums rows exactly, shows one request whole, and works beside a server that writes."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from pathlib import Path

import pytest

from freehold.route.router.ledger.rows import LedgerRow
from freehold.route.router.ledger.store import Ledger
from tests.router.ledger.rows import row


def fill(home: Path, *rows: LedgerRow) -> None:
    async def book() -> None:
        ledger = Ledger.open(home / "ledger.sqlite")
        for each in rows:
            await ledger.book(each)
        await ledger.close()

    asyncio.run(book())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return tmp_path


def test_sums_are_exact_and_the_dearest_group_is_first(run, home):
    now = time.time()
    fill(
        home,
        row(at=now - 60, target="small", nano=1),
        row(at=now - 50, target="big", nano=3_000_000_007),
        row(at=now - 40, target="big", nano=104, estimated=True, outcome="left"),
        row(at=now - 8 * 86400, target="big", nano=999),
    )
    status, out, _ = run("ledger")
    assert status == 0
    head, big, small, total = (line.split() for line in out.splitlines())
    assert head[:4] == ["MODEL", "REQUESTS", "WHOLE", "USD"]
    assert big[:5] == ["big", "2", "1", "3.000000111", "0.000000104"]
    assert small[:4] == ["small", "1", "1", "0.000000001"]
    assert total[:4] == ["total", "3", "2", "3.000000112"]


def test_json_has_whole_nano_dollars_by_every_group(run, home):
    now = time.time()
    fill(home, row(at=now - 60, nano=7), row(at=now - 50, key="bob", labels=(), nano=5))
    groups = "model,route,key,task,place,label,door,outcome,day"
    status, out, _ = run("ledger", "--by", groups, "--json")
    found = json.loads(out)
    assert status == 0 and found["total"]["nano"] == 12 and found["by"] == groups.split(",")
    assert {(one["key"], one["label"], one["nano"]) for one in found["sums"]} == {
        ("alice", "eu", 7),
        ("bob", "", 5),
    }


def test_csv_has_a_head_and_a_line_for_each_group(run, home):
    fill(home, row(at=time.time() - 60))
    _, out, _ = run("ledger", "--by", "key,task", "--csv")
    (line,) = csv.DictReader(io.StringIO(out))
    assert (line["key"], line["task"], line["rows"], line["nano"]) == ("alice", "support", "1", "1000")


@pytest.mark.parametrize("name", ["req_1", "1", "chatcmpl-1", "chatcmpl-9"])
def test_request_is_found_by_any_of_its_ids_and_shown_whole(run, home, name):
    one = row(at=time.time() - 60)
    fill(
        home,
        one,
        row(
            at=time.time() - 59, outcome="shadow", request_id="", answer_id="", upstream_id="", parent=one.id
        ),
    )
    status, out, _ = run("ledger", "show", name)
    assert status == 0
    for said in (
        "bar 0.85",
        "first of 1",
        "eu (by header)",
        "0.000001 USD",
        "openai-terms; answers may not train",
    ):
        assert said in out
    assert f"beside              {one.id}" in out and "sent to a provider  " in out
    assert json.loads(run("ledger", "show", name, "--json")[1])["rows"][0]["id"] == one.id


def test_unknown_request_and_group_are_refused_by_name(run, home):
    fill(home, row(at=time.time()))
    status, _, err = run("ledger", "show", "req_404")
    assert status and "no request 'req_404'" in err
    status, _, err = run("ledger", "--by", "colour")
    assert status == 2 and "model, route, key" in err


@pytest.mark.parametrize("args", [("ledger",), ("ledger", "show", "x"), ("ledger", "--csv")])
def test_home_without_a_ledger_says_what_writes_one(run, home, args):
    status, out, err = run(*args)
    assert status and not out and "there is no ledger" in err and "--gateway writes one" in err


def test_rows_of_a_running_server_are_seen_at_once(run, home):
    async def body() -> None:
        ledger = Ledger.open(home / "ledger.sqlite")
        for count in (1, 2):
            await ledger.book(row(at=time.time()))
            found = json.loads(run("ledger", "--json")[1])
            assert found["total"]["rows"] == count
        await ledger.close()

    asyncio.run(body())


def test_empty_span_says_so(run, home):
    fill(home, row(at=time.time() - 3600))
    assert run("ledger", "--since", "1m")[1].startswith("no requests since ")
