"""Half an hour of every kind of client traffic, and what must hold of the server afterwards.

`python benches/server/soak.py MODEL [--minutes 30] [--clients 6] [--seed 1]`: `freehold serve` with eight names for one
file and room for two of them; whole and streamed answers, cancels, disconnects, slow readers, over-long prompts,
malformed bodies, unknown names. Ends in a table and one JSON line; exit 1 where a claim does not hold: only
documented statuses, every answer ended explicitly, memory flat within 3 % after warm-up (of a process, or from
engines to their successors), no file or task left over, the block pool empty.
Path: soak.py -> Soak.run -> load.ask -> freehold serve
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from benches.lib import machine
from benches.lib.load_text import Prompts, tokenizer_of
from benches.lib.machine import say
from benches.server.load import Answer, ask, completion
from benches.server.own_server import names_of, own_server, rows_of, settle, tell

NAMES, ROOM = 8, 2
CONTEXT = 1024
BURST_S, BURST_EVERY_S = 15.0, 120.0  # how long all names are asked for, and how often; else two
FULL = 0.99  # of its blocks in use or cached: an engine's pool has touched its memory
PARTS = 10  # of a process's warm life, the first compared with the last
HANG_S = 120.0  # an answer that has not ended by then never will
GROWTH = 1.03  # of memory, from the first tenth after warm-up to the last tenth
ENOUGH = 6  # engines that came and went, before their first half is compared with their second
SLACK_MB = 1.0  # that a small process may grow by all the same: an arena, a page table
# Threads that Python's own pool keeps for good, as many as were ever busy at once.
POOLED = min(32, (os.cpu_count() or 1) + 4)
BUSY = {200, 429, 503}
REFUSED = {400, 429, 503}

Ask = tuple[str, Any, dict[str, Any]]  # path, body, how it is read


@dataclass(frozen=True)
class Habit:
    """Something clients do: how often, what it sends, and the statuses that the documents name for it."""

    name: str
    weight: int
    make: Callable[[Soak, str], Ask]
    statuses: set[int] = field(default_factory=lambda: BUSY)


def _stream(soak: Soak, model: str, tokens: int = 0, **how: Any) -> Ask:
    body = completion(model, soak.prompt(), tokens or soak.random.choice((8, 24, 64)))
    return "/v1/completions", body, how


def _chat(soak: Soak, model: str, **fields: Any) -> Ask:
    messages = [{"role": "user", "content": soak.prompt()}]
    return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 24, **fields}, {}


def _completion(soak: Soak, model: str, **fields: Any) -> Ask:
    body = {"model": model, "prompt": soak.prompt(), "max_tokens": 16, **fields}
    return "/v1/completions", body, {}


HABITS = (
    Habit("stream", 20, _stream),
    Habit("chat", 10, _chat),
    Habit("chat, streamed", 10, lambda s, m: _chat(s, m, stream=True)),
    Habit("three answers", 4, lambda s, m: _completion(s, m, n=3, seed=7)),
    Habit("logprobs", 4, lambda s, m: _completion(s, m, logprobs=3)),
    Habit("echo scored", 4, lambda s, m: _completion(s, m, echo=True, logprobs=1, max_tokens=0)),
    Habit("batch priority", 4, lambda s, m: _completion(s, m, priority="batch")),
    Habit("leave at once", 6, lambda s, m: _stream(s, m, 64, leave_after=0)),
    Habit("leave midway", 10, lambda s, m: _stream(s, m, 200, leave_after=s.random.randint(1, 20))),
    Habit("leave a whole answer", 4, lambda s, m: (*_completion(s, m, max_tokens=200)[:2], {"limit_s": 0.5})),
    Habit("slow reader", 3, lambda s, m: _stream(s, m, 120, pause_s=0.3)),
    Habit("over-long prompt", 4, lambda s, m: _completion(s, m, prompt="word " * 3 * CONTEXT), REFUSED),
    Habit(
        "too many tokens", 3, lambda s, m: _completion(s, m, max_tokens=10**6, prompt="End."), BUSY | REFUSED
    ),
    Habit("malformed JSON", 4, lambda s, m: ("/v1/completions", b'{"model": "x", "prompt": [', {}), {400}),
    Habit("no JSON", 2, lambda s, m: ("/v1/chat/completions", b"\xff\x00\xfe", {}), {400}),
    Habit("wrong types", 3, lambda s, m: _completion(s, m, temperature="hot", n=[]), {400, 422}),
    Habit("unknown model", 3, lambda s, m: _chat(s, "no-such-model"), {404}),
    Habit("unknown route", 2, lambda s, m: ("/v1/nothing", {}, {}), {404}),
    Habit("tokenize", 3, lambda s, m: ("/tokenize", {"model": m, "prompt": s.prompt()}, {})),
    Habit("metrics", 3, lambda s, m: ("/metrics", None, {}), {200}),
    Habit("health", 3, lambda s, m: ("/health", None, {}), {200}),
)


@dataclass
class Soak:
    """A server under mixed traffic, and what is noticed."""

    server: Any
    names: list[str]
    prompts: list[str]
    random: random.Random
    clients: int
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: dict[int, list[float]] = field(
        default_factory=dict
    )  # pid -> MB, second by second once it is warm
    began: float = field(default_factory=time.monotonic)

    def prompt(self) -> str:
        """Draw one."""
        return self.random.choice(self.prompts)

    def model(self) -> str:
        """Draw a name: two are asked for all the time, the others in bursts."""
        burst = (time.monotonic() - self.began) % BURST_EVERY_S < BURST_S
        return self.random.choice(self.names if burst else self.names[:ROOM])

    async def run(self, seconds: float) -> None:
        """Keep all clients busy; then let what runs end."""
        end = time.monotonic() + seconds
        sampling = asyncio.create_task(self._sample())
        await asyncio.gather(*(self._client(end) for _ in range(self.clients)))
        sampling.cancel()

    async def _client(self, end: float) -> None:
        weights = [habit.weight for habit in HABITS]
        while time.monotonic() < end:
            (habit,) = self.random.choices(HABITS, weights)
            path, body, how = habit.make(self, self.model())
            try:
                answer = await ask(self.server.port, path, body, **{"limit_s": HANG_S, **how})
            except OSError as problem:
                self._problem(f"{habit.name}: {problem!r}")
                await asyncio.sleep(0.5)
                continue
            self._judge(habit, answer, bool(how))

    def _judge(self, habit: Habit, answer: Answer, impatient: bool) -> None:
        self.seen[f"{habit.name}: {'left' if answer.left else answer.status}"] += 1
        if answer.left and (impatient or not answer.hung):
            return
        if answer.hung:
            self._problem(f"{habit.name}: no end within {HANG_S:.0f} s")
        elif answer.status not in habit.statuses:
            self._problem(f"{habit.name}: status {answer.status}: {answer.body[:200]!r}")
        elif not answer.explicit and not impatient:
            self._problem(f"{habit.name}: cut off after {len(answer.pieces)} pieces")

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)
            say(text)

    async def _sample(self) -> None:
        """Note the memory of the HTTP process, and of an engine from when its pool has touched all its blocks."""
        known = set[int]()  # an engine that was just replaced still shows the numbers of the one before
        while True:
            rows = await rows_of(self.server)
            full = {row["pid"] for row in rows if _full(row) and row["pid"] in known}
            known = {row["pid"] for row in rows}
            warm = {self.server.process.pid} | full
            for pid in warm | self.memory.keys():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.memory.setdefault(pid, []).append(psutil.Process(pid).memory_info().rss / 1e6)
            await asyncio.sleep(1.0)

    def growth(self) -> dict[str, list[float]]:
        """Give memory in MB, tenth by tenth of its warm life, of every process that was long warm."""
        found = {}
        for pid, samples in self.memory.items():
            if len(samples) >= PARTS:
                edges = [len(samples) * i // PARTS for i in range(PARTS + 1)]
                parts = [samples[a:b] for a, b in pairwise(edges)]
                found[str(pid)] = [round(statistics.median(part), 1) for part in parts]
        return found


def _full(row: dict[str, Any]) -> bool:
    stats = row["stats"]
    return stats["blocks_live"] + stats["blocks_cached"] >= FULL * stats["blocks"]


def left_over(server: Any) -> dict[str, int]:
    """Count what a server at rest holds: files and threads of its HTTP process, sequences and blocks in use."""
    parent = server.family()[0]
    held = {"files": parent.num_fds(), "threads": parent.num_threads()}
    rows = asyncio.run(rows_of(server))
    stats = [row["stats"] for row in rows]
    held |= {name: sum(row[name] for row in stats) for name in ("running", "waiting", "blocks_live")}
    return held | {"in flight": sum(row["in_flight"] for row in rows), "models": len(rows)}


async def _warm(soak: Soak, seconds: float) -> None:
    """Touch every name once and run the traffic; what it noticed of memory is forgotten."""
    for name in soak.names[::-1]:
        await ask(soak.server.port, *_chat(soak, name)[:2])
    await soak.run(seconds)
    await settle(soak.server)
    soak.memory.clear()
    soak.began = time.monotonic()


def grown(growth: dict[str, list[float]], lives: dict[str, int]) -> list[str]:
    """Say which memory grew: a process there for half the run from its own start, engines from their predecessors.

    `growth`: MB by tenths of each process's life, in the order they came; `lives`: seconds of each. An engine that
    gave its place up after two minutes was warming up for most of them, so what it had at last is compared with
    what those before it had at last.
    """
    half = max(lives.values(), default=0) / 2
    lasting = {pid: parts for pid, parts in growth.items() if lives[pid] >= half}
    wrong = [
        f"process {pid} grew from {then} to {now} MB"
        for pid, (then, *_, now) in lasting.items()
        if now > then * GROWTH + SLACK_MB
    ]
    ends = [parts[-1] for pid, parts in growth.items() if pid not in lasting]
    if len(ends) >= ENOUGH:
        middle = len(ends) // 2
        early, late = statistics.median(ends[:middle]), statistics.median(ends[middle:])
        if late > early * GROWTH + SLACK_MB:
            wrong.append(
                f"engines grew from one to the next: {early} MB in the first half, {late} in the second"
            )
    return wrong


def verdict(
    soak: Soak, before: dict[str, int], after: dict[str, int], growth: dict[str, list[float]]
) -> list[str]:
    """List the claims that do not hold."""
    wrong = list(soak.problems)
    wrong += grown(growth, {str(pid): len(samples) for pid, samples in soak.memory.items()})
    for name in ("running", "waiting", "blocks_live", "in flight"):
        if after[name]:
            wrong.append(f"{after[name]} {name} when all had ended")
    for name, slack in (("files", 2), ("threads", POOLED)):
        if after[name] > before[name] + slack:
            wrong.append(f"{name} of the server: {before[name]} before, {after[name]} after")
    if after["models"] > ROOM:
        wrong.append(f"{after['models']} models loaded where there is room for {ROOM}")
    return wrong


def soak(path: Path, seconds: float, warm_s: float, clients: int, seed: int) -> dict[str, Any]:
    """Run it all; return the record, its `wrong` empty where every claim holds."""
    drawn = Prompts(tokenizer_of(path), seed)
    prompts = [drawn.draw(length) for length in (16, 40, 100, 250, 500) for _ in range(40)]
    with own_server(path, names=NAMES, room=ROOM, context=CONTEXT) as server:
        run = Soak(server, names_of(server), prompts, random.Random(seed), clients)
        asyncio.run(_warm(run, warm_s))
        before = left_over(server)
        asyncio.run(run.run(seconds))
        asyncio.run(settle(server))
        after = left_over(server)
        growth = run.growth()
        wrong = verdict(run, before, after, growth)
    record = {"bench": "soak", **machine.describe(path), "seconds": seconds, "requests": run.seen.total()}
    record |= {"before": before, "after": after, "memory_mb": growth}
    return {**record, "seen": dict(sorted(run.seen.items())), "wrong": wrong}


def main() -> int:
    """Soak, print, return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm", type=float, default=2, help="minutes before memory is judged")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path = machine.resolve(args.model)
    record = soak(path, 60 * args.minutes, 60 * args.warm, args.clients, args.seed)
    return tell(record, "seen")


if __name__ == "__main__":
    sys.exit(main())
