"""`freehold graduate`: a route rents, teaches a model of its own, moves over, and goes back when the rule changes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.gathering import from_ledger, write_data
from freehold.adapt.graduation import state_of, teaching_texts
from freehold.adapt.idle_graduation import IdleGraduation, due
from freehold.adapt.run import locked
from freehold.adapt.settings import GatherSettings
from freehold.base.config import Settings
from freehold.base.types import Message
from freehold.cli.serving.hybrid import gateway_models
from freehold.route.router.bar import BarStore
from freehold.route.router.graduation import IdleTry, folder_of
from freehold.run.models.tiny import make
from freehold.run.store import Store
from freehold.run.store.contract import ignore
from freehold.serve.reports.gateway_file import read_gateway
from tests.adapt.test_finetune import few_facts
from tests.cli.seller import KEY
from tests.providers.standin import Rates, StandIn, Tariff
from tests.providers.standin.script import Answer
from tests.router.house import rows_of

pytest.importorskip("torch")
__all__ = ["few_facts"]
Run = Callable[..., tuple[int, str, str]]
FILE = """\
[providers.seller]
kind = "openai"
url = "{url}"
key = "env:SELLER_KEY"
[models.big]
provider = "seller"
model = "gpt-test"
price = {{ input = 2.0, output = 8.0 }}
may_teach = true
terms = "our contract of 2026"
[labels.customer]
stay = ["seller"]
patterns = ['ACME-\\d{{6}}']
"""
GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "graduate.md").read_text(encoding="utf-8")
# What the guide says is made shorter: a tiny student, fewer examples, less money.
SHORT = {"300": "40", '"5 USD"': '"1 USD"', "0.85": "0.8", "tickets.jsonl": "cases.jsonl"}
TRAINING = ("--lr", "2e-2", "--batch", "4", "--epochs", "4", "--replay", "1", "--max-length", "128")
TRAINING = (*TRAINING, "--rank", "4", "--threads", "1")
RULE, CHANGED = "=k!", "+q."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SELLER_KEY", KEY)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("adopt = false\n")
    return tmp_path / "home"


@pytest.fixture
def file(home: Path, standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway.toml whose provider answers by rule, and a student in the store."""
    store = Store(Settings(home=home))
    student = store.pull(str(make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")), ignore).name
    cases = [{"prompt": f"n {i}?", "exact": RULE} for i in range(900, 930)]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    path = tmp_path / "gateway.toml"
    path.write_text(FILE.format(url=standin.url("openai")) + route_of_the_guide(student))
    monkeypatch.chdir(tmp_path)
    answers(standin, RULE)
    standin.account.tariffs["gpt-test"] = Tariff(Rates(input="2.0", output="8.0"))
    return path


def route_of_the_guide(student: str) -> str:
    """Return the guide's part of gateway.toml in short form."""
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    text = re.sub(r" +#.*", "", text).replace('"qwen3:4b"', f'"{student}"')
    for long, short in SHORT.items():
        assert long in text
        text = text.replace(long, short)
    return text


def commands_of_the_guide() -> list[tuple[str, ...]]:
    """Return the guide's commands, without the program's name."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    return [tuple(line.split()[1:]) for block in blocks for line in block.splitlines()]


def answers(standin: StandIn, text: str) -> None:
    standin.behave = lambda received: Answer(pieces=(text,))


@contextmanager
def asking(home: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Give a function that asks the route."""
    monkeypatch.setenv("SELLER_KEY", KEY)  # the gateway takes it out of this process
    settings = Settings(home=home)
    with gateway_models(settings, Store(settings), file, (), "", "openai") as models:
        route = models("tickets")
        yield lambda text: "".join(c.text for c in route.stream((Message("user", text),), max_tokens=8))


def teacher_measured(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a result the route would pass the seller over: its task has a bar."""
    monkeypatch.setenv("SELLER_KEY", KEY)
    measure, *_ = commands_of_the_guide()
    assert run(*measure)[0] == 0


def graduate(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, str, str]:
    monkeypatch.setenv("SELLER_KEY", KEY)
    _, _, teach, move = commands_of_the_guide()
    return run(
        *(move if "--move" in more else teach), *TRAINING, *(each for each in more if each != "--move")
    )


def test_the_tests_below_run_the_commands_of_the_guide():
    measure, serve, teach, move = commands_of_the_guide()
    assert measure[:2] == ("bar", "run") and serve == ("serve", "--gateway", "gateway.toml")
    assert move == (*teach, "--move") and teach[0] == "graduate"


@pytest.mark.heavy
def test_a_route_rents_teaches_measures_moves_and_goes_back(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    """600 requests in all."""
    teacher_measured(run, file, monkeypatch)
    with asking(home, file, monkeypatch) as ask:
        for i in range(200):
            assert ask(f"n {i}?") == RULE
        for i in range(40):  # labelled: answered by the seller, and never kept
            ask(f"n {i} for ACME-123{i:03}?")
    status, out, err = graduate(run, file, monkeypatch, "--json")
    assert status == 0, err
    state: dict[str, Any] = json.loads(out)
    assert state["stage"] == "proposed" and state["student"]["low"] >= 0.8, state["proposal"]
    assert state["teacher"]["score"] == 1.0 and state["spent"] == 0
    assert "requests a month" in state["proposal"] and state["proposal"].endswith("move?")
    for path in Path(state["adapter"]).parent.rglob("*.jsonl"):
        assert "ACME" not in path.read_text()

    with asking(home, file, monkeypatch) as ask:  # measured, and not moved: nothing has changed
        ask("n 500?")
    assert rows_of(home / "ledger.sqlite")[-1].target == "big"
    assert graduate(run, file, monkeypatch, "--move")[:2] == (0, "house answers tickets from now on\n")

    with asking(home, file, monkeypatch) as ask:
        assert [ask(f"n {i}?") for i in range(600, 759)] == [RULE] * 159
    answers(standin, CHANGED)
    texts: list[str] = []
    for first in range(1000, 1200, 40):  # a server that is started again and again
        with asking(home, file, monkeypatch) as ask:
            texts += [ask(f"n {i}?") for i in range(first, first + 40)]
    back = texts.index(CHANGED)
    assert texts == [RULE] * back + [CHANGED] * (200 - back)  # the student, then its teacher again
    rows = rows_of(home / "ledger.sqlite")
    assert 100 < back <= 190  # three comparisons; one that a server's end cuts off is made by the next server
    assert sum(row.outcome == "whole" and row.door == "openai" for row in rows) == 600
    shadows = [row for row in rows if row.outcome == "shadow"]
    assert 6 <= len(shadows) <= 8 and shadows[0].candidates[0].reason == "agrees with house"
    assert "it is passed over since" in shadows[-1].candidates[0].reason
    reason = next(c.reason for c in rows[-1].candidates if c.target == "house")
    assert "0 of its newest 3 answers agree with big" in reason and "passed over since 20" in reason
    assert sum(row.nano for row in rows) == standin.nano  # to the nano-dollar


@pytest.mark.heavy
def test_of_two_thousand_mixed_requests_no_labelled_text_is_in_a_training_file(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Through the gateway: what it keeps, and what a graduation takes of that."""
    teacher_measured(run, file, monkeypatch)
    draw, labelled = random.Random(3), 0
    with asking(home, file, monkeypatch) as ask:
        for i in range(2000):
            secret = draw.random() < 0.3
            labelled += secret
            ask(f"SECRET {i} of ACME-{i:06}?" if secret else f"n {i}?")
    rows = [row for row in rows_of(home / "ledger.sqlite") if row.door == "openai"]
    assert len(rows) == 2000 and sum(bool(row.labels) for row in rows) == labelled > 500
    data = from_ledger(home / "ledger.sqlite", "tickets", GatherSettings(apart=(tmp_path / "cases.jsonl",)))
    texts = teaching_texts(data, "house")
    # The cases are n 900 to n 929.
    cases = sum(row.labels == () for row in rows[900:930])
    taken = len(texts.data.examples) + len(texts.data.tests)
    assert taken + sum(data.left_out.values()) == 2000 - labelled and data.left_out["in a test file"] >= cases
    write_data(texts.data, tmp_path / "data", "tickets")
    files = [*(tmp_path / "data").iterdir(), *home.glob("ledger*")]
    assert len(files) > 4 and not any(b"SECRET" in path.read_bytes() for path in files)


# --- by itself --------------------------------------------------------------------------------------


class IdleServer:
    """What teaches a server's routes, with the processes that it starts, and requests that come when a test says so."""

    def __init__(self, home: Path, file: Path) -> None:
        self.requests = False
        gateway = read_gateway(Settings(home=home), file, keys=False)
        options = (*TRAINING[:5], "40", *TRAINING[6:])
        self.work = IdleGraduation(
            home, file, lambda: gateway, lambda: self.requests, lambda: dict(os.environ), options
        )

    async def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Run until a condition holds."""
        task = asyncio.create_task(self.work.run())
        async with asyncio.timeout(seconds):
            while not condition() and not task.done():
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.heavy
def test_a_quiet_server_teaches_is_cut_off_by_requests_and_continues(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    file.write_text(file.read_text().replace('spend = "1 USD"', 'spend = "1 USD", idle = "500ms"'))
    teacher_measured(run, file, monkeypatch)
    with asking(home, file, monkeypatch) as ask:
        for i in range(60):
            ask(f"n {i}?")
    monkeypatch.setenv("SELLER_KEY", KEY)
    folder = folder_of(home, "tickets")

    def steps() -> list[int]:
        lines = [
            line
            for path in folder.glob("*/.model.part/steps.jsonl")
            for line in path.read_text().splitlines()
        ]
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    server = IdleServer(home, file)
    server.requests = True  # nothing begins while a request is answered
    with pytest.raises(TimeoutError):
        asyncio.run(server.until(lambda: bool(server.work.now.route), 2.0))
    server.requests = False

    async def cut_off() -> None:
        task = asyncio.create_task(server.until(lambda: server.requests and not server.work.now.route))
        while len(steps()) < 5:
            await asyncio.sleep(0.05)
        assert server.work.now.route == "tickets"
        server.requests = True
        await task

    asyncio.run(cut_off())
    before = steps()
    (part,) = folder.glob("*/.model.part")
    assert before and (part / "checkpoint.npz").exists() and state_of(home, "tickets") is None
    assert due(home, read_gateway(Settings(home=home), file, keys=False)) is not None
    with asking(home, file, monkeypatch) as ask:  # newer texts begin no other run
        for i in range(60, 80):
            ask(f"n {i}?")
    monkeypatch.setenv("SELLER_KEY", KEY)
    server.requests = False
    asyncio.run(server.until(lambda: state_of(home, "tickets") is not None and not server.work.now.route))
    state = state_of(home, "tickets")
    assert state is not None and state.stage == "proposed" and Path(state.adapter).parent == part.parent
    whole = [
        json.loads(line)["step"] for line in (Path(state.adapter) / "steps.jsonl").read_text().splitlines()
    ]
    assert whole == list(range(1, len(whole) + 1)) and len(whole) > len(before)
    assert IdleTry.of(home, "tickets").ended  # type: ignore[union-attr]
    assert BarStore(home).find("tickets", "house") is None  # nothing moved by itself


def test_a_teacher_whose_terms_refuse_is_refused_with_the_clause(
    run: Run, file: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    text = file.read_text().replace('may_teach = true\nterms = "our contract of 2026"\n', "")
    file.write_text(text)
    status, _, err = graduate(run, file, monkeypatch)
    assert status == 1 and "§3.3(e)" in err and "qwen3" in err and not standin.received


@pytest.mark.heavy
def test_missing_answers_are_bought_within_the_limit_and_never_twice(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    other = file.read_text().replace("may_teach = true", "may_teach = false")
    file.write_text(other)
    teacher_measured(run, file, monkeypatch)
    with asking(home, file, monkeypatch) as ask:
        for i in range(60):
            ask(f"n {i}?")
    # Now the contract allows it: answers of before may still not teach, so the same questions are asked again.
    file.write_text(other.replace("may_teach = false", "may_teach = true").replace('"1 USD"', '"0.0045 USD"'))
    asked = len(standin.received)
    status, _, err = graduate(run, file, monkeypatch)
    assert status == 1 and "examples that may teach" in err and "spent" in err, err
    few = len(standin.received) - asked
    assert 0 < few < 40
    file.write_text(file.read_text().replace('"0.0045 USD"', '"5 USD"'))
    status, out, err = graduate(run, file, monkeypatch, "--json")
    assert status == 0, err
    state = json.loads(out)
    assert state["examples"] >= 40
    bought = [row for row in rows_of(home / "ledger.sqlite") if row.door == "graduate"]
    assert len(bought) == len(
        {json.loads(r.body)["messages"][-1]["content"] for r in standin.received[60 : 60 + len(bought)]}
    )
    assert sum(row.nano for row in rows_of(home / "ledger.sqlite")) == standin.nano
    with sqlite3.connect(home / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM requests WHERE door = 'bar'").fetchone()[0] >= 30


def test_what_cannot_graduate_is_refused_in_one_line(
    run: Run, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    status, _, err = run("graduate", "tickts", "--gateway", str(file))
    assert status == 2 and "routes with graduate: tickets" in err
    status, _, err = graduate(run, file, monkeypatch, "--move")
    assert status == 2 and "has no student yet" in err
    status, _, err = graduate(run, file, monkeypatch)
    assert status == 1 and "there is no ledger" in err
    file.write_text(file.read_text().replace("graduate = {", "#"))
    status, _, err = graduate(run, file, monkeypatch)
    assert status == 2 and "not downloaded" in err


@pytest.mark.heavy
def test_an_empty_route_is_one_line_and_nothing_is_asked(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    teacher_measured(run, file, monkeypatch)  # the ledger has rows now, none of them of the route
    asked = len(standin.received)
    status, out, err = graduate(run, file, monkeypatch)
    (line,) = (each for each in err.splitlines() if each.startswith("error: "))
    assert status in (1, 2) and not out and line and "tickets" in err and "Traceback" not in err, err
    with asking(home, file, monkeypatch) as ask:
        for i in range(12):
            ask(f"n {i}? ACME-12345{i % 10}")  # labelled: no text is kept
    status, out, err = graduate(run, file, monkeypatch)
    (line,) = (each for each in err.splitlines() if each.startswith("error: "))
    assert status in (1, 2) and not out and line and "tickets" in err and "Traceback" not in err, err
    assert len(standin.received) == asked + 12
    assert state_of(home, "tickets") is None and not list(folder_of(home, "tickets").glob("*/data"))


def test_two_graduations_of_a_route_at_once_are_refused(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    folder = folder_of(home, "tickets")
    folder.mkdir(parents=True)
    with locked(folder / ".lock", folder):
        status, out, err = graduate(run, file, monkeypatch)
    assert status == 2 and not out and "another process works on" in err and not standin.received


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('targets = ["house", "big"]', 'targets = ["big", "house"]', "no model of its own before"),
        ('keep = "text"\n', "", "no text is kept"),
        ('task = "tickets"\n', "", "the route has no task"),
        ('"1 USD"', '"1 EUR"', '"1 EUR" is not an amount'),
        ("at = 40", "at = 4", "4 is not within 8..1,000,000"),
    ],
)
def test_a_route_that_cannot_teach_is_a_mistake_of_the_file(
    run: Run, file: Path, before: str, after: str, message: str
):
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    status, out, err = run("gateway", "check", str(file))
    assert status == 1 and message in out + err
