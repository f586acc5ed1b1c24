"""`freehold bar`: cases asked of owned and rented models, results that hold or are void, labels that keep cases in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.route.router.bar import BarStore
from tests.cli.seller import KEY, SELLER
from tests.providers.standin import StandIn
from tests.providers.standin.script import Answer, Fault

Run = Callable[..., tuple[int, str, str]]
FILE = (
    SELLER
    + """\
patterns = ['ACME-\\d{{6}}']
[tasks.sums]
bar = 0.5
file = "sums.jsonl"
"""
)
CASES = [{"prompt": f"{i} + {i}?", "exact": str(2 * i)} for i in range(8)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv("SELLER_KEY", KEY)
    (tmp_path / "config.toml").write_text("adopt = false\n")
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, CASES)))
    return tmp_path


@pytest.fixture
def file(home: Path, standin: StandIn) -> str:
    found = home / "gateway.toml"
    found.write_text(FILE.format(url=standin.url("openai")))
    return str(found)


def says(standin: StandIn, right: int, of: int = len(CASES)) -> None:
    standin.say.extend(Answer(pieces=(str(2 * i if i < right else "no"),)) for i in range(of))


def test_rented_model_is_measured_through_the_gateway_and_booked(
    run: Run, file: str, standin: StandIn, home: Path
):
    says(standin, 7)
    status, out, err = run("bar", "run", "sums", "--model", "big", "--gateway", file)
    assert status == 0 and "big on sums: 0.875 (0.529 to 0.978, 95% CI) on 8 cases" in out
    assert "reaches the bar of 0.5" in out and "8 of 8" in err
    with sqlite3.connect(home / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM requests").fetchone() == (8,)
    kept = BarStore(home).find("sums", "big")
    assert kept and kept.model.rented and (kept.method, kept.cases) == ("wilson", 8)
    assert kept.model.weights.endswith(" gpt-test")


def test_stopped_run_continues_where_it_was(
    run: Run, file: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
):
    standin.say.extend([Answer(pieces=("0",)), Answer(pieces=("2",)), *[Fault("status", status=500)] * 4])
    status, _, err = run("bar", "run", "sums", "--model", "big", "--gateway", file)
    assert status == 1 and "500" in err
    asked = len(standin.received)
    monkeypatch.setenv("SELLER_KEY", KEY)  # the verb took it out of this process
    standin.say.clear()
    standin.say.extend(Answer(pieces=(str(2 * i),)) for i in range(2, 8))
    status, out, _ = run("bar", "run", "sums", "--model", "big", "--gateway", file, "--json")
    assert status == 0 and json.loads(out)["score"] == 1.0 and len(standin.received) == asked + 6


def test_private_case_is_never_sent_to_a_rented_model(run: Run, file: str, standin: StandIn, home: Path):
    (home / "sums.jsonl").write_text(json.dumps({"prompt": "What is ACME-123456?", "exact": "secret"}))
    status, _, err = run("bar", "run", "sums", "--model", "big", "--gateway", file)
    assert status == 1 and "private" in err and not standin.received
    assert BarStore(home).all() == [] and "ACME-123456" not in err


def test_label_of_the_command_holds_too(run: Run, file: str, standin: StandIn):
    status, _, err = run("bar", "run", "sums", "--model", "big", "--gateway", file, "--label", "private")
    assert status == 1 and "private" in err and not standin.received
    status, _, err = run("bar", "run", "sums.jsonl", "--model", "big", "--label", "private")
    assert status == 2


def test_rented_judge_is_refused_unless_it_is_allowed(run: Run, file: str, standin: StandIn, home: Path):
    (home / "sums.jsonl").write_text(json.dumps({"prompt": "Say hello.", "judge": "It greets."}))
    command = ("bar", "run", "sums", "--model", "big", "--gateway", file, "--judge", "big")
    status, _, err = run(*command)
    assert status == 2 and "rented" in err and not standin.received
    standin.say.extend([Answer(pieces=("Hello",)), Answer(pieces=('{"pass": true}',))])
    status, out, _ = run(*command, "--allow-rented-judge", "--json")
    assert status == 0 and json.loads(out)["score"] == 1.0 and json.loads(out)["judge"].startswith("big@")


@pytest.mark.parametrize("by", ["prompt", "answer", "label"])
def test_private_case_never_reaches_a_rented_judge_that_is_allowed(
    run: Run, file: str, standin: StandIn, home: Path, by: str
):
    prompt = "What is ACME-123456?" if by == "prompt" else "What is it?"
    (home / "sums.jsonl").write_text(json.dumps({"prompt": prompt, "judge": "It answers."}))
    with StandIn() as box:
        box.say.append(Answer(pieces=("It is ACME-654321." if by == "answer" else "A secret.",)))
        owned = (
            f'[providers.box]\nkind = "openai-compatible"\nurl = "{box.url("compatible")}"\nowned = true\n'
        )
        owned += '[models.house]\nprovider = "box"\nmodel = "m"\n'
        Path(file).write_text(Path(file).read_text() + owned)
        command = ("bar", "run", "sums", "--model", "house", "--gateway", file, "--judge", "big")
        label = ("--label", "private") if by == "label" else ()
        status, _, err = run(*command, "--allow-rented-judge", *label)
        assert status == 1 and "label private does not allow seller" in err and "ACME-" not in err
        assert len(box.received) == 1 and not standin.received
    assert BarStore(home).all() == []


def test_list_says_what_holds_and_what_is_void_and_why(run: Run, file: str, standin: StandIn, home: Path):
    assert "no results" in run("bar", "list", "--gateway", file)[2]
    says(standin, 8)
    run("bar", "run", "sums", "--model", "big", "--gateway", file)
    (found,) = json.loads(run("bar", "list", "--gateway", file, "--json")[1])["results"]
    assert found["holds"] and found["void"] == ""
    sound = Path(file).read_text()
    Path(file).write_text(sound.replace("gpt-test", "gpt-next"))
    assert "void: the model's weights changed" in run("bar", "list", "--gateway", file)[1]
    Path(file).write_text(sound)
    with (home / "sums.jsonl").open("a") as cases:
        cases.write("\n" + json.dumps({"prompt": "9 + 9?", "exact": "18"}))
    assert "void: its task file changed" in run("bar", "list", "--gateway", file)[1]
    assert "no gateway.toml names the model" in run("bar", "list")[1]


def test_bad_names_are_refused_with_the_known_ones(run: Run, file: str, home: Path):
    status, _, err = run("bar", "run", "suns", "--model", "big", "--gateway", file)
    assert status == 2 and "tasks with a file: sums" in err
    assert run("bar", "run", "sums", "--model", "none", "--gateway", file)[0] == 1
    (home / "sums.jsonl").write_text('{"prompt": "x"}')
    status, _, err = run("bar", "run", "sums", "--model", "big", "--gateway", file)
    assert status == 2 and "line 1" in err


def test_owned_model_is_measured_in_this_process(run: Run, home: Path):
    assert run("make-tiny", "llama", "--out", str(home / "tiny"))[0] == 0
    model = str(home / "tiny" / "llama.gguf")
    (home / "c.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"p{i}", "regex": ".*", "max_tokens": 2}) for i in "ab")
    )
    status, out, _ = run("bar", "run", str(home / "c.jsonl"), "--model", model, "--as", "any", "--json")
    found = json.loads(out)
    assert status == 0 and (found["task"], found["cases"], found["model"]["rented"]) == ("any", 2, False)
    assert found["model"]["weights"] and found["model"]["quantization"]
