"""Look at a deployment from outside: what listens, what is written down, which routes answer, what a death leaves.

`python -m benches.outgrow.guard --python PYTHON --model FOLDER [--part kill|stop]`
Starts `freehold deploy` as a user does, with a key of its own, and vLLM behind it. Then, from /proc and the file system
alone: every port of every process is on loopback; no key is in a command line, an environment but the engine's own, or
a log; a prompt that was answered, refused and broken off is nowhere on a disk or in a log; telemetry and the hub are
off in each process's environment; none of vLLM's other routes is reached through our door, though the engine itself
has them. Then kill -9 of freehold: what lives 10 s later, what lies in /dev/shm and in the temporary files. A second
start: its worker is killed under a request, which the engine then prints, and freehold is asked to end. Prints one line
of JSON.
Path: guard.py -> freehold deploy; seen.Tree
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import say
from benches.outgrow.seen import Tree, alive, command_line, environment
from freehold.outgrow.process.process import free_port

FREEHOLD = [sys.executable, "-P", "-m", "freehold.cli.main"]
MARK = "zebra-umbrella-quartz-8041"  # in every prompt
OFF = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
READY_S, GONE_S = 420.0, 10.0
# Of vLLM 0.32.0: served without its key, of administration, or beyond what jobs are.
ROUTES = (
    ("POST", "/invocations"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/load"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/ping"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/generative_scoring"),
    ("GET", "/kv_event_sources"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/inference/v1/abort_requests"),
    ("POST", "/v1/systemone"),
    ("POST", "/v1/chat/completions/render"),
    ("POST", "/v1/completions/derender"),
    ("POST", "/v1/chat/completions/batch"),
    ("POST", "/pause"),
    ("POST", "/sleep"),
    ("POST", "/collective_rpc"),
    ("GET", "/server_info"),
    ("POST", "/start_profile"),
    ("POST", "/v1/load_lora_adapter"),
)
# Routes of our own with the same names: with our key, from our own tokenizer and description.
OURS = ("/tokenize", "/detokenize", "/version", "/openapi.json", "/docs")


@dataclass
class Deployed:
    """A `freehold deploy` that runs, and what it wrote."""

    process: subprocess.Popen[bytes]
    home: Path
    url: str
    key: str
    said: Path
    tree: Tree
    ready_s: float = 0.0

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, str]:
        """Return status and text of a request through our door."""
        sent = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=sent, method=method)
        request.add_header("Content-Type", "application/json")
        if key := self.key if key is None else key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode("utf-8", "replace")
        except OSError as e:
            return 0, str(e)

    def until_ready(self, model: str) -> None:
        """Wait for a token. Raises SystemExit where it ends first."""
        began = time.monotonic()
        body = {"model": model, "messages": [{"role": "user", "content": f"Say {MARK}"}], "max_tokens": 2}
        while self.ask("POST", "/v1/chat/completions", body)[0] != 200:
            if self.process.poll() is not None or time.monotonic() - began > READY_S:
                raise SystemExit(self.said.read_text() + "\nnot ready")
            self.tree.look()
            time.sleep(0.05)
        self.ready_s = time.monotonic() - began


def deploy(home: Path, model: Path, engine: list[str]) -> Deployed:
    """Start a server with a deployment and a key."""
    env = {**os.environ, "FREEHOLD_HOME": str(home)}
    added = subprocess.run(
        [*FREEHOLD, "keys", "add", "guard"], env=env, capture_output=True, text=True, check=True
    )
    key = re.search(r"\S{24,}", added.stdout)
    assert key is not None, added.stdout
    port, said = free_port(), home / "said.txt"
    command = [*FREEHOLD, "deploy", str(model), "--name", "tiny", "--context", "2048", "--streams", "4"]
    with said.open("wb") as out:
        process = subprocess.Popen([*command, *engine, "--port", str(port)], env=env, stdout=out, stderr=out)
    return Deployed(process, home, f"http://127.0.0.1:{port}", key[0], said, Tree(process.pid))


# --- what is seen ------------------------------------------------------------------------------------


def requests_of_all_kinds(run: Deployed) -> dict[str, int]:
    """Send prompts with the mark that are answered, refused, broken off; return the statuses."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": f"{MARK} one"}], "max_tokens": 4}
    prompt = {"model": "tiny", "prompt": f"{MARK} two", "max_tokens": 4}
    said = {
        "chat": run.ask("POST", "/v1/chat/completions", chat)[0],
        "stream": run.ask("POST", "/v1/chat/completions", chat | {"stream": True})[0],
        "completion": run.ask("POST", "/v1/completions", prompt)[0],
        "anthropic": run.ask("POST", "/v1/messages", chat)[0],
        "ollama": run.ask("POST", "/api/chat", chat | {"options": {"num_predict": 4}})[0],
        "too many answers": run.ask("POST", "/v1/completions", prompt | {"n": 100_000})[0],
        "too long": run.ask("POST", "/v1/completions", prompt | {"prompt": f"{MARK} " * 4000})[0],
        "a wrong field": run.ask("POST", "/v1/chat/completions", chat | {"temperature": "hot"})[0],
        "a wrong schema": run.ask(
            "POST",
            "/v1/chat/completions",
            chat
            | {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": MARK, "schema": {"type": 7}},
                }
            },
        )[0],
    }
    with socket.create_connection(("127.0.0.1", int(run.url.rsplit(":", 1)[1]))) as broken:
        body = json.dumps(chat | {"stream": True, "max_tokens": 1500}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {run.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        broken.sendall(head.encode() + body)
        broken.recv(2000)
    return said


def texts(run: Deployed) -> dict[str, str]:
    """Return everything that was written: what freehold said, the engine's log, files of the data folder."""
    env = {**os.environ, "FREEHOLD_HOME": str(run.home)}
    log = subprocess.run(
        [*FREEHOLD, "deploy", "logs", "tiny"], env=env, capture_output=True, text=True, check=False
    )
    found = {"log": log.stdout + log.stderr}
    temporary = [Path(environment(p.pid).get("TMPDIR", "/nowhere")) for p in run.tree.look()]
    for folder in {run.home, *(t for t in temporary if t.name.startswith("fhe-"))}:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 32 << 20:
                found[str(path)] = path.read_bytes().decode("utf-8", "replace")
    return found


def doors(run: Deployed) -> dict[str, Any]:
    """Ask for vLLM's other routes through our door, and of the engine itself on its socket."""
    reached, ours, there, open_there = [], [], 0, 0
    place = next(iter(run.home.rglob("s.sock")), None)
    for method, path in ROUTES:
        body = {"prompt": "x", "model": "tiny", "tokens": [1]} if method == "POST" else None
        status, _ = run.ask(method, path, body)
        without = run.ask(method, path, body, key="none")[0]
        if status not in (401, 403, 404, 405) or without not in (401, 404, 405):
            known = path in OURS and without == 401
            (ours if known else reached).append(f"{method} {path}: {status}, {without} without a key")
        if place is not None:
            asked = [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--max-time",
                "20",
                "--unix-socket",
                str(place),
            ]
            post = [
                "-X",
                method,
                "-H",
                "Content-Type: application/json",
                *(["-d", json.dumps(body)] if body else []),
            ]
            done = subprocess.run(
                [*asked, *post, f"http://engine{path}"], capture_output=True, text=True, check=False
            )
            there += done.stdout not in ("404", "000")
            open_there += done.stdout not in ("404", "000", "401")
    return {
        "closed": len(ROUTES) - len(reached) - len(ours),
        "reached": reached,
        "our_own": ours,
        "engine_has": there,
        "engine_open_without_key": open_there,
    }


def secrets_of(run: Deployed) -> dict[str, str]:
    """Return the keys: ours, and the engine's as its own environment has it."""
    engine = [environment(process.pid) for process in run.tree.look()]
    held = {env["VLLM_API_KEY"] for env in engine if "VLLM_API_KEY" in env}
    return {"ours": run.key, **{f"engine {n}": key for n, key in enumerate(held)}}


def engines_of(run: Deployed) -> list[psutil.Process]:
    """Return the processes of the engine: those with its environment."""
    return [process for process in run.tree.look() if "VLLM_API_KEY" in environment(process.pid)]


def examined(run: Deployed) -> dict[str, Any]:
    """Return what is seen from outside."""
    statuses = requests_of_all_kinds(run)
    processes, engines, keys = run.tree.look(), engines_of(run), secrets_of(run)
    written, lines = texts(run), {p.pid: command_line(p.pid) for p in run.tree.look()}
    listeners = run.tree.listeners()
    others = {p.pid: environment(p.pid) for p in processes if p not in engines}
    return {
        "processes": len(processes),
        "engine_processes": len(engines),
        "requests": statuses,
        "listeners": len(listeners),
        "beyond_loopback": [str(each) for each in listeners if each.beyond],
        "remote": sorted(run.tree.remote()),
        "keys": len(keys),
        "keys_in_command_lines": [p for p, line in lines.items() if any(k in line for k in keys.values())],
        "keys_in_texts": [n for n, text in written.items() if any(k in text for k in keys.values())],
        "engine_keys_in_other_environments": [
            pid
            for pid, env in others.items()
            if any(k in env.values() for n, k in keys.items() if n != "ours")
        ],
        "prompt_in_texts": [name for name, text in written.items() if MARK in text],
        "texts": len(written),
        "log_lines": written["log"].count("\n"),
        "not_off": sorted(
            f"{p.name()}: {name}"
            for p in engines
            for name, v in OFF.items()
            if environment(p.pid).get(name) != v
        ),
        "development_mode": [p.pid for p in engines if environment(p.pid).get("VLLM_SERVER_DEV_MODE") == "1"],
        "routes": doors(run),
        "without_key": {p: run.ask("GET", p, key="none")[0] for p in ("/v1/models", "/metrics")},
    }


def crashed(run: Deployed) -> dict[str, Any]:
    """Kill the engine's worker under a request whose stop string has the mark; look for it in what it prints."""
    body = {
        "model": "tiny",
        "prompt": "On",
        "max_tokens": 1500,
        "stop": [MARK],
        "stream": True,
        "temperature": 0,
    }
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run.ask, "POST", "/v1/completions", body)
        time.sleep(1.0)
        victim = max(engines_of(run), key=lambda process: process.pid)
        victim.kill()
        time.sleep(6.0)
        written = texts(run)
        dumped = [line for line in written["log"].splitlines() if "text of requests is left out" in line]
        found = [name for name, text in written.items() if MARK in text]
        run.process.send_signal(signal.SIGTERM)
        return {"prompt_in_texts": found, "dumps_left_out": len(dumped), "answer": answer.result()[0]}


# --- what is left ------------------------------------------------------------------------------------


def lying() -> set[str]:
    """Return what lies in shared memory and in the system's temporary folder that an engine could have left."""
    temporary = Path(tempfile.gettempdir())
    shared = Path("/dev/shm")
    uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|vllm_dist.*|fhe-.{8}")
    return {str(p) for p in shared.iterdir()} | {
        str(p) for p in temporary.iterdir() if uuid.fullmatch(p.name)
    }


def left(run: Deployed, before: set[str], end: Callable[[], None]) -> dict[str, Any]:
    """End it; return what lives 10 s later, how long the last process took, and what lies about."""
    processes = run.tree.look()
    end()
    began, gone = time.monotonic(), 0.0
    while time.monotonic() - began < GONE_S:
        if not any(alive(p) for p in processes):
            break
        gone = time.monotonic() - began
        time.sleep(0.05)
    names = {name for name in lying() - before if not _of_others(name)}
    return {
        "processes": len(processes),
        "alive": [command_line(p.pid)[:80] for p in processes if alive(p)],
        "last_ended_s": round(gone, 2),
        "lying": sorted(names),
    }


def _of_others(name: str) -> bool:
    """Whether a living process maps it or has its files there: other engines may run on this machine."""
    for process in psutil.process_iter():
        try:
            if name in Path(f"/proc/{process.pid}/maps").read_text(errors="replace"):
                return True
            if environment(process.pid).get("TMPDIR") == name:
                return True
        except OSError:
            continue
    return False


def main() -> None:
    """Examine a deployment; kill it; start another and stop it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="", help="of an environment with vLLM")
    parser.add_argument("--command", default="", help="or the words that start vLLM")
    parser.add_argument("--model", type=Path, required=True, help="a folder, such as tiny.py makes")
    parser.add_argument("--part", choices=("all", "kill", "stop"), default="all", help="which start to make")
    args = parser.parse_args()
    engine = [
        "--engine",
        "vllm",
        *(("--python", args.python) if args.python else ("--command", args.command)),
    ]
    result: dict[str, Any] = {"bench": "guard"}
    with tempfile.TemporaryDirectory(prefix="guard-", ignore_cleanup_errors=True) as folder:
        if args.part != "stop":
            result |= _killed(Path(folder) / "a", args.model, engine)
        if args.part != "kill":
            result |= _stopped(Path(folder) / "b", args.model, engine)
    print(json.dumps(result))


def _killed(home: Path, model: Path, engine: list[str]) -> dict[str, Any]:
    home.mkdir(mode=0o700)
    before = lying()
    run = deploy(home, model, engine)
    try:
        run.until_ready("tiny")
        say(f"ready after {run.ready_s:.0f} s")
        seen = examined(run)
        return {"ready_s": round(run.ready_s, 1), **seen, "after_kill_9": left(run, before, run.process.kill)}
    finally:
        run.process.kill()
        run.process.wait()


def _stopped(home: Path, model: Path, engine: list[str]) -> dict[str, Any]:
    home.mkdir(mode=0o700)
    before = lying()
    run = deploy(home, model, engine)

    def end() -> None:
        run.process.wait(90)

    try:
        run.until_ready("tiny")
        say(f"ready after {run.ready_s:.0f} s; its worker is killed, and then it is stopped")
        crash = crashed(run)
        return {"crash": crash, "after_stop": left(run, before, end) | {"status": run.process.returncode}}
    finally:
        run.process.kill()
        run.process.wait()


if __name__ == "__main__":
    main()
