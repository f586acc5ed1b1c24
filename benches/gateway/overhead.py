"""What the gateway adds to a request and to a stream: CPU time, milliseconds, memory; ledger, labels and budgets on.

Three processes: `freehold serve --gateway`, a provider that sends prepared bytes, and this client with a keep-alive
socket a connection. Direct and through alternate in each round, so that what else the machine does meets both. CPU time
is the gateway's own, user and system; wall times are the client's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benches.gateway import hop  # noqa: E402

SECRET = "fh-bench-0123456789abcdefghijklmnop"
# Everything that costs: a detector reads each prompt, each key has a budget and a price, each request a row.
FILE = """
[providers.far]
kind = "openai"
url = "http://127.0.0.1:{port}/{path}"
key = "env:BENCH_KEY"
[models.{name}]
provider = "far"
model = "m"
price = {{ input = 1.0, cached = 0.1, output = 10.0 }}
[labels.private]
stay = "owned"
detect = ["pii", "secrets"]
[keys.bench]
budget = {{ usd = 100000000, per = "day" }}
"""
ANOTHER = """
[providers.{path}]
kind = "openai"
url = "http://127.0.0.1:{port}/{url}"
key = "env:BENCH_KEY"
[models.{path}]
provider = "{path}"
model = "m"
price = {{ input = 1.0, cached = 0.1, output = 10.0 }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="a round, of each way")
    parser.add_argument("--streams", type=int, default=50, help="of --events events, a round")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=300, help="requests before the first round")
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    provider = multiprocessing.get_context("spawn").Process(target=hop.serve, args=(theirs,), daemon=True)
    provider.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report(run(Path(folder), ours.recv(), given), given)
    finally:
        provider.kill()
        provider.join()


def run(folder: Path, port: int, given: argparse.Namespace) -> dict[str, Any]:
    """Serve a gateway, and measure it."""
    from freehold.server.core.keys import KeyFile, key_of

    KeyFile(folder / "keys.json").add(key_of("bench", SECRET))
    text = FILE.format(port=port, path="whole", name="whole")
    for name, url in (
        ("burst", f"burst/{given.events}"),
        ("spaced", f"spaced/{given.events}"),
        ("ten", "burst/10"),
    ):
        text += ANOTHER.format(port=port, path=name, url=url)
    (folder / "gateway.toml").write_text(text)
    command = [
        sys.executable,
        "-m",
        "freehold.cli.main",
        "serve",
        "--port",
        "0",
        "--json",
        "--log-level",
        "warning",
    ]
    command += ["--gateway", str(folder / "gateway.toml"), "--max-requests", "1000"]
    environment = {**os.environ, "FREEHOLD_HOME": str(folder), "BENCH_KEY": "sk-bench"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        return asyncio.run(measure(psutil.Process(server.pid), int(url.rpartition(":")[2]), port, given))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


async def measure(
    gateway: psutil.Process, ours: int, theirs: int, given: argparse.Namespace
) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    direct, through = Way(theirs, "/whole"), Way(ours, "/v1")
    await through.at_once("whole", given.warm)
    await direct.at_once("whole", given.warm)
    before = gateway.memory_info().rss
    for _ in range(given.rounds):
        times = {}
        for name, way in (("direct", direct), ("through", through)):
            start = cpu(gateway)
            times[name] = sorted(await way.in_turn("whole", given.requests))
            if way is through:
                keep(found, "request, one at a time: CPU ms", (cpu(gateway) - start) * 1e3 / given.requests)
        for share in (50, 99):
            at = len(times["direct"]) * share // 100
            keep(found, f"request: added P{share} ms", (times["through"][at] - times["direct"][at]) * 1e3)
        start, began = cpu(gateway), time.perf_counter()
        await through.at_once("whole", given.requests)
        keep(found, "request, 32 at once: CPU ms", (cpu(gateway) - start) * 1e3 / given.requests)
        keep(found, "requests a second, wall", given.requests / (time.perf_counter() - began))
        for kind in ("burst", "spaced", "ten"):
            start = cpu(gateway)
            firsts = await through.at_once(kind, given.streams, stream=True)
            spent = (cpu(gateway) - start) * 1e3 / given.streams
            keep(found, f"stream of {10 if kind == 'ten' else given.events}, {kind}: CPU ms", spent)
        del firsts
    found["memory, MB"] = [gateway.memory_info().rss / 1e6]
    found["memory gained in the rounds, MB"] = [(gateway.memory_info().rss - before) / 1e6]
    return {name: statistics.median(values) for name, values in found.items()} | {"all": found}


def keep(found: dict[str, list[float]], name: str, value: float) -> None:
    found.setdefault(name, []).append(value)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Way:
    """One way to an answer: a port and the beginning of its path."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path

    async def in_turn(self, model: str, requests: int) -> list[float]:
        """Ask one after the other; return the seconds of each."""
        return await self._client(model, iter(range(requests)), False)

    async def at_once(
        self, model: str, requests: int, *, stream: bool = False, clients: int = 32
    ) -> list[float]:
        left = iter(range(requests))
        done = await asyncio.gather(
            *(self._client(model, left, stream) for _ in range(min(clients, requests)))
        )
        return [seconds for each in done for seconds in each]

    async def _client(self, model: str, left: Any, stream: bool) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        prompt = " ".join(f"word{i}" for i in range(hop.WORDS))
        asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 400}
        body = json.dumps({**asked, "stream": stream}).encode()
        head = (
            f"POST {self._path}/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {SECRET}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        request, seconds = head.encode() + body, []
        for _ in left:
            began = time.perf_counter()
            writer.write(request)
            await _answer(reader)
            seconds.append(time.perf_counter() - began)
        writer.close()
        return seconds


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head + await reader.read(1000)
    lower = head.lower()
    if b"content-length:" in lower:
        await reader.readexactly(int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]))
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")


def report(found: dict[str, Any], given: argparse.Namespace) -> None:
    spread = found.pop("all")
    for name, median in found.items():
        print(f"{name:44} {median:10.3f}   [{min(spread[name]):.3f}, {max(spread[name]):.3f}]")
    load = os.getloadavg()[0]
    print(f"load average {load:.1f}; medians of {given.rounds} rounds, least and greatest", file=sys.stderr)
    print(json.dumps({"load": round(load, 1), **{k: round(v, 4) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
