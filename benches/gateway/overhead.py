"""What a gateway adds to a request and to a stream: CPU time, milliseconds, memory; ours beside two peers.

The provider sends prepared bytes, from a process of its own; each gateway is a process; this client has a keep-alive
socket a connection. In each round the provider is asked directly and through every gateway, in turns, so that what else
the machine does meets all of them. CPU time is a gateway's own, user and system, of all its threads; wall times are the
client's. Prompts have 200 words, answers 40 tokens, streams 200 events. Ours has its ledger, labels with a detector, a
key and a budget on; TensorZero has no ledger here, Portkey has none. `--growth 200000`: memory over many requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benches.gateway import hop  # noqa: E402
from benches.lib import gateways  # noqa: E402
from benches.lib.environments import NotInstalled  # noqa: E402
from benches.lib.gateways import Asked  # noqa: E402

PEERS = {"tensorzero": gateways.tensorzero, "portkey": gateways.portkey}
PROMPT = " ".join(f"word{i}" for i in range(hop.WORDS))
CLIENTS = 32
FIRSTS = {
    "ten": "streams of 10 at once",
    "spaced": "streams of 0.1 s",
}  # between the latter all caches grow cold
Found = dict[str, dict[str, list[float]]]  # measure -> gateway -> a value a round


class Failed(Exception):
    """A gateway answered with something else than 200."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=800, help="a round, of each way")
    parser.add_argument("--streams", type=int, default=64, help="a round, of each kind")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=300, help="requests before the first round")
    parser.add_argument(
        "--growth", type=int, default=5000, help="requests between two looks at the memory of ours"
    )
    parser.add_argument(
        "--peers", default="tensorzero,portkey", help="names, separated by commas; '' for none"
    )
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    provider = multiprocessing.get_context("spawn").Process(target=hop.serve, args=(theirs,), daemon=True)
    provider.start()
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
            asked = [*_started(started, Path(folder), ours.recv(), given)]
            report(asyncio.run(measure(asked, given)), given)
    finally:
        provider.kill()
        provider.join()


def _started(stack: ExitStack, folder: Path, port: int, given: argparse.Namespace) -> Iterator[Asked]:
    """Start the gateways; a peer that cannot be installed or started here is left out, with the reason."""
    yield gateways.provider(port, given.events)
    yield stack.enter_context(gateways.freehold_gateway(folder, port, given.events))
    for name in filter(None, given.peers.split(",")):
        try:
            yield stack.enter_context(PEERS[name](folder, port, given.events))
        except NotInstalled as why:
            print(f"without {name}: {why}", file=sys.stderr)


async def measure(asked: list[Asked], given: argparse.Namespace) -> Found:
    found: Found = {}
    direct, *behind = asked
    for each in asked:
        await Way(each).at_once("whole", given.warm)
    started = {each.name: _memory(each) for each in behind}
    for turn in range(given.rounds):
        order = behind[turn % len(behind) :] + behind[: turn % len(behind)]
        base = sorted(await Way(direct).in_turn("whole", given.requests))
        early = {kind: await middle(Way(direct), kind, given) for kind in FIRSTS}
        for each in order:
            await one_round(found, each, base, early, given)
    for each in behind:
        keep(found, "memory, MB", each, _memory(each))
        keep(found, "memory gained in the rounds, MB", each, _memory(each) - started[each.name])
    await Way(behind[0]).at_once("whole", given.growth)
    gained = _memory(behind[0]) - found["memory, MB"][behind[0].name][0]
    keep(found, f"memory gained in {given.growth:,} further requests, MB", behind[0], gained)
    return found


async def one_round(
    found: Found, each: Asked, base: list[float], early: dict[str, float], given: argparse.Namespace
) -> None:
    way, n = Way(each), given.requests
    start = cpu(each)
    times = sorted(await way.in_turn("whole", n))
    keep(found, "request, one at a time: CPU ms", each, (cpu(each) - start) * 1e3 / n)
    for share in (50, 99):
        at = n * share // 100
        keep(found, f"request: added P{share}, ms", each, (times[at] - base[at]) * 1e3)
    start, began = cpu(each), time.perf_counter()
    await way.at_once("whole", n)
    spent = (cpu(each) - start) * 1e3 / n
    keep(found, f"request, {CLIENTS} at once: CPU ms", each, spent)
    keep(found, "requests a second of one core", each, 1e3 / spent)
    keep(
        found, "requests a second here, all processes on these cores", each, n / (time.perf_counter() - began)
    )
    for kind, said in (
        ("burst", "in one piece"),
        ("spaced", "0.5 ms apart"),
        ("claude", "of Anthropic's wire"),
    ):
        start = cpu(each)
        try:
            await way.at_once(kind, given.streams)
        except Failed as why:
            if each.name == "freehold":
                raise
            print(f"{each.name}, {kind}: {why}", file=sys.stderr)
            continue
        spent = (cpu(each) - start) * 1e3 / given.streams
        keep(found, f"stream of {given.events} events, {said}: CPU ms", each, spent)
    for kind, said in FIRSTS.items():
        keep(found, f"first event later by, {said}: ms", each, await middle(way, kind, given) - early[kind])


async def middle(way: Way, kind: str, given: argparse.Namespace) -> float:
    """Return the median of the milliseconds until the first event, one stream after the other."""
    return statistics.median(await way.first(kind, given.streams)) * 1e3


def keep(found: Found, name: str, of: Asked, value: float) -> None:
    found.setdefault(name, {}).setdefault(of.name, []).append(value)


def cpu(of: Asked) -> float:
    assert of.process is not None
    times = of.process.cpu_times()
    return times.user + times.system


def _memory(of: Asked) -> float:
    return (of.process or psutil.Process()).memory_info().rss / 1e6


class Way:
    """One way to an answer, over keep-alive connections."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    async def in_turn(self, kind: str, requests: int) -> list[float]:
        """Ask one after the other; return the seconds of each."""
        return await self._client(kind, iter(range(requests)))

    async def at_once(self, kind: str, requests: int) -> None:
        left = iter(range(requests))
        await asyncio.gather(*(self._client(kind, left) for _ in range(min(CLIENTS, requests))))

    async def first(self, kind: str, requests: int) -> list[float]:
        """Ask one after the other; return the seconds until the first event of each."""
        return await self._client(kind, iter(range(requests)), first=True)

    async def _client(self, kind: str, left: Iterator[int], *, first: bool = False) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._asked.port)
        request, seconds = self._asked.request(kind, PROMPT, 400), []
        for _ in left:
            began = time.perf_counter()
            writer.write(request)
            at = await _answer(reader)
            seconds.append((at if first else time.perf_counter()) - began)
        writer.close()
        return seconds


async def _answer(reader: asyncio.StreamReader) -> float:
    """Read an answer; return when its body began."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise Failed(f"{head.splitlines()[0].decode()} {(await reader.read(400))!r}")
    lower = head.lower()
    if b"content-length:" in lower:
        await reader.readexactly(int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]))
        return time.perf_counter()
    at = 0.0
    while (size := int(await reader.readuntil(b"\r\n"), 16)) or not at:
        await reader.readexactly(size + 2)
        at = at or time.perf_counter()
    await reader.readexactly(2)
    return at


def report(found: Found, given: argparse.Namespace) -> None:
    names = list(next(iter(found.values())))
    print(f"{'':58}" + "".join(f"{name:>26}" for name in names))
    for measure, of in found.items():
        cells = (of.get(name) for name in names)
        print(f"{measure:58}" + "".join(f"{_cell(values):>26}" for values in cells))
    load = os.getloadavg()[0]
    print(f"load average {load:.1f}; medians of {given.rounds} rounds, least and greatest", file=sys.stderr)
    medians = {m: {n: round(statistics.median(v), 4) for n, v in of.items()} for m, of in found.items()}
    print(json.dumps({"bench": "gateway/overhead", "load": round(load, 1), **medians}))


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
