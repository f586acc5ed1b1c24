"""`freehold serve`, `ps`, `stop`, and `run` beside them: whole processes, with a tiny model or a scripted engine."""

from __future__ import annotations

import io
import json
import os
import plistlib
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
from starlette.responses import JSONResponse

from freehold.base.errors import UsageError
from freehold.cli import main
from freehold.cli.serving import service
from freehold.cli.serving.service import quoted, unit
from freehold.cli.shared import Seconds
from tests.test_remote import LEAKS, Script, serving
from tests.vectors.adapters import Case, write_peft
from tests.vectors.files import write_gguf

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123"

# `words` > 0: a model called tiny whose answers are scripted, slow enough to be met half-way.
PROGRAM = """
import functools, sys
from freehold.serve.worker import models
from freehold.serve.worker.wire import Script
if {words}:
    script = Script(words={words}, step_s=0.02, load_s={load_s})
    models.EngineModels = functools.partial(models.EngineModels, scripts={{"tiny": script}})
from freehold.cli import main
sys.exit(main.run({args!r}))
"""


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FREEHOLD_", "HF_", "XDG_"))}
    return {
        **kept,
        "FREEHOLD_HOME": str(home),
        "HOME": str(home),
        "FREEHOLD_OFFLINE": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }


def program(*args: str, words: int = 0, load_s: float = 0.0) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(words=words, load_s=load_s, args=list(args))]


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    status: int
    out: str
    err: str


def freehold(home: Path, *args: str, **more: str) -> Done:
    """Run a command line in this process, with nothing on stdin; `more` goes into its environment."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        wanted = environment(home) | more
        for name in [n for n in os.environ if n not in wanted]:
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdin", None)
        status = main.run(list(args))
    return Done(status, out.getvalue(), err.getvalue())


@contextmanager
def started(
    home: Path, *args: str, words: int = 0, load_s: float = 0.0, files: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """Start a command that may open so many `files`; whatever happens, it is over afterwards."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        program(*args, words=words, load_s=load_s),
        env=environment(home),
        stdout=pipe,
        stderr=pipe,
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def server(
    home: Path, *args: str, words: int = 0, load_s: float = 0.0, files: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server on a free port; give its process and its URL once its models are loaded."""
    command = ("serve", "--port", "0", "--json", *args)
    with started(home, *command, words=words, load_s=load_s, files=files) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)["url"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_gguf("llama", tmp_path_factory.mktemp("serve") / "tiny.gguf", dtype="Q8_0"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "config.toml").write_text("adopt = false\n")
    return home


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_peft(Case("llama"), tmp_path_factory.mktemp("lora") / "style"))


@pytest.fixture(scope="module")
def real(home: Path, tiny: str, lora: str) -> Iterator[str]:
    """A server that holds the tiny model, and an adapter beside it; its URL."""
    with server(home, tiny, "--adapter", f"style={lora}") as (_, url):
        yield url


@pytest.fixture
def scripted(home: Path, tmp_path: Path, tiny: str) -> Path:
    """A home of the test's own where `tiny` is known."""
    (tmp_path / "config.toml").write_text("adopt = false\n")
    assert freehold(tmp_path, "pull", tiny).status == 0
    return tmp_path


# A running server and its owner.

ASKED = ("Hi", "--max-tokens", "12", "--seed", "5", "--temperature", "0.9")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "more", [(), ("--raw",), ("--json", "--logprobs", "2"), ("--raw", "--json", "--logprobs", "2")]
)
def test_run_gives_the_same_bits_attached_and_here(home: Path, tiny: str, real: str, more: tuple[str, ...]):
    there, here = (freehold(home, "run", tiny, *ASKED, *more, *local) for local in ((), ("--local",)))
    assert (there.status, here.status) == (0, 0), there.err + here.err
    if "--json" not in more:
        assert there.out == here.out and there.out.strip()
        return
    got, wanted = json.loads(there.out), json.loads(here.out)
    assert got["logprobs"] == wanted["logprobs"] and len(got["logprobs"]) == got["usage"]["completion_tokens"]
    for said in (got, wanted):
        del said["timings"], said["usage"]["cached_tokens"], said["context"]["note"]
    assert got == wanted


def test_run_names_an_adapter_of_the_server(home: Path, tiny: str, real: str, lora: str):
    name = Path(tiny).stem
    assert freehold(home, "pull", tiny).status == 0
    asked = ("--max-tokens", "12", "--temperature", "0")
    plain, there = (freehold(home, "run", each, "Hi", *asked) for each in (name, f"{name}+style"))
    here = freehold(home, "run", name, "Hi", *asked, "--adapter", lora)
    assert there.status == here.status == 0 and there.out == here.out != plain.out, there.err + here.err
    for one in ((f"{name}+{lora}",), (name, "--adapter", "style"), (f"{name}+style={lora}",)):  # one meaning
        model, *option = one
        assert freehold(home, "run", model, "Hi", *asked, *option).out == here.out, one
    wrong, alone = (
        freehold(home, "run", f"{name}{end}", "Hi", *local)
        for end, *local in (("+no",), ("+style", "--local"))
    )
    assert wrong.status == alone.status == 1
    assert (
        "has no adapter 'no'" in wrong.err and f"{name}+style" in wrong.err and "--adapter PATH" in alone.err
    )


def test_a_made_model_says_the_same_attached_and_here(
    home: Path, tiny: str, real: str, lora: str, tmp_path: Path
):
    (tmp_path / "Modelfile").write_text(
        f"FROM {tiny}\nADAPTER {lora}\nPARAMETER temperature 0\nPARAMETER num_predict 9\nSYSTEM Be odd.\n"
    )
    made = freehold(home, "create", "odd", "-f", str(tmp_path / "Modelfile"))
    assert made.status == 0, made.err
    there, here = (freehold(home, "run", "odd", "Hi", *local) for local in ((), ("--local",)))
    assert there.status == here.status == 0 and there.out == here.out, there.err + here.err
    assert "is not used" not in there.err and freehold(home, "rm", "odd").status == 0


@pytest.mark.heavy
@pytest.mark.model
def test_a_real_model_gives_the_same_bits_attached_and_here(tmp_path: Path, model_path):
    path = str(model_path("smollm2:135m"))
    asked = (
        path,
        "Tell me of a fox.",
        "--seed",
        "11",
        "--temperature",
        "1.1",
        "--top-p",
        "0.9",
        "--max-tokens",
        "80",
    )
    more = ("--repetition-penalty", "1.1", "--json", "--logprobs", "3")
    with server(tmp_path, path):
        there = json.loads(freehold(tmp_path, "run", *asked, *more).out)
    here = json.loads(freehold(tmp_path, "run", *asked, *more).out)
    for name in ("text", "finish_reason", "seed", "logprobs", "warnings"):
        assert there[name] == here[name]


@pytest.mark.heavy
@pytest.mark.model
def test_a_prefix_outlives_the_server_and_the_answer_is_the_same(tmp_path: Path, model_path):
    path = str(model_path("smollm2:135m"))
    asked = {"prompt": "The fox ran over the hill. " * 60, "max_tokens": 24, "temperature": 0}
    answers = []
    for _ in range(2):  # the second time in a server, and an engine, that never saw the prompt
        with server(tmp_path, path) as (process, url):
            asked["model"] = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
            answers.append(httpx2.post(f"{url}/v1/completions", json=asked, timeout=120).json())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    first, second = answers
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert first["freehold"]["context"]["cached"] == 0
    assert second["freehold"]["context"]["cached"] > 0.9 * second["usage"]["prompt_tokens"]


def test_verbose_run_says_where_the_model_is_held(home: Path, tiny: str, real: str):
    assert f"on the server at {real}" in freehold(home, "run", tiny, *ASKED, "--verbose").err
    assert "on the server at" not in freehold(home, "run", tiny, *ASKED, "--verbose", "--local").err


def test_an_option_for_a_model_loaded_here_loads_it_here_and_says_so(home: Path, tiny: str, real: str):
    done = freehold(home, "run", tiny, *ASKED, "--context", "64", "--json")
    assert json.loads(done.out)["context"]["limit"] == 64
    assert "note: --context needs a model in this process" in done.err


def test_a_session_goes_on_through_the_server(home: Path, tiny: str, real: str):
    for _ in range(2):
        assert freehold(home, "run", tiny, *ASKED, "--session", "s").status == 0
    assert len((home / "sessions" / "s.jsonl").read_text().splitlines()) >= 4


def test_the_server_s_refusal_is_the_command_s_own_error(home: Path, tiny: str, real: str):
    done = freehold(home, "run", tiny, "x " * 600)
    assert (done.status, done.out) == (1, "")
    assert re.match(r"error: prompt has [\d,]+ tokens; tiny is loaded with a context of", done.err)
    assert done.err.count("\n") == 2, done.err


def test_ps_lists_what_is_loaded(home: Path, tiny: str, real: str):
    freehold(home, "run", tiny, *ASKED)
    said = json.loads(freehold(home, "ps", "--json").out)
    assert said["schema"] == 1 and said["server"]["url"] == real
    model = said["models"][0]
    assert (model["name"], model["restarts"]) == ("tiny", 0)
    assert model["stats"]["generated_tokens"] > 0 and model["tok_s"] == 0
    lines = freehold(home, "ps").out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("tiny") and "idle" in lines[1] and "min" in lines[1]
    assert lines[0].split()[2:4] == ["RESIDENT", "RESERVED"] and "SIZE" not in lines[0]
    assert 0 < model["resident_bytes"] != model["memory_bytes"]


def test_ps_fit_and_the_page_say_what_a_model_needs_in_one_sentence(home: Path, tiny: str, real: str):
    freehold(home, "run", tiny, *ASKED)
    (row,) = [r for r in json.loads(freehold(home, "fit", tiny, "--json").out)["fits"] if r["held"]]
    assert row["needs"].startswith("needs ") and row["needs"].endswith(" tokens of context")
    rows = httpx2.get(f"{real}/console/api/models?held=1").json()["models"]
    assert [r["needs"] for r in rows if r["name"] == "tiny"] == [row["needs"]]
    assert freehold(home, "ps").out.splitlines()[-1] == f"tiny {row['needs']}"
    assert f"{row['quant']} {row['needs']}" in freehold(home, "fit", tiny).out


@pytest.mark.heavy
def test_ps_shows_a_model_on_its_way(scripted: Path):
    with server(scripted, words=1, load_s=60), started(scripted, "run", "tiny", "Hi"):
        while not (said := json.loads(freehold(scripted, "ps", "--json").out)["models"]):
            time.sleep(0.05)
        assert said[0]["name"] == "tiny" and said[0]["loading"] == {"done": 0, "total": 0}
        assert "loading, 0%" in freehold(scripted, "ps").out
        assert freehold(scripted, "stop", "tiny").err == "tiny is unloaded\n"


def test_one_home_has_one_server_and_the_second_says_where_the_first_listens(home: Path, real: str):
    done = freehold(home, "serve", "--port", "0")
    assert (
        done.status == 1 and f"has a running server: {real} (pid " in done.err and "freehold stop" in done.err
    )


def test_stop_unloads_a_model_and_run_has_it_loaded_again(home: Path, tiny: str, real: str):
    freehold(home, "run", tiny, *ASKED)
    done = freehold(home, "stop", tiny)
    assert (done.status, done.err) == (0, "tiny is unloaded\n")
    assert "no model is loaded" in freehold(home, "ps").err
    again = freehold(home, "stop", "tiny")
    assert again.status == 1 and "tiny is not loaded" in again.err
    assert freehold(home, "run", tiny, *ASKED).status == 0
    assert "tiny" in freehold(home, "ps").out


def test_ps_and_stop_without_a_server_say_how_to_start_one(tmp_path: Path):
    for verb in ("ps", "stop"):
        done = freehold(tmp_path, verb)
        assert (
            (done.status, done.out) == (1, "")
            and "no server runs for" in done.err
            and "freehold serve starts one" in done.err
        )


# Ends: drain, cut, kill.


@pytest.mark.heavy
def test_sigterm_lets_an_answer_end_and_the_server_exits_0(scripted: Path):
    with server(scripted, words=150) as (process, _), started(scripted, "run", "tiny", "Hi") as answer:
        assert answer.stdout is not None and answer.stdout.read(1) and process.stderr is not None
        process.send_signal(signal.SIGTERM)
        assert any(
            "stopping: 1 running answer has 30 s; Ctrl-C again stops at once" in line
            for line in process.stderr
        )
        assert len(answer.stdout.read().split()) == 150
        assert (answer.wait(60), process.wait(60)) == (0, 0)
    assert not (scripted / "serve" / "server.sock").exists()


@pytest.mark.heavy
def test_a_second_ctrl_c_ends_at_once_and_the_answer_says_so(scripted: Path):
    with server(scripted, words=4000) as (process, _), started(scripted, "run", "tiny", "Hi") as answer:
        assert answer.stdout is not None and answer.stderr is not None and answer.stdout.read(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert answer.wait(60) == 1
        err = answer.stderr.read()
        assert err.startswith("error: ") and "Traceback" not in err


@pytest.mark.heavy
@LEAKS
def test_stop_waits_for_the_answers_and_stop_now_does_not(scripted: Path):
    with server(scripted, words=4000) as (process, _), started(scripted, "run", "tiny", "Hi") as answer:
        assert answer.stdout is not None and answer.stdout.read(1)
        refused = freehold(scripted, "stop", "tiny")
        assert refused.status == 2 and "tiny has 1 answer running" in refused.err
        rows = freehold(scripted, "ps").out
        assert "1 running" in rows
        with started(scripted, "stop") as patient:
            assert patient.stderr is not None
            assert "waiting for 1 answer to finish" in patient.stderr.readline()
            assert process.poll() is None
            while (scripted / "serve" / "server.sock").exists() and freehold(scripted, "ps").status == 0:
                time.sleep(0.05)
            assert "is starting or stopping" in freehold(scripted, "ps").err
            assert freehold(scripted, "stop", "--now").status == 0
            assert patient.wait(60) == 0
        assert process.wait(60) == 0


@pytest.mark.heavy
def test_ctrl_c_on_run_cancels_the_answer_at_the_server(scripted: Path):
    with server(scripted, words=4000) as _, started(scripted, "run", "tiny", "Hi") as answer:
        assert answer.stdout is not None and answer.stdout.read(1)
        answer.send_signal(signal.SIGINT)
        assert answer.wait(60) == 130
        for _ in range(100):
            if json.loads(freehold(scripted, "ps", "--json").out)["models"][0]["in_flight"] == 0:
                return
        pytest.fail("the server still answers nobody")


@pytest.mark.heavy
def test_a_server_that_is_killed_is_a_named_error_and_leaves_no_trace_that_hinders(scripted: Path, tiny: str):
    with server(scripted, words=4000) as (process, _), started(scripted, "run", "tiny", "Hi") as answer:
        assert answer.stdout is not None and answer.stderr is not None and answer.stdout.read(1)
        process.kill()
        assert answer.wait(60) == 1
        assert " broke off: " in answer.stderr.read()
    assert (scripted / "serve" / "server.sock").exists()
    assert "no server runs for" in freehold(scripted, "ps").err
    done = freehold(scripted, "run", tiny, *ASKED)
    assert done.status == 0 and done.out.strip() and "note: " not in done.err
    with server(scripted, words=1):
        assert freehold(scripted, "ps").status == 0


@pytest.mark.heavy
def test_an_engine_that_is_killed_is_no_matter_to_run(scripted: Path, tiny: str):
    with server(scripted, words=150) as (process, _), started(scripted, "run", "tiny", "Hi") as answer:
        import psutil

        assert answer.stdout is not None and answer.stdout.read(1)
        for engine in psutil.Process(process.pid).children():
            engine.kill()
        assert len(answer.stdout.read().split()) == 150 and answer.wait(60) == 0
        assert json.loads(freehold(scripted, "ps", "--json").out)["models"][0]["restarts"] == 1


# Another version's server: a socket that greets otherwise.


@contextmanager
def greeting(home: Path, **said: object) -> Iterator[Script]:
    script = Script()
    hello = {"version": "9.9.9", "protocol": 1, "pid": 7, "url": "http://127.0.0.1:1", **said}
    script.answers = [JSONResponse(hello)] + [JSONResponse({"models": []})] * 3
    (home / "serve").mkdir(mode=0o700)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(home / "serve" / "server.sock"))
        with serving(script, listener):
            yield script


def test_another_version_of_the_same_protocol_is_named(tmp_path: Path):
    with greeting(tmp_path):
        done = freehold(tmp_path, "ps")
    assert done.status == 0 and "note: the server is freehold 9.9.9, this command is" in done.err


@pytest.mark.parametrize("verb", ["ps", "stop"])
def test_another_protocol_is_an_error_with_both_versions_and_a_way_out(tmp_path: Path, verb: str):
    with greeting(tmp_path, protocol=2):
        done = freehold(tmp_path, verb)
    assert done.status == 1
    assert "the server (freehold 9.9.9, pid 7) uses protocol 2, this command (freehold" in done.err
    assert "hint: " in done.err and "kill 7" in done.err


def test_run_beside_a_server_of_another_protocol_loads_the_model_here_and_says_so(tmp_path: Path, tiny: str):
    with greeting(tmp_path, protocol=2):
        done = freehold(tmp_path, "run", tiny, *ASKED)
    assert (
        done.status == 0
        and done.out.strip()
        and "uses protocol 2" in done.err
        and "loading the model in this process" in done.err
    )


# What is refused before anything is loaded.


def test_a_port_that_is_taken_is_said_with_its_owner_and_a_free_one(tmp_path: Path):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        done = freehold(tmp_path, "serve", "--port", str(port))
    assert (
        done.status == 1 and f"port {port} is in use by " in done.err and f"(pid {os.getpid()})" in done.err
    )
    assert re.search(r"hint: freehold serve --port \d+", done.err)


@pytest.mark.parametrize(
    ("args", "status", "part"),
    [
        (["--host", "0.0.0.0", "--port", "0"], 2, "no key is set"),
        (["--host", "nowhere.invalid", "--key-file", "keys", "--port", "0"], 2, "nowhere.invalid"),
        (["--host", "0.0.0.0", "--key-file", "keys", "--insecure"], 2, "keys are set"),
        (["--tls-cert", "keys"], 2, "--tls-key is missing"),
        (["--tls-cert", "keys", "--tls-key", "keys"], 2, "not a certificate"),
        (["no-such-model"], 1, "no model named 'no-such-model'"),
        (["/no/such/file.gguf"], 1, "cannot be opened"),
        (["--keep-alive", "soon"], 2, "write 30s, 5m, 2h or 7d, or never"),
        (["--key-file", "absent"], 2, "holds no key"),
        (["--draft", "x", "--no-speculation"], 2, "--no-speculation turns it off"),
        (["--keep-alve", "1m"], 2, "did you mean --keep-alive"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_loaded(tmp_path, monkeypatch, args, status, part):
    monkeypatch.chdir(tmp_path)
    assert freehold(tmp_path, "keys", "add", "ann", "--file", "keys").status == 0
    done = freehold(tmp_path, "serve", *args)
    assert (done.status, done.out) == (status, "") and part in done.err and done.err.count("error:") == 1


@pytest.mark.heavy
def test_a_server_none_of_whose_models_can_be_loaded_exits_1(home: Path, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with started(tmp_path, "serve", "--port", "0", str(tmp_path / "broken.gguf")) as process:
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(60) == 1 and "error: " in err and "Traceback" not in err


def test_a_server_that_may_open_few_files_answers_all_who_come(tmp_path: Path):
    with server(tmp_path, files=64) as (process, url), ExitStack() as held:
        address = ("127.0.0.1", httpx2.URL(url).port or 0)
        socks = [held.enter_context(socket.create_connection(address, timeout=60)) for _ in range(100)]
        with httpx2.Client(base_url=url) as client:
            for path in ("/health", "/version"):
                assert client.get(path).status_code == 200
        answered = 0
        for sock in socks:  # the older ones went for the newer ones
            with suppress(ConnectionError):
                sock.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answered += b" 200 " in sock.recv(1000)
        assert answered >= 8
        process.terminate()
        assert process.wait(60) == 0 and process.stderr is not None
        assert "this process may open 64 files (ulimit -n)" in process.stderr.read()


def test_insecure_says_who_reaches_what(tmp_path: Path):
    with started(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", "--insecure", "--json") as process:
        assert process.stdout is not None and process.stderr is not None and process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert "INSECURE: every host that reaches http://" in said and "/v1/chat/completions" in said
    assert "/admin/* stays closed" in said and "/admin/load" not in said and "freehold keys add" in said


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("never", -1), ("-1", -1)]
)
def test_lengths_of_time_are_read_as_people_write_them(text: str, seconds: float):
    assert Seconds(never=True).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "5 minutes", "m", "1e3", "never"])
def test_what_is_no_length_of_time_is_refused(text: str):
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


# The unit.


def installed(home: Path, *args: str) -> dict:
    done = freehold(home, "serve", "--install-service", "--json", *args)
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_the_unit_runs_this_command_line_and_lets_the_server_drain(tmp_path: Path, tiny: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert freehold(tmp_path, "keys", "add", "ann", "--file", "keys").status == 0
    said = installed(
        tmp_path, tiny, "--key-file", "keys", "--drain", "2m", "--no-speculation", "--origin", "http://a b"
    )
    path = tmp_path / ".config" / "systemd" / "user" / "freehold.service"
    assert said["path"] == str(path) and path.read_text() == said["unit"] and said["changed"]
    command = re.search("^ExecStart=(.*)$", said["unit"], re.M)
    assert command is not None and command[1].startswith(sys.executable)
    words = (
        f"--key-file={tmp_path}/keys",
        "--no-speculation",
        "--drain=120",
        '"--origin=http://a b"',
        " tiny",
    )
    assert all(word in command[1] for word in words)
    assert f"Environment=FREEHOLD_HOME={tmp_path}" in said["unit"]
    assert "TimeoutStopSec=135" in said["unit"] and "KillMode=mixed" in said["unit"]
    assert said["commands"] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now freehold.service",
    ]


def test_another_unit_is_overwritten_only_by_force(tmp_path: Path):
    first = installed(tmp_path)
    assert not installed(tmp_path)["changed"]
    done = freehold(tmp_path, "serve", "--install-service", "--port", "1234")
    assert done.status == 2 and "--force overwrites it" in done.err
    assert Path(first["path"]).read_text() == first["unit"]
    assert "--port=1234" in installed(tmp_path, "--port", "1234", "--force")["unit"]
    assert [p.name for p in Path(first["path"]).parent.iterdir()] == ["freehold.service"]


def test_a_key_from_the_environment_is_not_written_into_the_unit(tmp_path: Path):
    done = freehold(tmp_path, "serve", "--install-service", FREEHOLD_API_KEY=KEY)
    assert (done.status, done.out) == (2, "") and "freehold keys add" in done.err


def test_on_macos_an_agent_of_launchd_is_written(tmp_path: Path, tiny: str, monkeypatch, capsys):
    monkeypatch.setattr("freehold.cli.serving.service.IS_MAC", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "My Models"))
    assert main.run(["serve", tiny, "--install-service", "--json", "--port", "1234"]) == 0
    said = json.loads(capsys.readouterr().out)
    path = tmp_path / "Library" / "LaunchAgents" / "freehold.serve.plist"
    agent = plistlib.loads(path.read_bytes())
    unload = "launchctl bootout gui/$(id -u)/freehold.serve 2>/dev/null"  # bootstrap refuses a loaded agent
    load = f"launchctl bootstrap gui/$(id -u) {shlex.quote(str(path))}"
    assert said["path"] == str(path) and said["commands"] == [f"{unload}; {load}"]
    assert agent["ProgramArguments"][:5] == [sys.executable, "-P", "-m", "freehold.cli.main", "serve"]
    assert "--port=1234" in agent["ProgramArguments"][5:]
    assert agent["EnvironmentVariables"] == {"FREEHOLD_HOME": str(tmp_path / "My Models")}
    assert agent["ProcessType"] == "Interactive", "launchd would run it on slow cores"
    assert agent["ExitTimeOut"] > 15 and agent["Umask"] == 0o077


def test_an_agent_of_launchd_refuses_words_that_its_file_cannot_hold(tmp_path: Path):
    with pytest.raises(UsageError, match="property list"):
        service.agent(["freehold", "a\nb"], tmp_path, 30)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("/a b/c", '"/a b/c"'),
        ("100%h", "100%%h"),
        ("$HOME", "$$HOME"),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
    ],
)
def test_words_reach_the_program_as_they_were(word: str, written: str):
    assert quoted(word) == written
    with pytest.raises(UsageError):
        quoted(word + "\n")
    assert f"ExecStart={written} x\n" in unit([word, "x"], Path("/h"), 30)


@pytest.mark.heavy
def test_a_file_replaced_under_a_server_is_served_as_what_it_is_and_a_deleted_one_is_named(tmp_path: Path):
    """After the engine's restart other weights answer under the name: the fingerprint and the receipt say so."""
    (tmp_path / "config.toml").write_text("adopt = false\n")
    file = write_gguf("llama", tmp_path / "mine.gguf", dtype="Q8_0")

    def killed(process: subprocess.Popen[str]) -> None:
        import psutil

        for engine in psutil.Process(process.pid).children():
            engine.kill()
            engine.wait()

    def asked(url: str) -> tuple[int, dict[str, Any]]:
        said = httpx2.post(
            f"{url}/v1/completions",
            json={"model": "mine", "prompt": "Hi", "max_tokens": 4, "temperature": 0},
            timeout=60,
        )
        return said.status_code, said.json()

    with server(tmp_path, str(file)) as (process, url):
        (_, first), (_, same) = asked(url), asked(url)
        assert first["system_fingerprint"] == same["system_fingerprint"]
        assert first["system_fingerprint"].endswith(first["freehold"]["weights"][:12])
        os.replace(write_gguf("llama", tmp_path / "other.gguf", dtype="F16"), file)
        killed(process)
        (status, other), (_, again) = asked(url), asked(url)
        assert status == 200 and other["system_fingerprint"] == again["system_fingerprint"]
        assert other["system_fingerprint"] != first["system_fingerprint"]
        assert other["freehold"]["weights"] != first["freehold"]["weights"]
        killed(process)
        assert asked(url)[0] == 200
        file.unlink()
        killed(process)
        status, gone = asked(url)
        assert (status, gone["error"]["code"]) == (503, "file_vanished")
        assert "mine" in gone["error"]["message"] and gone["error"]["hint"]
        process.terminate()
        _, log = process.communicate()
    assert log.count("was replaced since it was recorded") == 1
