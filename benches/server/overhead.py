"""What the server itself costs: HTTP, JSON and two process hops around an engine that computes nothing.

`python benches/server/overhead.py [--seconds 5] [--streams 500]`; needs `wrk`. The HTTP process has one core, the
engine and the load the others. Prints a table and one JSON line; exit 1 when a figure misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.lib import machine  # noqa: E402
from benches.server import load  # noqa: E402
from benches.server.servers import free_port, get  # noqa: E402

ROUTE = "/v1/chat/completions"
WORDS, SLOW_WORDS, STEP_S = 4, 30, 0.1  # of a short answer; of a slow one, and seconds for each word
LOG_LEVEL = os.environ.get("LOG_LEVEL", "info")  # warning: no line a request
TARGETS = {"p50_ms": 1.0, "requests_s": 1500.0}
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
"""


def serve(port: int) -> None:
    """Be the server: two scripted models, each in an engine process of its own, and the log that `serve` writes."""
    from freehold.base.config import load_settings
    from freehold.cli.serving.logs import logging_to
    from freehold.run.store import Store
    from freehold.serve.http.core.limits import ServerLimits
    from freehold.serve.http.core.sockets import bind_tcp
    from freehold.serve.http.serve import ServerSettings, run
    from freehold.serve.worker.models import EngineModels
    from freehold.serve.worker.wire import Script

    async def models() -> EngineModels:
        scripts = {"quick": Script(words=WORDS), "slow": Script(words=SLOW_WORDS, step_s=STEP_S)}
        return EngineModels(Store(load_settings()), scripts=scripts)

    settings = ServerSettings(limits=ServerLimits(caller_requests=4096))
    with open(os.devnull, "w", encoding="utf-8") as log, logging_to(log, LOG_LEVEL, "text"):
        run(models, settings, bind_tcp("127.0.0.1", port), preload=["quick", "slow"])


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Start the server; yield its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "FREEHOLD_HOME": home, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        command = [sys.executable, __file__, "--serve", str(port)]
        with subprocess.Popen(command, env=env) as process:
            try:
                asyncio.run(until_ready(port))
                apart(process.pid)
                yield port
            finally:
                process.terminate()
                process.wait(30)


async def until_ready(port: int) -> None:
    """Wait until both models answer."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            if get(port, "/ready")[0] == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not become ready")


def apart(pid: int) -> None:
    """Give the HTTP process a core, and its engines and this process the others, where there are others."""
    import psutil

    *others, core = sorted(os.sched_getaffinity(0))
    http = psutil.Process(pid)
    for process, cores in (
        (http, [core]),
        (psutil.Process(), others),
        *((p, others) for p in http.children()),
    ):
        for thread in process.threads() if cores else ():
            os.sched_setaffinity(thread.id, cores)


def body(model: str, *, stream: bool, words: int) -> dict[str, Any]:
    """Return a short chat."""
    chat = [{"role": "user", "content": "What is the time?"}]
    return {"model": model, "messages": chat, "max_tokens": words, "stream": stream}


def wrk(port: int, clients: int, seconds: int, stream: bool) -> dict[str, float]:
    """Drive the server; return requests a second and latencies in milliseconds."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % json.dumps(body("quick", stream=stream, words=WORDS)))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--latency", "-s", script.name]
        command.append(f"http://127.0.0.1:{port}{ROUTE}")
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"wrk met errors:\n{out}")
    at = dict(re.findall(r"^\s+(50|99)%\s+(\S+)$", out, re.M))
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert found is not None, out
    return {"requests_s": float(found[1]), "p50_ms": _ms(at["50"]), "p99_ms": _ms(at["99"])}


def _ms(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(value) * UNITS[unit]


async def open_streams(port: int, count: int) -> dict[str, float]:
    """Hold `count` streams open at once; return how many came whole and what their gaps are beyond a step."""
    asked = body("slow", stream=True, words=SLOW_WORDS)
    answers = await asyncio.gather(*(load.ask(port, ROUTE, asked, limit_s=120.0) for _ in range(count)))
    gaps = sorted(gap for answer in answers for gap in answer.gaps)
    whole = sum(answer.ok and answer.done and len(answer.pieces) == SLOW_WORDS for answer in answers)
    return {
        "streams": count,
        "whole": whole,
        "gap_p50_ms": 1e3 * statistics.median(gaps),
        "gap_p99_ms": 1e3 * gaps[int(0.99 * len(gaps))],
        "step_ms": 1e3 * STEP_S,
    }


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    figures: dict[str, Any] = {}
    with server() as port:
        for name, clients, stream in (
            ("alone", 1, False),
            ("short", 16, False),
            ("short_streamed", 16, True),
        ):
            figures[name] = got = wrk(port, clients, args.seconds, stream)
            print(
                f"{name:<16}{got['requests_s']:8.0f} /s   P50 {got['p50_ms']:.2f} ms   P99 {got['p99_ms']:.2f} ms"
            )
        figures["open"] = got = asyncio.run(open_streams(port, args.streams))
        print(
            f"{args.streams} streams: {got['whole']} whole, gaps P50 {got['gap_p50_ms']:.1f} ms, "
            f"P99 {got['gap_p99_ms']:.1f} ms for steps of {got['step_ms']:.0f} ms"
        )
    print(json.dumps({"bench": "overhead", **machine.describe(Path("scripted")), **figures}))
    missed = (
        figures["alone"]["p50_ms"] > TARGETS["p50_ms"]
        or figures["short"]["requests_s"] < TARGETS["requests_s"]
    )
    return int(missed or figures["open"]["whole"] < args.streams)


if __name__ == "__main__":
    sys.exit(main())
