"""Restart and upgrade two vLLM replicas under clients: no request may fail or be cut, and first tokens stay quick.

`python -m benches.outgrow.rolling --python /path/to/vllm-env/bin/python --model FOLDER [--clients 8] [--requests 500]`
Sampled chats, so that none could be continued if it were cut. First tokens are timed before the roll and during it,
with the same clients, each of which waits --pause seconds between two requests. On a machine of few cores the start of
an engine takes processor time from the others, which the figures contain. Ends in one JSON line.
Path: rolling.py -> rig.serving -> DeployedModels.restart, DeployedModels.upgrade -> vLLM
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.results import percentile
from benches.outgrow.rig import NAME, Answer, Serving, arguments, ask, planned, serving


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.set_defaults(clients=8)
    parser.add_argument("--requests", type=int, default=500, help="in all, at least")
    parser.add_argument("--before", type=float, default=30.0, help="seconds before the roll")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between a client's requests")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--kinds", default="restart,upgrade")
    args = parser.parse_args()
    with serving(planned(args)) as server:
        result = asyncio.run(roll(args, server))
    print(json.dumps(result))


async def roll(args: argparse.Namespace, server: Serving) -> dict[str, object]:
    """Return the counts."""
    answers: list[Answer] = []
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        while not over.is_set():
            prompt = f"client {number} asks for {len(answers)}"
            answers.append(await ask(session, server.url, prompt, max_tokens=args.tokens, ignore_eos=True))
            await asyncio.sleep(args.pause)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        clients = [asyncio.create_task(client(session, i)) for i in range(args.clients)]
        await asyncio.sleep(args.before)
        began, took = time.monotonic(), {}
        pids = [server.row().replicas]
        for kind in args.kinds.split(","):
            at = time.monotonic()
            await asyncio.to_thread(rolled, server, kind)
            took[kind] = round(time.monotonic() - at, 1)
            pids.append(server.row().replicas)
            print(f"{kind}: {took[kind]} s, {len(answers)} requests", flush=True)
        ended = time.monotonic()
        while len(answers) < args.requests:
            await asyncio.sleep(0.1)
        over.set()
        await asyncio.gather(*clients)
    before = first_tokens(answers, 0.0, began)
    during = first_tokens(answers, began, ended)
    after = first_tokens(answers, ended, time.monotonic())
    failed = [a for a in answers if not a.whole]
    return {
        "bench": "rolling",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "clients": args.clients,
        "requests": len(answers),
        "failed": len(failed),
        "cut_in_silence": sum(a.silent for a in answers),
        "errors": [a.error[:200] for a in failed[:3]],
        "took_s": took,
        "engines_replaced": len({r.pid for rows in pids for r in rows}) - len(pids[0]),
        "first_token_ms": {
            name: {"n": len(some), "p50": ms(some, 50), "p99": ms(some, 99)}
            for name, some in (("before", before), ("during", during), ("after", after))
        },
        "p99_ratio": round(percentile(during, 99) / (percentile(before, 99) or 1.0), 2),
    }


def rolled(server: Serving, kind: str) -> None:
    """Roll once; an upgrade is to the same engine with one more note."""
    if kind == "restart":
        server.do(lambda: server.models.restart(NAME))
    else:
        plan = server.row().plan
        server.do(lambda: server.models.upgrade(NAME, replace(plan, notes=(*plan.notes, "upgraded"))))


def first_tokens(answers: list[Answer], since: float, until: float) -> list[float]:
    """Return the seconds to the first token of requests that began in a span."""
    return [a.first - a.began for a in answers if since <= a.began < until and a.first]


def ms(values: list[float], percent: float) -> float:
    """Return a percentile in milliseconds."""
    return round(1000 * percentile(values, percent), 1)


if __name__ == "__main__":
    main()
