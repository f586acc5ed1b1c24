"""What the engine view costs a server of 200 streams: CPU time of the HTTP process, and how late tokens come.

`python benches/console/live.py [--streams 200] [--rounds 6] [--seconds 8]`. The engine computes nothing: it sends a
token of every stream at a fixed pace. Rounds without and with a viewer take turns on the same streams; what a viewer
adds is the median of the differences. A look holds the loop, so its own CPU time is the most that it can delay a token:
twice a second, so that no look of less than 5 ms reaches one token of a hundred. Prints a table and one JSON line; exit
1 when a figure misses its ceiling.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.server.overhead import until_ready  # noqa: E402
from benches.server.servers import free_port  # noqa: E402

EVERY_S = 0.5  # between two looks
STEP_S = 0.1  # between two tokens of a stream
CEILINGS = {"core_percent": 1.0, "later_p99_ms": 1.0, "look_percent": 1.0}


def serve(port: int, looks: str) -> None:
    """Be the server: one scripted model in an engine process. Each look's CPU seconds go to the file `looks`."""
    from freehold.base.config import load_settings
    from freehold.cli.serving.logs import logging_to
    from freehold.run.store import Store
    from freehold.serve.http.console.live import LiveFeed
    from freehold.serve.http.core.limits import ServerLimits
    from freehold.serve.http.core.sockets import bind_tcp
    from freehold.serve.http.serve import ServerSettings, run
    from freehold.serve.worker.models import EngineModels
    from freehold.serve.worker.wire import Script

    async def models() -> EngineModels:
        return EngineModels(Store(load_settings()), scripts={"slow": Script(words=100_000, step_s=STEP_S)})

    made = LiveFeed._snapshot

    def timed(self: LiveFeed) -> dict[str, bytes]:
        began = time.thread_time()
        events = made(self)
        with open(looks, "a", encoding="utf-8") as file:
            file.write(f"{time.thread_time() - began}\n")
        return events

    LiveFeed._snapshot = timed
    settings = ServerSettings(limits=ServerLimits(caller_requests=4096))
    with open(os.devnull, "w", encoding="utf-8") as log, logging_to(log, "warning", "text"):
        run(models, settings, bind_tcp("127.0.0.1", port), preload=["slow"])


async def stream(port: int, seen: list[float]) -> None:
    """Read one answer; add the time of each arrival to `seen`."""
    chat = {
        "model": "slow",
        "messages": [{"role": "user", "content": "Go."}],
        "max_tokens": 4000,
        "stream": True,
    }
    data = json.dumps(chat).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        while await reader.read(1 << 16):
            seen.append(time.perf_counter())
    finally:
        writer.close()


async def view(port: int, states: list[int]) -> None:
    """Be a viewer; add the bytes of each event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /console/api/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    try:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                states.append(len(line))
    finally:
        writer.close()


def gaps(seen: list[list[float]], since: float, until: float) -> list[float]:
    """Return the milliseconds between neighbouring tokens of each stream, sorted."""
    found: list[float] = []
    for times in seen:
        within = [t for t in times if since <= t < until]
        found += [1e3 * (b - a) for a, b in pairwise(within)]
    return sorted(found)


async def measure(port: int, pid: int, streams: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Take rounds in turns; return each one's CPU share and lateness."""
    import psutil

    http = psutil.Process(pid)
    seen: list[list[float]] = [[] for _ in range(streams)]
    readers = [asyncio.create_task(stream(port, times)) for times in seen]
    await asyncio.sleep(3)
    rows: list[dict[str, Any]] = []
    for number in range(2 * rounds):
        viewed, states = number % 2 == 1, []
        viewer = asyncio.create_task(view(port, states)) if viewed else None
        await asyncio.sleep(1)
        began, before = time.perf_counter(), http.cpu_times()
        await asyncio.sleep(seconds)
        ended, after = time.perf_counter(), http.cpu_times()
        if viewer is not None:
            viewer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await viewer
        cpu = (after.user + after.system - before.user - before.system) / (ended - began)
        delays = gaps(seen, began, ended)
        rows.append(
            {
                "viewed": viewed,
                "cpu_percent": 100 * cpu,
                "p50_ms": delays[len(delays) // 2],
                "p99_ms": delays[int(len(delays) * 0.99)],
                "tokens": len(delays),
                "states": len(states),
                "bytes": max(states, default=0),
            }
        )
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    for reader in readers:
        reader.cancel()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--looks", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.looks)
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "FREEHOLD_HOME": home, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        looks = Path(home) / "looks"
        command = [sys.executable, __file__, "--serve", str(port), "--looks", str(looks)]
        with subprocess.Popen(command, env=env) as process:
            try:
                asyncio.run(until_ready(port))
                rows = asyncio.run(measure(port, process.pid, args.streams, args.rounds, args.seconds))
            finally:
                process.terminate()
                process.wait(30)
        spent = sorted(map(float, looks.read_text().split()))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    found = {
        "streams": args.streams,
        "core_percent": round(statistics.median(b["cpu_percent"] - a["cpu_percent"] for a, b in pairs), 3),
        "later_p99_ms": round(statistics.median(b["p99_ms"] - a["p99_ms"] for a, b in pairs), 3),
        "p99_ms_without": round(statistics.median(a["p99_ms"] for a, _ in pairs), 3),
        "cpu_percent_without": round(statistics.median(a["cpu_percent"] for a, _ in pairs), 2),
        "look_ms": round(1e3 * statistics.median(spent), 3),
        "look_percent": round(100 * statistics.median(spent) / EVERY_S, 3),
        "look_p99_ms": round(1e3 * spent[int(len(spent) * 0.99)], 3),
        "state_bytes": max(row["bytes"] for row in rows),
        "rounds": args.rounds,
        "ceilings": CEILINGS,
    }
    print(json.dumps(found))
    if any(found[name] > ceiling for name, ceiling in CEILINGS.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
