"""What our server adds to an engine: the smallest request, and processor time for each token of a stream.

`python -m benches.outgrow.overhead --python /path/to/vllm-env/bin/python --model FOLDER [--clients 16] [--rounds 60]`
`python -m benches.outgrow.overhead --standin` puts a stand-in without a model in the engine's place: what is left is
ours alone. The server is a process of its own; the same clients ask the engine on its socket and through us, in turn,
each waiting a random pause between two requests so that they do not queue on each other. Ends in one JSON line.
Path: overhead.py -> rig.Serving -> DeployedModels -> vLLM
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.results import percentile
from benches.outgrow.rig import NAME, events, planned, serving


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="", help="of an environment with vLLM")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--standin", action="store_true")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60, help="requests of a client on each road")
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between a client's requests")
    parser.add_argument("--tokens", type=int, default=512, help="of a stream")
    parser.add_argument("--engine-flag", action="append", default=[])
    args = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, args))
    process.start()
    found = ours.recv()
    try:
        print(json.dumps(asyncio.run(measured(args, found, psutil.Process(process.pid)))))
    finally:
        ours.send("end")
        process.join(60)


def serve(pipe: Connection, args: argparse.Namespace) -> None:
    """Serve in this process until the other end says so."""
    with tempfile.TemporaryDirectory(prefix="fh-") as folder:
        plan = _standin(Path(folder), args) if args.standin else planned(args, streams=args.clients)
        with serving(plan, drivers=_driver() if args.standin else None) as server:
            replica = server.models.deployed(NAME).replica(0)  # type: ignore[union-attr]
            provider = replica.calls.remote.provider  # type: ignore[union-attr]
            pipe.send((server.url, str(provider.socket), provider.key.value if provider.key else ""))
            pipe.recv()


def _driver() -> Any:
    from tests.outgrow.engines import StandInDriver

    return StandInDriver(slots=1000)


def _standin(folder: Path, args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from tests.outgrow import engines

    plan = engines.plan(folder, args.replicas)
    return replace(plan, model=replace(plan.model, name=NAME))


async def measured(
    args: argparse.Namespace, found: tuple[str, str, str], server: psutil.Process
) -> dict[str, Any]:
    """Return the figures."""
    url, socket, key = found
    headers = {"Authorization": f"Bearer {key}"}
    limit = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=limit) as through,
        aiohttp.ClientSession(
            timeout=limit, headers=headers, connector=aiohttp.UnixConnector(socket, limit=0)
        ) as direct,
    ):
        roads = {"direct": (direct, "http://engine"), "through": (through, url)}
        for session, base in roads.values():
            await _small(session, base, False)
        before = sum(server.cpu_times()[:2])
        smallest = {
            kind: await _in_turn(args, roads, stream) for kind, stream in (("whole", False), ("stream", True))
        }
        a_request = 1000 * (sum(server.cpu_times()[:2]) - before) / (2 * args.clients * args.rounds)
        cpu = [await _cpu(args, server, through, url, streams) for streams in (1, args.clients)]
    return {
        "bench": "overhead",
        "engine": "stand-in" if args.standin else "vllm",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "clients": args.clients,
        "requests_a_road": args.clients * args.rounds,
        "smallest_ms": smallest,
        "cpu_ms_a_request": round(a_request, 2),
        "cpu_ms_a_token": {"1 stream": cpu[0], f"{args.clients} streams": cpu[1]},
    }


async def _in_turn(args: argparse.Namespace, roads: dict[str, Any], stream: bool) -> dict[str, Any]:
    """Ask on both roads, each client in an order of its own."""
    took: dict[str, list[float]] = {name: [] for name in roads}

    async def client(number: int) -> None:
        draw = random.Random(number)
        for _ in range(args.rounds):
            for name in draw.sample([*roads], len(roads)):
                await asyncio.sleep(draw.uniform(0, 2 * args.pause))
                took[name].append(await _small(roads[name][0], roads[name][1], stream))

    await asyncio.gather(*(client(i) for i in range(args.clients)))
    figures = {
        name: {"p50": round(percentile(t, 50), 2), "p99": round(percentile(t, 99), 2)}
        for name, t in took.items()
    }
    added = {p: round(figures["through"][p] - figures["direct"][p], 2) for p in ("p50", "p99")}
    return {**figures, "added": added}


async def _small(session: aiohttp.ClientSession, base: str, stream: bool) -> float:
    """Ask for one token; return the milliseconds until all of the answer has come."""
    body = {"model": NAME, "prompt": "hi", "max_tokens": 1, "temperature": 0, "stream": stream}
    began = time.perf_counter()
    async with session.post(f"{base}/v1/completions", json=body) as reply:
        if reply.status != 200:
            raise SystemExit(f"{reply.status}: {await reply.text()}")
        await reply.read()
    return 1000 * (time.perf_counter() - began)


async def _cpu(
    args: argparse.Namespace, server: psutil.Process, session: aiohttp.ClientSession, url: str, streams: int
) -> float:
    """Return the milliseconds of our server's processor time for each event of streams."""

    async def one() -> int:
        body = {"model": NAME, "prompt": "hi", "max_tokens": args.tokens, "temperature": 0, "stream": True}
        async with session.post(f"{url}/v1/completions", json={**body, "ignore_eos": True}) as reply:
            return sum([1 async for _ in events(reply)])

    before = sum(server.cpu_times()[:2])
    counted = sum(await asyncio.gather(*(one() for _ in range(streams))))
    return round(1000 * (sum(server.cpu_times()[:2]) - before) / counted, 4)


if __name__ == "__main__":
    main()
