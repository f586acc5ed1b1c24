"""`freehold doctor providers` shows each call before it makes it, makes one each, and writes it into the ledger."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.cli.seller import KEY
from tests.cli.test_serve import freehold
from tests.cli.test_serve_gateway import FILE
from tests.providers.standin import StandIn
from tests.providers.standin.script import Fault

HOME = {"SELLER_KEY": KEY, "FREEHOLD_OFFLINE": "0"}


@pytest.fixture
def file(tmp_path: Path, standin: StandIn) -> str:
    found = tmp_path / "gateway.toml"
    dearer = '[models.dear]\nprovider = "seller"\nmodel = "gpt-dear"\nprice = { input = 20, output = 80 }\n'
    idle = '[providers.idle]\nkind = "openai-compatible"\nurl = "http://127.0.0.1:9/v1"\n'
    found.write_text(FILE.format(url=standin.url("openai")) + dearer + idle)
    return str(found)


def test_each_call_is_shown_before_it_is_made_and_has_its_row(tmp_path: Path, file: str, standin: StandIn):
    done = freehold(tmp_path, "doctor", "providers", "--gateway", file, "--yes", "--json", **HOME)
    assert done.status == 0, done.err
    assert f"seller: 'Say yes.' to gpt-test at {standin.url('openai')}, 16 tokens at most" in done.err
    assert "idle: no model of the file is there" in done.err
    (said,) = json.loads(done.out)["providers"]
    assert (said["provider"], said["model"], said["error"]) == ("seller", "big", "")
    assert len(standin.received) == 1, "the cheapest model, once"
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        rows = db.execute("SELECT door, target, nano FROM requests").fetchall()
    assert rows == [("doctor", "big", round(said["usd"] * 1e9))] and rows[0][2] > 0


def test_nothing_is_sent_where_there_is_no_one_to_ask(tmp_path: Path, file: str, standin: StandIn):
    done = freehold(tmp_path, "doctor", "providers", "--gateway", file, **HOME)
    assert done.status == 2 and "--yes makes them" in done.err and not standin.received


def test_nothing_is_sent_offline(tmp_path: Path, file: str, standin: StandIn):
    done = freehold(tmp_path, "--offline", "doctor", "providers", "--gateway", file, "--yes", **HOME)
    assert done.status == 2 and "offline" in done.err and not standin.received


def test_a_provider_that_fails_is_asked_once_and_its_fault_has_no_key(
    tmp_path: Path, file: str, standin: StandIn
):
    standin.say.append(Fault("status", status=401, message=f"Incorrect API key provided: {KEY}"))
    done = freehold(tmp_path, "doctor", "providers", "--gateway", file, "--yes", **HOME)
    assert done.status == 1 and len(standin.received) == 1
    assert "seller" in done.out and "answers" not in done.out and KEY not in done.out + done.err
