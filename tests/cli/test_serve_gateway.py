"""`freehold serve --gateway`: rented models beside owned ones; reload, drain, keys; none of it without a file."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.seller import KEY, SELLER
from tests.cli.test_serve import environment, freehold, program
from tests.providers.standin import StandIn
from tests.providers.standin.script import Answer
from tests.providers.standin.server import Received

FILE = (
    SELLER
    + """\
[routes.chat]
targets = ["big"]
retries = 0
[keys.alice]
label = "private"
"""
)


@pytest.fixture
def file(tmp_path: Path, standin: StandIn) -> Path:
    (tmp_path / "config.toml").write_text("adopt = false\n")
    found = tmp_path / "gateway.toml"
    found.write_text(FILE.format(url=standin.url("openai")))
    return found


@contextmanager
def served(home: Path, *args: str, words: int = 0) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a server whose environment has the key; give its process and what it says on stdout."""
    command = program("serve", "--port", "0", "--json", *args, words=words)
    pipe, err = subprocess.PIPE, home / "server.log"
    with (
        err.open("w") as log,
        subprocess.Popen(
            command, env=environment(home) | {"SELLER_KEY": KEY}, stdout=pipe, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, err.read_text()
            yield process, json.loads(line)
        finally:
            process.kill()


def ask(url: str, model: str, **more: Any) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more.pop("body", {})}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=20, **more)


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def rows(home: Path) -> int:
    with sqlite3.connect(home / "ledger.sqlite") as db:
        return db.execute("SELECT count(*) FROM requests").fetchone()[0]


def test_a_route_a_rented_model_and_an_owned_one_answer_at_one_address(file: Path, standin: StandIn):
    home = file.parent
    with served(home, "--gateway", str(file), "--log-level", "debug", words=5) as (process, said):
        assert said["gateway"]["routes"] == ["chat"] and said["gateway"]["providers"] == ["seller"]
        assert said["gateway"]["ledger"] == str(home / "ledger.sqlite")
        for model in ("chat", "big"):
            answer = ask(said["url"], model)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "2 characters"
        assert ask(said["url"], "tiny").status_code == 200
        listed = httpx2.get(f"{said['url']}/v1/models").json()["data"]
        assert {"chat", "big", "tiny"} <= {each["id"] for each in listed}
        (big,) = (each for each in listed if each["id"] == "big")
        assert big["owned_by"] == "seller" and big["freehold"] == {"places": ["seller"]}, (
            "nothing of it is here"
        )
        refused = ask(said["url"], "chat", headers={"X-Freehold-Label": "private"})
        assert refused.status_code >= 400 and len(standin.received) == 2
        # No key in the process, in what it printed, in its ledger.
        assert KEY not in Path(f"/proc/{process.pid}/environ").read_bytes().decode()
    log = (home / "server.log").read_text()
    assert "gateway: " in log and "routes: chat" in log and "seller (openai)" in log
    assert "gateway.toml names keys that do not exist: alice" in log
    assert '"model": "chat"' in log, "the line to try asks a route"
    assert KEY not in log and KEY.encode() not in (home / "ledger.sqlite").read_bytes()
    assert rows(home) >= 3
    assert standin.received[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.heavy
def test_a_good_reload_drops_no_stream_and_a_bad_one_changes_nothing(file: Path, standin: StandIn):
    home = file.parent
    with served(home, "--gateway", str(file)) as (_, said):
        url = said["url"]
        standin.say.append(Answer(pieces=tuple(f"w{i} " for i in range(60)), event_s=0.05))
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            sound = file.read_text()
            file.write_text(sound.replace("[routes.chat]", "[routes.talk]"))
            assert eventually(lambda: ask(url, "talk").status_code == 200)
            assert ask(url, "chat").status_code == 404, "the new file has no such route"
            rest = list(lines)
        assert any("w59" in line for line in rest) and rest[-2] == "data: [DONE]"
        file.write_text(sound.replace("retries = 0", 'retries = "no"'))
        warnings = eventually(lambda: httpx2.get(f"{url}/health").json().get("warnings"))
        assert "has a mistake and is in force as it was" in warnings[0]
        assert ask(url, "talk").status_code == 200
        file.write_text(sound)
        assert eventually(lambda: "warnings" not in httpx2.get(f"{url}/health").json())
        assert ask(url, "chat").status_code == 200
    log = (home / "server.log").read_text()
    assert log.count("routes.chat.retries") == 1, "a bad reload is said once"


@pytest.mark.heavy
def test_sigterm_lets_a_rented_stream_end(file: Path, standin: StandIn):
    home = file.parent
    with served(home, "--gateway", str(file)) as (process, said):
        standin.say.append(Answer(pieces=tuple(f"w{i} " for i in range(30)), event_s=0.05))
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with httpx2.stream("POST", f"{said['url']}/v1/chat/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert any("w29" in line for line in rest) and "data: [DONE]" in rest
        assert process.wait(20) == 0
    assert rows(home) == 1
    assert "stopping: 1 running answer has 30 s" in (home / "server.log").read_text()


@pytest.mark.heavy
@pytest.mark.long
def test_reloads_and_sigterm_drop_none_of_many_streams(file: Path, standin: StandIn):
    streams, words = 200, 30

    def behave(received: Received) -> Answer:
        name = json.loads(received.body)["messages"][-1]["content"]
        return Answer(pieces=tuple(f"{name}.{i} " for i in range(words)), event_s=0.1)

    async def one(client: httpx2.AsyncClient, url: str, number: int) -> str:
        body = {"model": "chat", "messages": [{"role": "user", "content": f"s{number}"}], "stream": True}
        text, finish = "", ""
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choice = (json.loads(line[6:])["choices"] or [{}])[0]
                    text += choice.get("delta", {}).get("content") or ""
                    finish = choice.get("finish_reason") or finish
        return f"{text}{finish}"

    async def all_of_them(process: subprocess.Popen[str], url: str) -> list[str]:
        limits = httpx2.Limits(max_connections=streams)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as client:
            asked = [asyncio.create_task(one(client, url, i)) for i in range(streams)]
            sound = file.read_text()
            await asyncio.to_thread(standin.wait_for, lambda: len(standin.received) == streams, 30.0)
            for text in (sound.replace("[routes.chat]", "[routes.talk]"), "nonsense", sound):
                file.write_text(text)
                await asyncio.sleep(0.6)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

    standin.behave = behave
    with served(file.parent, "--gateway", str(file)) as (process, said):
        texts = asyncio.run(all_of_them(process, said["url"]))
        assert process.wait(30) == 0
    assert texts == ["".join(f"s{n}.{i} " for i in range(words)) + "stop" for n in range(streams)]
    assert rows(file.parent) == streams
    assert len(standin.received) == streams


def test_a_bad_file_stops_the_start_with_every_mistake(file: Path):
    file.write_text(
        file.read_text().replace("retries = 0", "retries = 99").replace("env:SELLER", "env:NO_SUCH")
    )
    done = freehold(file.parent, "serve", "--port", "0", "--gateway", str(file))
    assert done.status == 2
    assert f"error: {file} has 2 mistakes:" in done.err
    assert "line 4: providers.seller.key: the environment variable NO_SUCH_KEY is not set" in done.err
    assert "routes.chat.retries: 99 is not within 0..10" in done.err


def test_a_service_is_installed_with_the_file_and_says_which_keys_it_needs(file: Path):
    done = freehold(file.parent, "serve", "--gateway", str(file), "--install-service", "--json")
    assert done.status == 0, done.err
    assert f"--gateway={file}" in json.loads(done.out)["unit"]
    assert "the service needs SELLER_KEY in its environment" in done.err
    assert KEY not in done.out


@pytest.mark.heavy
def test_the_file_may_be_named_in_the_settings(file: Path, standin: StandIn):
    (file.parent / "config.toml").write_text(f'adopt = false\ngateway = "{file}"\n')
    with served(file.parent) as (_, said):
        assert ask(said["url"], "chat").status_code == 200


def test_without_a_file_nothing_of_a_gateway_is_imported(tmp_path: Path):
    code = (
        "import sys\n"
        "from freehold.serve.http import serve\n"
        "def run(open_models, *args, **more):\n"
        "    import asyncio\n"
        "    models = asyncio.run(open_models())\n"
        "    foreign = ('freehold.route.router', 'aiohttp', 're2', 'phonenumbers', 'keyring', 'genai_prices', 'yaml')\n"
        "    print([m for m in sys.modules if m.startswith(foreign)], type(models).__name__)\n"
        "    return True\n"
        "serve.run = run\n"
        "from freehold.cli import main\n"
        "main.run(['serve', '--port', '0'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] DeployedModels", done.stderr
