"""`freehold cost --from-ledger`: what was paid is the ledger's sum; what it would have cost elsewhere is a range."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from freehold.base.types import Usage
from tests.cli.test_ledger import fill
from tests.router.ledger.rows import row

GATEWAY = """
[providers.openai]
kind = "openai"
key = "env:OPENAI_API_KEY"
[providers.box]
kind = "openai-compatible"
url = "http://10.0.0.7:8000/v1"
owned = true
[models.big]
provider = "openai"
model = "gpt-x"
price = { input = 2.0, output = 10.0 }
[models.small]
provider = "openai"
model = "gpt-x-mini"
price = { input = 0.2, output = 1.0 }
[models.own]
provider = "box"
model = "qwen3:8b"
[routes.chat]
targets = ["own", "small", "big"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    path = tmp_path / "gateway.toml"
    path.write_text(GATEWAY)
    return str(path)


def busy(home: Path) -> None:
    now, usage = time.time(), Usage(1000, 100)
    owned = {"place": "box", "owned": True, "left_house": False, "nano": 0, "target": "own"}
    fill(
        home,
        row(at=now - 100, usage=usage, target="small", nano=300_000),
        row(at=now - 90, usage=usage, whole_s=2.0, **owned),
        row(at=now - 80, usage=usage, whole_s=2.0, **owned),
    )


def test_all_on_the_dearest_is_the_dearest_price_times_the_ledgers_tokens(run, tmp_path, file):
    busy(tmp_path)
    status, out, err = run("cost", "--from-ledger", "--gateway", file, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["requests"] == 3 and found["rented"] == 0.0003
    dearest = found["against"][0]
    assert dearest["what"] == "big" and dearest["cost"]["mid"] == pytest.approx(3 * 0.003)
    assert dearest["cost"]["low"] < dearest["cost"]["mid"] < dearest["cost"]["high"]
    assert found["tokens_per_second"]["box"] == pytest.approx(50.0)
    assert len(found["against"]) == 4 and "counts as free" in found["notes"][0]


def test_machine_of_an_owned_provider_costs_at_least_its_busy_time(run, tmp_path, file):
    busy(tmp_path)
    args = (
        "cost",
        "--from-ledger",
        "--gateway",
        file,
        "--owned",
        "box=h100",
        "--hourly",
        "3.6",
        "--share",
        "0",
    )
    found = json.loads(run(*args, "--json")[1])
    assert found["owned"]["mid"] == pytest.approx(4 * 0.001)
    assert found["machines"]["box"]["dollars_an_hour"]["mid"] == 3.6
    status, out, _ = run(*args)
    assert status == 0
    assert (
        "busy for 4.0 s, 50.0 tokens/s while busy on h100" in out and "all on the most expensive model" in out
    )


@pytest.mark.parametrize(
    "args, said",
    [
        (("--owned", "openai=h100"), "'openai' is not an owned place"),
        (("--owned", "box"), "write PLACE=HARDWARE"),
        (("--csv", "traffic.csv"), "--from-ledger goes without"),
    ],
)
def test_options_that_say_nothing_of_a_ledger_are_refused(run, tmp_path, file, args, said):
    busy(tmp_path)
    status, _, err = run("cost", "--from-ledger", "--gateway", file, *args)
    assert status == 2 and said in err


def test_home_without_a_ledger_says_what_writes_one(run, file):
    status, _, err = run("cost", "--from-ledger", "--gateway", file)
    assert status and "there is no ledger" in err
