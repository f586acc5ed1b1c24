"""CPU time of one streamed event, by wire: split from the bytes, decoded, and made a chunk. No connection, no door.

Each wire's events are those its provider sends for a token of text, a token of thinking and a piece of a call's
arguments; the bytes come in reads of 1 event and of 16. The ceiling beside it is msgspec's decoding into plain values.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

import msgspec

from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.route.providers.contract import Kind
from freehold.route.providers.upstream import EventSplitter, wire_of

ASKED = Job(messages=(Message("user", "x"),))
EVENTS = 2000


def named(kind: str, **event: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **event})}\n\n".encode()


def anthropic() -> tuple[bytes, list[bytes]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "usage": {"input_tokens": 200, "output_tokens": 1}}
    begin = named("message_start", message=message)
    for index, block in enumerate(
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "text", "text": ""},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        )
    ):
        begin += named("content_block_start", index=index, content_block=block)
    deltas = (
        {"type": "thinking_delta", "thinking": " word"},
        {"type": "text_delta", "text": " word"},
        {"type": "input_json_delta", "partial_json": ' "wor'},
    )
    return begin, [named("content_block_delta", index=i, delta=delta) for i, delta in enumerate(deltas)]


def gemini() -> tuple[bytes, list[bytes]]:
    def event(part: dict[str, object]) -> bytes:
        counts = {"promptTokenCount": 200, "candidatesTokenCount": 9, "totalTokenCount": 209}
        candidate = {"content": {"parts": [part], "role": "model"}, "index": 0}
        body = {
            "candidates": [candidate],
            "usageMetadata": counts,
            "modelVersion": "gemini-3.8-flash",
            "responseId": "r1",
        }
        return b"data: " + json.dumps(body).encode() + b"\r\n\r\n"

    call = {"functionCall": {"name": "f", "args": {"city": "Paris"}}, "thoughtSignature": "c2ln" * 16}
    return b"", [event({"text": " word", "thought": True}), event({"text": " word"}), event(call)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    found: dict[str, float] = {}
    for kind, made in (("anthropic", anthropic()), ("gemini", gemini())):
        begin, events = made
        for name, event in zip(("thinking", "text", "call"), events, strict=True):
            for reads in (1, 16):
                spent = [one(kind, begin, event, reads) for _ in range(rounds)]
                key = f"{kind}, {name}, {reads} a read"
                found[key] = statistics.median(spent)
                print(f"{key:36} {found[key]:6.2f} us an event   [{min(spent):.2f}, {max(spent):.2f}]")
        payload = events[1].partition(b"data: ")[2].strip()
        began = time.process_time()
        for _ in range(EVENTS):
            msgspec.json.decode(payload)
        print(f"{kind + ', decoding alone':36} {(time.process_time() - began) * 1e6 / EVENTS:6.2f} us")
    print(f"load average {os.getloadavg()[0]:.1f}; medians of {rounds} rounds", file=sys.stderr)
    print(json.dumps({"load": round(os.getloadavg()[0], 1), **{k: round(v, 2) for k, v in found.items()}}))


def one(kind: Kind, begin: bytes, event: bytes, reads: int) -> float:
    """Return microseconds of CPU an event."""
    splitter, reader = EventSplitter(), wire_of(kind).reader(ASKED)
    for name, data in splitter.feed(begin + event):
        reader.push(name, data)
    block = event * reads
    began = time.process_time()
    for _ in range(EVENTS // reads):
        for name, data in splitter.feed(block):
            reader.push(name, data)
    return (time.process_time() - began) * 1e6 / (EVENTS // reads * reads)


if __name__ == "__main__":
    main()
