"""An engine that computes nothing: continuous batching whose steps sleep for a known time.

`python -m benches.outgrow.sleeping --port PORT [--pace 2.2] [--request 0.02]`
It speaks enough of OpenAI's API for `freehold deploy bench` and predicted.py. As its steps take no processor, a busy
machine disturbs it little: what is wrong with a prediction of it is wrong with the method, not with the moment. A word
is a token; a prompt that came before is in its prefix cache but for the last 16 tokens. With --pace a step with prompts
takes at most that multiple of its answers alone; with --request each request keeps all answers waiting so long.
Path: predicted.py -> sleeping.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field

STEP_S, ANSWER_S = 0.015, 0.002  # a step, and each answer in it
DEPTH_S, PROMPT_S = 2e-6, 8e-4  # a token of an answer's context, a token of a prompt
CHUNK, UNCACHED = 512, 16


@dataclass
class Asked:
    """A request: prompt tokens left to read, tokens of context, tokens left to make."""

    left: int
    depth: int
    tokens: int
    made: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)  # False: the last was made

    def token(self) -> bool:
        """Make one; return whether it was the last."""
        self.depth, self.tokens = self.depth + 1, self.tokens - 1
        self.made.put_nowait(True)
        if self.tokens <= 0:
            self.made.put_nowait(False)
        return self.tokens <= 0


class SleepingEngine:
    """Steps, one after another."""

    def __init__(self, pace: float, request_s: float) -> None:
        self._pace, self._request_s, self._cached = pace, request_s, set[str]()
        self._owed_s = 0.0
        self._reading: list[Asked] = []
        self._decoding: list[Asked] = []
        self._work = asyncio.Event()

    def ask(self, prompt: str, tokens: int) -> Asked:
        """Take a request."""
        words = len(prompt.split())
        asked = Asked(min(words, UNCACHED) if prompt in self._cached else words, words, tokens)
        self._cached.add(prompt)
        self._reading.append(asked)
        self._owed_s += self._request_s
        self._work.set()
        return asked

    async def run(self) -> None:
        """Step while there is work."""
        while True:
            if not self._reading and not self._decoding:
                self._work.clear()
                await self._work.wait()
            await self._step()

    async def _step(self) -> None:
        owed, self._owed_s = self._owed_s, 0.0
        if owed:
            await asyncio.sleep(owed)
        begun, answers = time.perf_counter(), len(self._decoding)
        seconds = STEP_S + ANSWER_S * answers + DEPTH_S * sum(a.depth for a in self._decoding)
        room = CHUNK - answers
        if self._pace and answers:
            room = max(int((self._pace - 1) * seconds / PROMPT_S), 2)
        for asked in self._reading:
            part = min(asked.left, room)
            asked.left, room, seconds = asked.left - part, room - part, seconds + part * PROMPT_S
        await asyncio.sleep(seconds - (time.perf_counter() - begun))
        ended = [a for a in self._reading if not a.left]
        self._reading = [a for a in self._reading if a.left]
        self._decoding = [a for a in (*self._decoding, *ended) if not a.token()]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = (line.partition(": ") for line in head.split("\r\n"))
        length = next((int(value) for name, _, value in lines if name == "Content-Length"), 0)
        body = json.loads(await reader.readexactly(length) or b"{}")
        asked = self.ask(body["prompt"], body["max_tokens"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while await asked.made.get():
            writer.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        used = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
        writer.write(f"data: {json.dumps({'choices': [], 'usage': used})}\n\ndata: [DONE]\n\n".encode())
        writer.close()


async def main() -> None:
    """Serve until the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--request", type=float, default=0.0)
    args = parser.parse_args()
    engine = SleepingEngine(args.pace, args.request)
    server = await asyncio.start_server(engine.answer, "127.0.0.1", args.port)
    async with server:
        await engine.run()


if __name__ == "__main__":
    asyncio.run(main())
