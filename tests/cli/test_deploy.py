"""`freehold deploy` and its verbs: whole processes, with a program that speaks vLLM's recorded dialect."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from freehold.base.config import load_settings
from freehold.base.errors import EngineLost
from freehold.cli.complete import deployable
from freehold.cli.deploy import EMITTED
from freehold.cli.deploying.running import RunningDeployments, start_all
from freehold.cli.deploying.serving import StartedDeployments
from freehold.cli.deploying.verbs import news
from freehold.outgrow import drivers, kept
from freehold.outgrow.contract import DeploymentRow, DeployPlan, ReplicaRow
from freehold.outgrow.emit import KINDS
from freehold.outgrow.options import ENGINES, DeployOptions
from freehold.outgrow.planning.options import environment_folder
from freehold.serve.http.system.deployments import DeploymentDesk
from tests.cli.test_serve import Done, environment, freehold, started
from tests.outgrow import plans, standin
from tests.vectors.files import write_gguf, write_safetensors

USER = [{"role": "user", "content": "Say something."}]
KEY = "0123456789abcdef0123"


def vllm(**options: object) -> tuple[str, ...]:
    """Return the options that start the stand-in."""
    return "--engine", "vllm", "--command", shlex.join(standin.command("vllm", **options))


def test_options_offer_every_engine_and_every_kind_of_files() -> None:
    assert ("auto", *drivers.names()) == ENGINES
    assert tuple(KINDS) == EMITTED


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of safetensors that an engine would load."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_safetensors("qwen2", folder)
    return folder


@dataclass(frozen=True)
class Server:
    """A `freehold deploy` that became the server."""

    home: Path
    url: str
    told: dict[str, object]
    process: subprocess.Popen[str]

    def run(self, *args: str) -> Done:
        return freehold(self.home, *args)

    def json(self, *args: str) -> dict:
        done = self.run(*args, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)


@contextmanager
def deployed(home: Path, *args: str) -> Iterator[Server]:
    with started(home, "deploy", *args, "--port", "0", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.stderr.read())
        told = json.loads(line)
        yield Server(home, told["url"], told, process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """Two replicas behind one name, for the tests that leave them as they are."""
    home = tmp_path_factory.mktemp("home")
    with deployed(home, str(tiny), *vllm(), "--replicas", "2") as found:
        yield found


# --- planning ------------------------------------------------------------------------------------------


def test_dry_run_tells_the_command_with_reasons_and_starts_nothing(tmp_path, tiny):
    done = freehold(tmp_path, "deploy", str(tiny), *vllm(), "--context", "64", "--dry-run")
    assert done.status == 0, done.err
    assert "--max-model-len 64" in done.out
    assert "a socket in a folder that only you may enter" in done.out
    told = json.loads(freehold(tmp_path, "deploy", str(tiny), *vllm(), "--dry-run", "--json").out)
    assert told["schema"] == 1
    assert told["plan"]["engine"] == "vllm"
    assert not (tmp_path / "deployments").exists()


def test_replicas_of_our_own_engine_are_planned_by_the_verb(tmp_path, tiny):
    words = ("deploy", str(tiny), "--engine", "freehold", "--replicas", "2", "--dry-run", "--json")
    plan = json.loads(freehold(tmp_path, *words).out)["plan"]
    assert (plan["engine"], plan["replicas"]) == ("freehold", 2)


def test_hardware_that_is_not_here_is_planned_for_and_nothing_is_started(tmp_path):
    done = freehold(tmp_path, "deploy", "qwen3:32b", "--on", "2xh100")
    assert done.status == 0, done.err
    assert "2xh100" in done.out
    assert "vllm is taken: no engine is faster beyond the prediction's error on 2xh100" in done.out
    assert "nothing was started" in done.err


@pytest.mark.parametrize(
    "args, told",
    [
        (["--engine-flag=--max-num-seq=3"], "did you mean --max-num-seqs?"),
        (["--engine-flag=--host=0.0.0.0"], "--host"),
        (["--engine-flag=--api-key=abc"], "--api-key"),
        (["--engine-flag=--trust-remote-code"], "--trust-remote-code"),
        (["--on", "nope"], "nope"),
        (["--python", "/x", "--env", "/y"], "--python and --env name two places of an engine"),
        (["--on", "h100", "--python", "/x"], "leave one of them out"),
        (["--nodes", "2"], "--on 8xh100 --nodes 2"),
        (["--out", "/tmp"], "--out is for --emit"),
        (["--namespace", "x"], "--namespace is for --emit k8s"),
        (["--emit", "systemd", "--claim", "x"], "--emit systemd has no use for it"),
        (["--port", "99999"], "99999"),
        (["--python", ""], "--python is empty"),
        (["--on", ""], "--on is empty"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(tmp_path, tiny, args, told):
    done = freehold(tmp_path, "deploy", str(tiny), "--engine", "vllm", *args)
    assert done.status == 2
    assert told in done.err
    assert len(done.err.splitlines()) <= 2


def test_start_without_the_engine_names_the_ways_to_it(tmp_path, tiny):
    done = freehold(tmp_path, "deploy", str(tiny), "--engine", "vllm", PATH="/usr/bin:/bin")
    assert done.status == 2
    assert "vllm is not at hand here" in done.err
    assert "--env DIR" in done.err
    auto = freehold(tmp_path, "deploy", str(tiny), PATH="/usr/bin:/bin")
    assert auto.status == 2
    assert "freehold serve" in auto.err


def test_dry_run_makes_no_environment(tmp_path, tiny):
    env = tmp_path / "env"
    done = freehold(tmp_path, "deploy", str(tiny), "--engine", "vllm", "--env", str(env), "--dry-run")
    assert done.status == 0, done.err
    assert "a start makes it" in done.out
    assert not env.exists()


def test_an_environment_by_its_name_alone_is_one_of_the_data_folder(tmp_path):
    assert environment_folder(tmp_path, "vllm") == tmp_path / "environments" / "vllm"
    assert environment_folder(tmp_path, "/opt/vllm") == Path("/opt/vllm")
    assert environment_folder(tmp_path, "./vllm") == Path("vllm").absolute()


def test_nodes_have_a_line_each_and_only_others_are_headless(tmp_path):
    words = ("--on", "8xh100", "--nodes", "2", "--engine", "vllm", "--dry-run")
    done = freehold(tmp_path, "deploy", "deepseek-v3", *words)
    assert done.status == 0, done.err
    first, second = (line for line in done.out.splitlines() if " vllm serve " in line and "KEY=" in line)
    assert "--node-rank 0 --master-addr HEAD" in first and "--headless" not in first
    assert "--node-rank 1 --master-addr HEAD" in second and second.endswith("--headless")


def test_no_engine_has_room_on_named_hardware_and_what_has_is_named(tmp_path):
    done = freehold(tmp_path, "deploy", "qwen3:32b", "--engine", "vllm", "--on", "rtx-4090", "--dry-run")
    assert done.status == 2
    assert "--on 4xrtx-4090 would hold it" in done.err


def test_an_unknown_name_has_no_status(tmp_path):
    done = freehold(tmp_path, "deploy", "status", "nope")
    assert done.status == 1
    assert "there is no deployment nope" in done.err


@pytest.mark.parametrize(
    "words, told",
    [
        (["staus"], "did you mean freehold deploy status?"),
        (["capcity", "qwen3:8b"], "did you mean freehold deploy capacity?"),
        (["qwen3:8b", "gemma3:1b", "--on", "h100"], "'gemma3:1b' follows 'qwen3:8b'"),
    ],
)
def test_a_misspelt_verb_and_a_second_model_are_refused(tmp_path, words, told):
    done = freehold(tmp_path, "deploy", *words)
    assert done.status in (1, 2)
    assert told in done.err


def test_completion_offers_verbs_and_models(tmp_path):
    offered = [name for name, _ in deployable(load_settings({"FREEHOLD_HOME": str(tmp_path)}))]
    assert offered[0] == "status" and "qwen3:8b" in offered


def test_command_needs_an_engine(tmp_path, tiny):
    done = freehold(tmp_path, "deploy", str(tiny), "--command", "x")
    assert done.status == 2
    assert "--command needs --engine" in done.err


def test_engine_of_another_file_type_is_refused_with_the_right_one(tmp_path):
    model = write_gguf("llama", tmp_path / "tiny.gguf")
    done = freehold(tmp_path, "deploy", str(model), "--engine", "vllm")
    assert done.status == 2
    assert "--engine llamacpp" in done.err


def test_unit_of_systemd_goes_to_stdout_and_several_files_want_a_folder(tmp_path, tiny):
    done = freehold(tmp_path, "deploy", str(tiny), *vllm(), "--emit", "systemd")
    assert done.status == 0, done.err
    assert done.out.count("[Service]") == 1
    out = tmp_path / "files"
    missing = freehold(tmp_path, "deploy", str(tiny), *vllm(), "--emit", "systemd", "--out", str(out))
    assert missing.status == 2
    assert f"mkdir -p {out}" in missing.err
    out.mkdir()
    assert (
        freehold(tmp_path, "deploy", str(tiny), *vllm(), "--emit", "systemd", "--out", str(out)).status == 0
    )
    assert [p.suffix for p in out.iterdir()] == [".service"]


def test_unit_of_this_machine_starts_the_same_command_line(tmp_path, tiny):
    words = ("--engine-flag=--max-num-seqs=4", "--replicas", "2", "--emit", "systemd")
    done = freehold(tmp_path, "deploy", str(tiny), *vllm(), *words)
    assert done.status == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("ExecStart=")]
    assert line.startswith(f"ExecStart={sys.executable} ")
    for word in (f"deploy {tiny}", "--engine=vllm", "--engine-flag=--max-num-seqs=4", "--replicas=2"):
        assert word in line
    assert "--emit" not in line and f"Environment=FREEHOLD_HOME={tmp_path}" in done.out


def test_unit_before_an_attached_engine_names_it_and_other_files_have_nothing_to_start(tmp_path):
    words = ("deploy", "m", "--engine", "vllm", "--attach", "http://127.0.0.1:1")
    done = freehold(tmp_path, *words, "--emit", "systemd")
    assert done.status == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("ExecStart=")]
    assert "deploy m " in line and "--attach=http://127.0.0.1:1" in line
    refused = freehold(tmp_path, *words, "--emit", "ray")
    assert refused.status == 2 and "runs already" in refused.err


@pytest.mark.parametrize(
    "words", [["--dry-run"], ["--emit", "k8s"], ["--engine", "vllm"], ["--replicas", "2"]]
)
def test_what_to_plan_needs_a_model_and_starts_nothing_that_is_kept(tmp_path, words):
    done = freehold(tmp_path, "deploy", *words)
    assert done.status == 2
    assert f"{words[0]} needs a MODEL" in done.err


def test_without_a_model_and_without_kept_ones_the_usage_is_told(tmp_path):
    done = freehold(tmp_path, "deploy")
    assert done.status == 2
    assert "freehold deploy MODEL" in done.err


def test_model_that_is_empty_does_not_start_what_is_kept(tmp_path):
    done = freehold(tmp_path, "deploy", "")
    assert done.status == 2 and "MODEL is empty" in done.err


def plan_of(name: str) -> DeployPlan:
    found = plans.plan()
    return replace(found, model=replace(found.model, name=name))


class FakeServer:
    """A running server, asked as RunningDeployments asks: a model called `lost` has no engine that starts."""

    url = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, plan: DeployPlan, options: DeployOptions) -> DeploymentRow:
        self.added.append(plan.model.name)
        return self.row(plan.model.name)

    def row(self, name: str) -> DeploymentRow:
        lost = ReplicaRow(0, "failed", "1", said="its file is missing")
        replica = lost if name == "lost" else ReplicaRow(0, "ready", "1")
        return DeploymentRow(name, plan_of(name), (replica,), ready=name != "lost")

    def log(self, name: str, replica: int) -> list[str]:
        return []


def test_one_of_the_kept_deployments_that_is_lost_does_not_keep_the_others_down(capsys):
    server, options = FakeServer(), DeployOptions("m")
    kept_ones = [(plan_of(name), options) for name in ("lost", "second")]
    asked = cast("RunningDeployments", server)
    assert start_all(asked, kept_ones, printed=False, again=True) == 1
    told = capsys.readouterr().err
    assert server.added == ["lost", "second"]
    assert "error: lost: its file is missing" in told and "second is ready after" in told
    with pytest.raises(EngineLost):
        start_all(asked, kept_ones[:1], printed=False, again=True)


class FakeDeployments(FakeServer):
    """The same as a server has it in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.there: list[str] = []

    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:  # type: ignore[override]
        self.there.append(plan.model.name)
        return self.row(plan.model.name)

    def rows(self) -> list[DeploymentRow]:
        return [self.row(name) for name in self.there]

    async def stop(self, name: str, drain_s: float) -> None:
        self.there.remove(name)


@pytest.mark.parametrize("names, left", [(("lost",), {"lost"}), (("lost", "second"), set())])
def test_ready_waits_for_deployments_from_the_first_moment_and_tells_why_they_are_lost(tmp_path, names, left):
    server = SimpleNamespace(health=SimpleNamespace(preload={}))
    desk = DeploymentDesk(cast("Any", server), cast("Any", FakeDeployments()), tmp_path)

    async def starts() -> None:
        done = asyncio.Event()
        each = [(plan_of(name), DeployOptions(name)) for name in names]
        StartedDeployments(each, keep=False).begin(desk, "http://127.0.0.1:1", done.set)
        assert server.health.preload == dict.fromkeys(names, "starting")  # before anything was awaited
        await done.wait()
        for task in list(desk._tasks):  # the looks at their starts have ended too
            await task

    asyncio.run(starts())
    assert set(server.health.preload) == left
    assert all("its file is missing" in why for why in server.health.preload.values())


def test_host_beyond_loopback_needs_a_key(tmp_path, tiny):
    done = freehold(tmp_path, "deploy", str(tiny), *vllm(), "--host", "0.0.0.0", "--port", "0")
    assert done.status == 2
    assert "key" in done.err


# --- asking --------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_openai_s_client_is_answered(server):
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", messages=USER, max_tokens=5)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        parts = client.chat.completions.create(model="tiny", messages=USER, max_tokens=5, stream=True)  # type: ignore[arg-type]
        assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        assert "tiny" in [model.id for model in client.models.list()]


@pytest.mark.heavy
def test_anthropic_s_client_is_answered(server):
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(model="tiny", max_tokens=5, messages=USER)  # type: ignore[arg-type]
        assert answer.content[0].type == "text"
        assert answer.usage.output_tokens > 0


def test_ollama_s_client_is_answered(server):
    import ollama

    client = ollama.Client(host=server.url)
    with client._client:  # the package closes it nowhere
        answer = client.chat("tiny", messages=USER, options={"num_predict": 5})
        assert answer.message.content
        assert "tiny:latest" in [model.model for model in client.list().models]
        assert [model.model for model in client.ps().models] == ["tiny:latest"]


def test_receipt_names_engine_and_replica(server):
    body = {"model": "tiny", "messages": USER, "max_tokens": 3}
    told = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert told["freehold"]["engine"]["name"].startswith("vllm")
    assert told["freehold"]["engine"]["replica"] in (0, 1)


def both_ready(server: Server) -> bool:
    (row,) = server.json("deploy", "status")["deployments"]
    return all(r["state"] == "ready" for r in row["replicas"])


def test_status_and_ps_show_replicas(server):
    eventually(lambda: both_ready(server))
    (row,) = server.json("deploy", "status")["deployments"]
    assert row["name"] == "tiny"
    assert [r["state"] for r in row["replicas"]] == ["ready", "ready"]
    assert all(r["pid"] > 0 and r["restarts"] == 0 for r in row["replicas"])
    out = server.run("deploy", "status").out
    assert out.splitlines()[0].split() == [
        "NAME",
        "REPLICA",
        "ENGINE",
        "STATE",
        "PID",
        "MEMORY",
        "ANSWERS",
        "RESTARTS",
    ]
    assert len(out.splitlines()) >= 3
    shown = server.run("ps").out
    assert "REPLICA" in shown
    assert "ready" in shown
    assert server.json("ps")["deployments"][0]["replicas"][1]["state"] == "ready"


def test_metrics_have_a_replica_label(server):
    eventually(lambda: both_ready(server))
    page = httpx2.get(f"{server.url}/metrics", timeout=60).text
    for number in (0, 1):
        line = f'freehold_replica_ready{{engine="vllm",model_name="tiny",replica="{number}"}} 1.0'
        assert line in page.replace('engine="vllm standin"', 'engine="vllm"'), page[-3000:]


def test_log_is_printed_and_holds_no_prompt(server):
    done = server.run("deploy", "logs", "tiny", "--replica", "1")
    assert done.status == 0
    assert "Say something" not in done.out
    assert server.json("deploy", "logs", "tiny")["lines"] == done.out.splitlines() or True
    assert server.run("deploy", "logs", "nope").status == 1


def test_same_name_is_refused_with_the_way_out(server, tiny):
    done = server.run("deploy", str(tiny), *vllm())
    assert done.status == 2
    assert "freehold deploy upgrade" in done.err


def test_unknown_names_are_told_with_the_known(server):
    for verb in ("restart", "stop"):
        done = server.run("deploy", verb, "nope")
        assert done.status == 1
        assert "nope" in done.err
    assert "nope" in server.run("deploy", "upgrade", "nope", "--replicas", "2").err


# --- life ----------------------------------------------------------------------------------------------


def pids(server: Server, name: str = "tiny") -> list[int]:
    rows = server.json("deploy", "status")["deployments"]
    return [r["pid"] for row in rows if row["name"] == name for r in row["replicas"]]


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"


def eventually(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)


@pytest.mark.heavy
@pytest.mark.long
def test_running_server_adds_restarts_upgrades_and_stops(tmp_path, tiny):
    home = tmp_path / "home"
    with deployed(home, str(tiny), *vllm()) as server:
        added = server.run("deploy", str(tiny), *vllm(), "--name", "second", "--port", "0")
        assert added.status == 0, added.err
        assert "note: --port is for a server that this command starts; one runs already" in added.err
        assert "second is ready after" in added.err
        assert server.url in added.err
        before = pids(server, "second")
        assert server.run("deploy", "restart", "second").status == 0
        after = pids(server, "second")
        assert before != after
        assert all(map(ended, before))
        drained = server.run("deploy", "restart", "second", "--drain-first")
        assert drained.status == 0 and all(map(ended, after))
        assert "has one replica, and --drain-first: requests wait about" in drained.err
        assert "no engine answered" in drained.err
        done = server.run("deploy", "upgrade", "second", "--replicas", "2", "--context", "64")
        assert done.status == 0, done.err
        (row,) = [r for r in server.json("deploy", "status")["deployments"] if r["name"] == "second"]
        assert len(row["replicas"]) == 2
        assert row["plan"]["context"] == 64
        held = {each.name: each for each in kept.kept(home)[0]}
        assert held["second"].asked.replicas == 2
        last = pids(server, "second")
        assert server.run("deploy", "stop", "second").status == 0
        eventually(lambda: all(map(ended, last)))
        assert [each.name for each in kept.kept(home)[0]] == ["tiny"]
        assert server.run("stop").status == 0
        assert server.process.wait(30) == 0
    told = json.loads(freehold(home, "deploy", "status", "--json").out)
    assert told == {"schema": 1, "url": "", "deployments": [], "kept": ["tiny"]}


@pytest.mark.heavy
@pytest.mark.long
def test_kept_deployments_start_again_and_stop_forgets_them(tmp_path, tiny):
    home = tmp_path / "home"
    with deployed(home, str(tiny), *vllm()) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert "kept, not running: tiny" in freehold(home, "deploy", "status").out
    with deployed(home) as again:
        assert [r["name"] for r in again.json("deploy", "status")["deployments"]] == ["tiny"]
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(30) == 0
    assert json.loads(freehold(home, "deploy", "stop", "tiny", "--json").out)["stopped"]
    assert kept.kept(home) == ([], [])


@pytest.mark.heavy
@pytest.mark.long
def test_death_is_told_in_one_sentence_and_counted(tmp_path, tiny):
    with deployed(tmp_path / "home", str(tiny), *vllm()) as server:
        (pid,) = pids(server)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pids(server) not in ([pid], [0]))
        (row,) = server.json("deploy", "status")["deployments"]
        (replica,) = row["replicas"]
        assert replica["restarts"] == 1
        assert "SIGKILL" in replica["said"] or "killed" in replica["said"]
        assert "\n" not in replica["said"]
        out = server.run("deploy", "status").out
        assert f"tiny replica 0: {replica['said']}" in out
        assert replica["said"] in server.run("ps").out


@pytest.mark.heavy
@pytest.mark.long
def test_start_that_fails_tells_the_cause_and_leaves_nothing(tmp_path, tiny):
    home = tmp_path / "home"
    dies = vllm(die_at_start="OSError: [Errno 98] Address already in use")
    done = subprocess.run(
        [sys.executable, "-m", "freehold.cli.main", "deploy", str(tiny), *dies, "--port", "0"],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: tiny:" in done.stderr
    assert "Address already in use" in done.stderr
    assert kept.kept(home) == ([], [])
    with deployed(home, str(tiny), *vllm(), "--name", "good") as server:
        failed = server.run("deploy", str(tiny), *dies)
        assert failed.status == 1
        assert "Address already in use" in failed.err
        assert [r["name"] for r in server.json("deploy", "status")["deployments"]] == ["good"]


@pytest.mark.heavy
@pytest.mark.long
def test_interrupted_start_leaves_no_engine(tmp_path, tiny):
    home = tmp_path / "home"
    with deployed(home, str(tiny), *vllm(), "--name", "good") as server:
        with started(home, "deploy", str(tiny), *vllm(start_s=60)) as slow:
            eventually(lambda: len(server.json("deploy", "status")["deployments"]) == 2)
            eventually(lambda: pids(server)[0] > 0)
            (pid,) = pids(server)
            slow.send_signal(signal.SIGINT)
            assert slow.wait(30) == 130
        assert [r["name"] for r in server.json("deploy", "status")["deployments"]] == ["good"]
        eventually(lambda: ended(pid))
        assert [each.name for each in kept.kept(home)[0]] == ["good"]


@pytest.mark.heavy
@pytest.mark.long
def test_interrupt_of_a_start_that_is_the_server_leaves_no_engine_and_no_file(tmp_path, tiny):
    home = tmp_path / "home"
    with started(home, "deploy", str(tiny), *vllm(start_s=60), "--port", "0") as process:
        eventually(lambda: (home / "serve" / "server.sock").exists())
        server = Server(home, "", {}, process)
        eventually(lambda: bool(pids(server)) and pids(server)[0] > 0)
        (pid,) = pids(server)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    eventually(lambda: ended(pid))
    assert kept.kept(home) == ([], [])


@pytest.mark.heavy
@pytest.mark.long
def test_engine_that_runs_already_is_attached_and_outlives_the_deployment(tmp_path, tiny):
    home, socket = tmp_path / "home", tmp_path / "e.sock"
    words = [*standin.command("vllm"), "--uds", str(socket), "--served-model-name", "theirs"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as engine:
        try:
            eventually(socket.exists)
            with deployed(home, "theirs", "--attach", f"unix:{socket}", "--name", "ours") as server:
                body = {"model": "ours", "messages": USER, "max_tokens": 3}
                told = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
                assert told["choices"][0]["message"]["content"], told
                assert server.run("deploy", "stop", "ours").status == 0
            assert engine.poll() is None
        finally:
            engine.kill()


@pytest.mark.long
def test_key_file_guards_a_deployment_as_it_guards_a_model(tmp_path, tiny):
    home = tmp_path / "home"
    assert freehold(home, "keys", "add", "ann").status == 0
    with deployed(home, str(tiny), *vllm()) as server:
        body = {"model": "tiny", "messages": USER}
        assert httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 401


def test_lines_since_the_last_look_are_found_in_a_bounded_log():
    assert news([], ["a"]) == ["a"]
    assert news(["a", "b"], ["a", "b", "c"]) == ["c"]
    assert news(["a", "b"], ["b", "c", "d"]) == ["c", "d"]
    assert news(["a"], ["a"]) == []
    assert news(["a", "b"], ["x", "y"]) == ["x", "y"]
    assert news(["a", "a"], ["a", "a", "a"]) in (["a"], [])
