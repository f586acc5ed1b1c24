"""`freehold graduate`: a route rents, teaches a model of its own, moves over, and goes back when the rule changes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import Settings
from freehold.base.types import Message
from freehold.cli.serving.hybrid import gateway_models
from freehold.run.models.tiny import make
from freehold.run.store import Store
from freehold.run.store.contract import ignore
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
[models.house]
local = "house"
[labels.customer]
stay = ["seller"]
patterns = ['ACME-\\d{{6}}']
[tasks.tickets]
bar = 0.8
file = "cases.jsonl"
[routes.tickets]
targets = ["house", "big"]
task = "tickets"
keep = "text"
graduate = {{ student = "{student}", at = 40, spend = "1 USD" }}
"""
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
def file(home: Path, standin: StandIn, tmp_path: Path) -> Path:
    """A gateway.toml whose provider answers by rule, and a student in the store."""
    store = Store(Settings(home=home))
    student = store.pull(str(make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")), ignore).name
    cases = [{"prompt": f"n {i}?", "exact": RULE} for i in range(900, 930)]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    path = tmp_path / "gateway.toml"
    path.write_text(FILE.format(url=standin.url("openai"), student=student))
    answers(standin, RULE)
    standin.account.tariffs["gpt-test"] = Tariff(Rates(input="2.0", output="8.0"))
    return path


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
    assert run("bar", "run", "tickets", "--model", "big", "--gateway", str(file))[0] == 0


def graduate(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, str, str]:
    monkeypatch.setenv("SELLER_KEY", KEY)
    return run("graduate", "tickets", "--gateway", str(file), *TRAINING, *more)


@pytest.mark.heavy
def test_a_route_rents_teaches_measures_moves_and_goes_back(
    run: Run, file: Path, home: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    teacher_measured(run, file, monkeypatch)
    with asking(home, file, monkeypatch) as ask:
        for i in range(150):
            assert ask(f"n {i}?") == RULE
        for i in range(30):  # labelled: answered by the seller, and never kept
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
        assert [ask(f"n {i}?") for i in range(600, 700)] == [RULE] * 100
        answers(standin, CHANGED)
        texts = [ask(f"n {i}?") for i in range(700, 900)]
        assert texts[0] == RULE and texts[-1] == CHANGED  # the student, then its teacher again
    rows = rows_of(home / "ledger.sqlite")
    shadows = [row for row in rows if row.outcome == "shadow"]
    assert 4 <= len(shadows) <= 6 and shadows[0].candidates[0].reason == "agrees with house"
    assert "it is passed over since" in shadows[-1].candidates[0].reason
    reason = next(c.reason for c in rows[-1].candidates if c.target == "house")
    assert "0 of its newest 3 answers agree with big" in reason and "passed over since 20" in reason
    assert sum(row.nano for row in rows) == standin.nano  # to the nano-dollar


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
