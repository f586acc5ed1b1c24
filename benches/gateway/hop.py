"""CPU time of the way to a rented model: a request and a stream's event, by hop, wire and stream alone.

The stand-in provider runs in a process of its own and sends prepared bytes; this process's user and system time is
divided by requests, and the difference between long and short streams by events. Without a ledger, labels or a door.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import sys
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from freehold.base.serving import Job  # noqa: E402
from freehold.base.types import Message  # noqa: E402
from freehold.route.providers import upstream  # noqa: E402
from freehold.route.providers.contract import (  # noqa: E402
    Cleared,
    Provider,
    RemoteModel,
    Secret,
)
from freehold.route.providers.hop import Hop  # noqa: E402

WORDS = 200
TOKENS = 40
GAP_S = 0.0005  # between two events of a spaced stream: each then arrives in a read of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        import uvloop  # as `freehold serve` has it

        found = uvloop.run(measure(ours.recv(), given))
    finally:
        server.kill()
        server.join()
    for name, (median, low, high) in found.items():
        print(f"{name:44} {median:8.4f}   [{low:.4f}, {high:.4f}]")
    load = os.getloadavg()[0]
    print(f"load average {load:.1f}; medians of {given.rounds} rounds, least and greatest", file=sys.stderr)
    print(json.dumps({"load": round(load, 1), **{k: round(v[0], 5) for k, v in found.items()}}))


async def measure(port: int, given: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    def at(path: str) -> RemoteModel:
        return RemoteModel(
            Provider("far", "openai", f"http://127.0.0.1:{port}/{path}", Secret("sk-bench")), "m"
        )

    hop = Hop()
    kinds: dict[str, Callable[[], Awaitable[None]]] = {
        "whole, one at a time, ms a request": lambda: one_by_one(
            hop, at("whole"), given.requests, stream=False
        ),
        "whole, 32 at once, ms a request": lambda: at_once(hop, at("whole"), given.requests, stream=False),
        f"stream of {TOKENS}, 32 at once, ms a request": lambda: at_once(
            hop, at(f"burst/{TOKENS}"), given.requests
        ),
    }
    results: dict[str, list[float]] = {name: [] for name in kinds}
    events: dict[str, list[float]] = {"burst": [], "spaced": []}
    for round in range(given.rounds + 1):
        for name, work in kinds.items():
            spent = (await cpu(work)) * 1e3 / given.requests
            if round:
                results[name].append(spent)
        for way, per_event in events.items():
            long, short = [
                await cpu(lambda n=n, way=way: at_once(hop, at(f"{way}/{n}"), given.streams))
                for n in (given.events, 10)
            ]
            if round:
                per_event.append((long - short) * 1e6 / given.streams / (given.events - 10))
    await hop.close()
    results |= {f"{way} events, us an event": spent for way, spent in events.items()}
    return {name: (statistics.median(v), min(v), max(v)) for name, v in results.items()}


async def cpu(work: Callable[[], Awaitable[None]]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    await work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def one_by_one(hop: Hop, model: RemoteModel, requests: int, *, stream: bool = True) -> None:
    for _ in range(requests):
        await ask(hop, model, stream)


async def at_once(
    hop: Hop, model: RemoteModel, requests: int, *, stream: bool = True, clients: int = 32
) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await ask(hop, model, stream)

    await asyncio.gather(*(client() for _ in range(clients)))


PROMPT = Job(messages=(Message("user", " ".join(f"word{i}" for i in range(WORDS))),), max_tokens=400)


async def ask(hop: Hop, model: RemoteModel, stream: bool) -> None:
    cleared = Cleared(PROMPT, frozenset({"far"}))
    coming = await upstream.start(hop, cleared, model, first_token_s=30, timeout_s=60, stream=stream)
    try:
        last = None
        async for _, chunk in coming:
            last = chunk
        assert last is not None and last.finish_reason == "stop"
    finally:
        await coming.aclose()


# --- the provider, in its own process ------------------------------------------------------------------


def serve(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    server = await asyncio.start_server(_connected, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            _, kind, *rest = head.split(b" ", 2)[1].decode().split("/")
            if kind == "whole":
                writer.write(WHOLE)
            elif kind == "claude":
                await _stream(writer, int(rest[0]), 0.0, CLAUDE)
            else:
                await _stream(writer, int(rest[0]), GAP_S if kind == "spaced" else 0.0)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _stream(
    writer: asyncio.StreamWriter, events: int, gap_s: float, wire: tuple[bytes, bytes, bytes] | None = None
) -> None:
    begin, event, end = wire or (b"", EVENT, FINISH + b"data: [DONE]\n\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    if begin:
        writer.write(_chunk(begin))
    for _ in range(events):
        writer.write(_chunk(event))
        if gap_s:
            await asyncio.sleep(gap_s)
    writer.write(_chunk(end) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


USAGE = {"prompt_tokens": 260, "completion_tokens": TOKENS, "total_tokens": 260 + TOKENS,
         "prompt_tokens_details": {"cached_tokens": 0}}  # fmt: skip
FRAME = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": "m"}


def _event(choices: list[object], usage: object = None) -> bytes:
    return b"data: " + json.dumps({**FRAME, "choices": choices, "usage": usage}).encode() + b"\n\n"


EVENT = _event([{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}])
FINISH = _event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]) + _event([], USAGE)


def _named(kind: str, **event: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **event})}\n\n".encode()


_BEGUN = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
          "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 260, "output_tokens": 1}}  # fmt: skip
CLAUDE = (  # the same answer over Anthropic's wire: begin, an event, end
    _named("message_start", message=_BEGUN)
    + _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    _named("content_block_delta", index=0, delta={"type": "text_delta", "text": " token"}),
    _named("content_block_stop", index=0)
    + _named(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": TOKENS},
    )
    + _named("message_stop"),
)
_MESSAGE = {"role": "assistant", "content": " token" * TOKENS, "refusal": None}
_BODY = json.dumps(
    {**FRAME, "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}], "usage": USAGE}
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_BODY),
    _BODY,
)


if __name__ == "__main__":
    main()
