"""Engines killed under load: `python benches/server/chaos.py MODEL [--minutes 3] [--every 10] [--clients 4]`.

`freehold serve` answers greedy streams whose texts were first taken alone; every few seconds an engine process is
killed with SIGKILL. Exit 1 where a claim does not hold: every request ends explicitly, none hangs, what survives
says what it says alone, and the server answers at the end. Ends in one JSON line.
Path: chaos.py -> Chaos.run -> load.ask -> freehold serve
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from benches.lib import machine
from benches.lib.load_text import Prompts, tokenizer_of
from benches.server.load import Answer, ask, completion
from benches.server.own_server import admin, engines, names_of, own_server, tell
from benches.server.servers import Server

HANG_S = 90.0  # three deaths, three loads and three answers take less
OUTPUT = 96
PROMPTS = 6


@dataclass
class Chaos:
    """Clients that ask for known answers, and a killer."""

    server: Server
    model: str
    prompts: list[str]
    random: random.Random
    alone: dict[str, str] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    async def run(self, seconds: float, every: float, clients: int) -> None:
        """Take every answer alone; then ask and kill."""
        for prompt in self.prompts:
            self.alone[prompt] = (await self._ask(prompt)).text
        end = time.perf_counter() + seconds
        killer = asyncio.create_task(self._kill(every, end))
        await asyncio.gather(*(self._client(end) for _ in range(clients)))
        await killer
        last = await self._ask(self.prompts[0])
        if last.text != self.alone[self.prompts[0]]:
            self.wrong.append(f"afterwards: status {last.status}, {last.text[:60]!r}")

    async def _ask(self, prompt: str) -> Answer:
        return await ask(
            self.server.port, "/v1/completions", completion(self.model, prompt, OUTPUT), limit_s=HANG_S
        )

    async def _client(self, end: float) -> None:
        while time.perf_counter() < end:
            prompt = self.random.choice(self.prompts)
            try:
                answer = await self._ask(prompt)
            except OSError as problem:
                self.wrong.append(f"no connection: {problem!r}")
                return
            self._judge(prompt, answer)
            if not answer.ok:
                await asyncio.sleep(0.1)

    def _judge(self, prompt: str, answer: Answer) -> None:
        deaths = sum(answer.sent < kill < answer.ended for kill in self.kills)
        if answer.hung:
            self.wrong.append(f"no end within {HANG_S:.0f} s, {deaths} deaths, {len(answer.pieces)} pieces")
        elif not answer.explicit:
            self.wrong.append(f"cut off after {len(answer.pieces)} pieces, status {answer.status}")
        elif answer.ok and answer.text != self.alone[prompt]:
            self.wrong.append(
                f"another answer after {deaths} deaths: {_difference(self.alone[prompt], answer.text)}"
            )
        end = "whole" if answer.ok else f"error {answer.status}: {_message(answer)}"
        self.ends[f"{deaths} deaths: {end}"] += 1

    async def _kill(self, every: float, end: float) -> None:
        while time.perf_counter() + every < end:
            await asyncio.sleep(every)
            running = engines(self.server)
            if running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.random.choice(running).kill()
                    self.kills.append(time.perf_counter())


def _message(answer: Answer) -> str:
    error = answer.error if isinstance(answer.error, dict) else {}
    return str(error.get("name") or error.get("code") or error.get("type") or answer.error)


def _difference(alone: str, text: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(alone, text, strict=False)) if a != b), min(len(alone), len(text))
    )
    return f"character {at}: {text[at : at + 30]!r} for {alone[at : at + 30]!r}"


def chaos(path: Path, seconds: float, every: float, clients: int, seed: int) -> dict[str, Any]:
    """Run it all; return the record, its `wrong` empty where every claim holds."""
    drawn = Prompts(tokenizer_of(path), seed)
    with own_server(path) as server:
        prompts = [drawn.draw(length) for length in (20, 40, 80, 160, 320, 640)[:PROMPTS]]
        run = Chaos(server, names_of(server)[0], prompts, random.Random(seed))
        asyncio.run(run.run(seconds, every, clients))
        restarts = sum(row["restarts"] for row in admin(server, "/admin/ps")["models"])
    record = {"bench": "chaos", **machine.describe(path), "seconds": seconds, "kills": len(run.kills)}
    record |= {"restarts": restarts, "requests": run.ends.total(), "ends": dict(sorted(run.ends.items()))}
    return {**record, "wrong": run.wrong}


def main() -> int:
    """Kill, print, return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--every", type=float, default=10, help="seconds between kills")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    record = chaos(machine.resolve(args.model), 60 * args.minutes, args.every, args.clients, args.seed)
    return tell(record, "ends")


if __name__ == "__main__":
    sys.exit(main())
