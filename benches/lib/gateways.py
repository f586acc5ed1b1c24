"""Gateways as processes of their own, in front of the prepared provider of gateway/hop.py: ours and two peers.

Each says how it is asked for an answer of a kind: `whole`, `burst`, `spaced`, `ten` (OpenAI's wire to its provider),
`claude` (Anthropic's). Knows how they are started; measures nothing.
Path: gateway/overhead.py -> freehold_gateway, tensorzero, portkey -> Asked
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benches.lib.environments import DRIVERS, NotInstalled, environment, node_environment

SECRET = "fh-bench-0123456789abcdefghijklmnop"
START_S = 30.0
# Everything that costs: a detector reads each prompt, each key has a budget and a price, each request a row.
_FILE = """
[labels.private]
stay = "owned"
detect = ["pii", "secrets"]
[keys.bench]
budget = { usd = 100000000, per = "day" }
"""
_MODEL = """
[providers.%(name)s]
kind = "%(kind)s"
url = "%(url)s"
key = "env:BENCH_KEY"
[models.%(name)s]
provider = "%(name)s"
model = "m"
price = { input = 1.0, cached = 0.1, output = 10.0 }
"""


@dataclass(frozen=True)
class Asked:
    """A gateway, or the provider itself. `models`: kind -> model; `paths`: kind -> path before /chat/completions."""

    name: str
    port: int
    process: psutil.Process | None = None
    path: str = "/v1"
    paths: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # headers

    def request(self, kind: str, prompt: str, most: int) -> bytes:
        """Return the bytes of a request for an answer of this kind."""
        asked = {
            "model": self.models.get(kind, kind),
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": most,
            "stream": kind != "whole",
        }
        body = json.dumps(asked).encode()
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {SECRET}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **self.headers,
            **self.by_kind.get(kind, {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = self.paths.get(kind, self.path)
        return f"POST {path}/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


def provider_paths(events: int) -> dict[str, str]:
    """Return where the provider of hop.py has each kind."""
    return {
        "whole": "/whole",
        "burst": f"/burst/{events}",
        "spaced": f"/spaced/{events}",
        "ten": "/burst/10",
        "claude": f"/claude/{events}",
    }


def provider(port: int, events: int) -> Asked:
    """Return the provider, asked without a gateway."""
    return Asked("direct", port, paths=provider_paths(events))


@contextmanager
def freehold_gateway(folder: Path, port: int, events: int) -> Iterator[Asked]:
    """Serve ours as a user does: ledger, labels with a detector, a key with a budget, its log at the usual level."""
    from freehold.serve.http.core.keys import KeyFile, key_of

    KeyFile(folder / "keys.json").add(key_of("bench", SECRET))
    text = _FILE
    for name, path in provider_paths(events).items():
        kind = "anthropic" if name == "claude" else "openai"
        text += _MODEL % {"name": name, "kind": kind, "url": f"http://127.0.0.1:{port}{path}"}
    (folder / "gateway.toml").write_text(text)
    command = [sys.executable, "-m", "freehold.cli.main", "serve", "--port", "0", "--json"]
    command += ["--gateway", str(folder / "gateway.toml")]
    environ = {**os.environ, "FREEHOLD_HOME": str(folder), "BENCH_KEY": "sk-bench"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        yield Asked("freehold", int(url.rpartition(":")[2]), psutil.Process(server.pid))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@contextmanager
def tensorzero(folder: Path, port: int, events: int) -> Iterator[Asked]:
    """Serve TensorZero's gateway in a process of Python; its log of requests and its ledger are off."""
    text = "[gateway]\nobservability.enabled = false\n"
    for name, path in provider_paths(events).items():
        if name != "claude":
            text += f'[models.{name}]\nrouting = ["far"]\n[models.{name}.providers.far]\ntype = "openai"\n'
            text += f'model_name = "m"\napi_base = "http://127.0.0.1:{port}{path}/"\n'
            text += 'api_key_location = "env::BENCH_KEY"\n'
    (folder / "tensorzero.toml").write_text(text)
    command = [str(environment("tensorzero")), str(DRIVERS / "peer_tensorzero.py")]
    environ = {**os.environ, "BENCH_KEY": "sk-bench", "RUST_LOG": "error"}
    server = subprocess.Popen(
        [*command, str(folder / "tensorzero.toml")],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdin is not None and server.stdout is not None
        line = next((each for each in server.stdout if each.startswith("{")), "")
        if not line:
            raise NotInstalled(f"TensorZero's gateway ended with status {server.wait()}")
        port = int(json.loads(line)["url"].split(":")[2].split("/")[0])
        models = {name: f"tensorzero::model_name::{name}" for name in provider_paths(events)}
        yield Asked("tensorzero", port, psutil.Process(server.pid), "/openai/v1", models=models)
    finally:
        server.kill()
        server.wait()


@contextmanager
def portkey(folder: Path, port: int, events: int) -> Iterator[Asked]:
    """Serve Portkey's gateway; with the newest @hono/node-server it answers every stream with 500."""
    home = node_environment("portkey", {"@portkey-ai/gateway": "1.15.2"}, {"@hono/node-server": "1.13.8"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    with open(folder / "portkey.log", "w") as log:
        command = ["node", str(script), "--headless", f"--port={own}"]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(own)
        base = f"http://127.0.0.1:{port}"
        to = {name: {"x-portkey-custom-host": base + path} for name, path in provider_paths(events).items()}
        to = {
            name: {**each, "x-portkey-provider": "anthropic" if name == "claude" else "openai"}
            for name, each in to.items()
        }
        yield Asked("portkey", own, psutil.Process(server.pid), by_kind=to)
    finally:
        server.kill()
        server.wait()


def _wait(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise NotInstalled(f"no server on port {port} after {START_S:g} s") from None
            time.sleep(0.1)
