"""`freehold doctor compat`: its table is true of a good server, a failing one, and a model that cannot do it all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import EngineLost
from freehold.cli import main
from freehold.cli.clients import compat
from freehold.cli.clients.compat import CHECKS
from freehold.run.store.create import copy
from freehold.serve.http.core.keys import Ring
from tests.cli.test_serve import environment
from tests.http.conftest import Running, start
from tests.http.fakes import Script, failing
from tests.http.ollama_rig import with_tiny
from tests.http.test_door import key, secret

MODEL = "fake:1b"
COLOUR = Script(text='{"colour": "red"}')
QUICK = ("openai", "anthropic", "ollama")  # the others take seconds to import
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FREEHOLD_API_KEY", raising=False)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function from a script to a server whose model lies in its store too, as `show` wants it."""
    made: list[Running] = []

    def make(script: Script, calls: bool = False, **settings: Any) -> Running:
        server = start(tmp_path / str(len(made)), script, **settings)
        made.append(server)
        copy(with_tiny(server.store, tmp_path / f"files{len(made)}"), "tiny", MODEL)
        loaded = server.models.served[MODEL].loaded
        loaded.info = replace(loaded.info, can_call=calls)
        return server

    yield make
    for each in made:
        each.end()


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[tuple[str, str], Row]]]:
    """Return a function from a server and arguments to the exit status and the rows."""

    def asked(server: Running, *args: str, sdks: tuple[str, ...] = QUICK) -> tuple[int, Any]:
        only = [word for sdk in sdks for word in ("--only", sdk)]
        status = main.run(["doctor", "compat", MODEL, "--url", f"{server.url}/v1", "--json", *only, *args])
        said = json.loads(capsys.readouterr().out)
        assert said["schema"] == 1 and said["model"] == MODEL and said["ok"] is (status == 0)
        return status, {(row["sdk"], row["feature"]): row for row in said["rows"]}

    return asked


@pytest.mark.heavy
def test_what_a_server_has_is_green_and_what_its_model_cannot_do_is_no_row_of_either_colour(serving, table):
    status, rows = table(serving(COLOUR))
    assert set(rows) == {(sdk, feature) for sdk in QUICK for feature in CHECKS[sdk]}
    for (_, feature), row in rows.items():
        assert row["ok"] is (None if feature == "tools" else True), row
    assert status == 0 and rows["openai", "tools"]["reason"] == f"{MODEL} has no tools"


@pytest.mark.heavy
def test_a_model_that_calls_tools_is_asked_to(serving, table):
    right, wrong = (("weather", '{"city": "Paris"}'),), (("weather", '{"town": 1}'),)
    for calls, ok in ((right, True), (wrong, False)):
        _, rows = table(serving(Script(calls=calls), calls=True))
        assert [row["ok"] for (_, feature), row in rows.items() if feature == "tools"] == [ok] * 3, rows


def test_a_failure_is_red_with_what_the_sdk_raised(serving, table):
    status, rows = table(serving(failing("start", EngineLost("the engine is gone"))))
    assert status == 1 and rows["openai", "models"]["ok"] and rows["openai", "embeddings"]["ok"]
    for sdk in QUICK:
        assert rows[sdk, "chat"]["ok"] is False and "the engine is gone" in rows[sdk, "chat"]["reason"]


def test_an_answer_that_breaks_its_schema_is_red(serving, table):
    status, rows = table(serving(Script(text='{"colour": "mauve"}')))
    assert status == 1
    assert {k for k, row in rows.items() if row["ok"] is False} == {
        ("openai", "structured"),
        ("ollama", "structured"),
    }


@pytest.mark.heavy
def test_a_wrong_key_is_red_everywhere(serving, table):
    server = serving(COLOUR, keys=Ring([key("ann")]))
    status, rows = table(server, "--key", "wrong-0123456789abcdef", sdks=("openai", "ollama"))
    assert status == 1 and not any(row["ok"] for row in rows.values())
    assert table(server, "--key", secret("ann"), sdks=("openai", "ollama"))[0] == 0


def test_an_sdk_that_is_not_installed_is_said_to_be(serving, table, monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat.metadata, "version", version)
    status, rows = table(serving(COLOUR), sdks=("anthropic",))
    assert status == 0 and rows["anthropic", ""]["reason"] == "not installed"


def test_the_table_for_people_has_a_line_a_row_and_the_sum_behind_it(serving, capsys):
    server = serving(COLOUR)
    assert main.run(["doctor", "compat", MODEL, "--url", server.url, "--only", "openai"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(CHECKS["openai"])
    assert " -      fake:1b has no tools" in shown.out and "9 green, 0 red" in shown.err


@pytest.mark.parametrize(
    "args, status, part",
    [
        (["--url", "http://127.0.0.1:9"], 2, "a model is missing"),
        ([MODEL, "--url", "http://127.0.0.1:9"], 1, "no server answers at http://127.0.0.1:9"),
        ([MODEL, "--only", "opnai"], 2, "'opnai' is not a checked SDK"),
    ],
)
def test_what_cannot_be_asked_is_said(capsys, args, status, part):
    assert main.run(["doctor", "compat", *args]) == status
    assert part in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("name, tools", [("smollm2:135m", None), ("qwen2.5-coder:0.5b", True)])
def test_every_sdk_is_green_with_a_real_model_on_a_server_of_its_own(
    model_path, tmp_path, capsys, monkeypatch, name, tools
):
    path = model_path(name)
    for variable, value in environment(tmp_path).items():
        monkeypatch.setenv(variable, value)
    assert main.run(["pull", str(path)]) == 0
    model = capsys.readouterr().out.split()[0]
    before = dict(os.environ)
    status = main.run(["doctor", "compat", model, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert status == 0 and said["ok"], [row for row in said["rows"] if row["ok"] is False]
    assert {row["sdk"] for row in said["rows"]} == set(CHECKS) and dict(os.environ) == before
    assert {row["ok"] for row in said["rows"] if row["feature"] == "tools"} == {tools}
    assert all(row["ok"] for row in said["rows"] if row["feature"] != "tools")
