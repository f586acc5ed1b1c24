"""Kill engines of two vLLM replicas under load, and count what clients see of it.

`python -m benches.outgrow.chaos --python /path/to/vllm-env/bin/python --model FOLDER [--kills 30] [--every 20]`
Greedy chats of --clients clients, who pause for --pause seconds in between; every --every seconds a process of a busy
replica is ended by SIGKILL: the API server, the engine core or a worker in turn, of whatever replica is busy. Then
--hangs times one is stopped by SIGSTOP, and the seconds until it is found are measured. Every answer is compared with
the undisturbed one, asked for alone before; how many are equal under load without a death says how deterministic the
engine is. A replica starts again on the same processors, so pauses shorten the run. Ends in one JSON line.
Path: chaos.py -> rig.serving -> DeployedModels -> vLLM
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.outgrow.rig import Answer, Serving, arguments, ask, planned, serving

KINDS = ("api", "core", "worker")
TITLES = {"core": "EngineCore", "worker": "Worker"}
SPAWNED = "spawn_main"  # of multiprocessing: how both are called where no title is set


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills, at least")
    parser.add_argument("--hangs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--quiet", type=float, default=20.0, help="seconds of load without a death, before")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds between a client's requests, on average"
    )
    parser.add_argument("--most", type=float, default=540.0, help="seconds in all after the engines are up")
    args = parser.parse_args()
    with serving(planned(args)) as server:
        result = asyncio.run(Chaos(args, server).run())
    print(json.dumps(result))


class Chaos:
    """One run."""

    def __init__(self, args: argparse.Namespace, server: Serving) -> None:
        self.args, self.server = args, server
        self.draw = random.Random(21)
        self.prompts = [f"Tell me about {word}." for word in map(str, range(100, 100 + args.prompts))]
        self.alone: dict[str, str] = {}
        self.answers: list[Answer] = []
        self.ends: list[tuple[float, str, int]] = []  # when, what, which replica
        self.over = asyncio.Event()
        self.until = time.monotonic() + args.most

    async def run(self) -> dict[str, object]:
        """Return the counts."""
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self.session = session
            for prompt in self.prompts:
                self.alone[prompt] = (await self.asked(prompt)).text
            clients = [asyncio.create_task(self.client()) for _ in range(self.args.clients)]
            await asyncio.sleep(self.args.quiet)
            undisturbed, self.answers = self.answers, []
            missing = await self.kills()
            found = [await self.hang() for _ in range(self.args.hangs) if time.monotonic() < self.until]
            self.over.set()
            await asyncio.gather(*clients)
        return self.counted(undisturbed, found, missing)

    async def asked(self, prompt: str) -> Answer:
        return await ask(
            self.session,
            self.server.url,
            prompt,
            max_tokens=self.args.tokens,
            temperature=0,
            ignore_eos=True,
            stream_options={"include_usage": True},
        )

    async def client(self) -> None:
        while not self.over.is_set():
            answer = await self.asked(self.draw.choice(self.prompts))
            self.answers.append(answer)
            if answer.error:
                print(f"error: {answer.error}", flush=True)
                await asyncio.sleep(0.2)
            await asyncio.sleep(self.draw.uniform(0, 2 * self.args.pause))

    # --- deaths -----------------------------------------------------------------------------------

    async def kills(self) -> Counter[str]:
        missing: Counter[str] = Counter()
        for i in range(self.args.kills):
            if time.monotonic() > self.until:
                break
            kind = KINDS[i % len(KINDS)]
            number, process, kind = await self.victim(kind, missing)
            print(f"kill {i + 1}: {kind} of replica {number}", flush=True)
            process.kill()
            self.ends.append((time.monotonic(), kind, number))
            await asyncio.sleep(self.args.every)
        return missing

    async def victim(self, kind: str, missing: Counter[str]) -> tuple[int, psutil.Process, str]:
        """Return a process of a busy replica; of one without workers, the core in their place."""
        while True:
            rows = [r for r in self.server.row().replicas if r.state == "ready" and r.in_flight]
            ready = [r for r in self.server.row().replicas if r.state == "ready"]
            # The other one has to be there, or the deployment is what was killed.
            if rows and len(ready) > 1:
                row = self.draw.choice(rows)
                found = _processes(row.pid)
                if "core" in found:  # a tree that has just lost it is ending by itself
                    if kind not in found:
                        missing[kind] += 1
                        kind = "core"
                    return row.number, found[kind], kind
            await asyncio.sleep(0.1)

    async def hang(self) -> float:
        """Stop a core; return the seconds until its replica is no longer ready."""
        number, process, _ = await self.victim("core", Counter())
        began = time.monotonic()
        process.suspend()
        self.ends.append((began, "hang", number))
        print(f"SIGSTOP: core of replica {number}", flush=True)
        while any(r.number == number and r.state == "ready" for r in self.server.row().replicas):
            await asyncio.sleep(0.05)
        found = time.monotonic() - began
        print(f"found after {found:.1f} s", flush=True)
        await asyncio.sleep(5)
        return round(found, 1)

    # --- counts -----------------------------------------------------------------------------------

    def counted(
        self, undisturbed: list[Answer], found: list[float], missing: Counter[str]
    ) -> dict[str, object]:
        answers = self.answers
        failed = [a for a in answers if not a.whole]
        outside = [a for a in failed if not any(a.began <= at <= a.ended for at, _, _ in self.ends)]
        resumed = [a for a in answers if a.resumed]
        hit = [*resumed, *failed]
        row = self.server.row()
        return {
            "bench": "chaos",
            "clients": self.args.clients,
            "pause_s": self.args.pause,
            "replicas": self.args.replicas,
            "kills": dict(Counter(kind for _, kind, _ in self.ends)),
            "without_such_a_process": dict(missing),
            "requests": len(answers),
            "cut_in_silence": sum(a.silent for a in answers),
            "failed": len(failed),
            "failed_outside": len(outside),
            "resumed": len(resumed),
            "retried_before_first_token": row.retried,
            "continued_share": round(len(resumed) / len(hit), 4) if hit else None,
            "resumed_equal": sum(self.equal(a) for a in resumed),
            "whole_equal": sum(self.equal(a) for a in answers if a.whole and not a.resumed),
            "whole": sum(a.whole and not a.resumed for a in answers),
            "undisturbed": len(undisturbed),
            "undisturbed_equal": sum(self.equal(a) for a in undisturbed),
            "hang_found_s": found,
            "restarts": {r.number: r.restarts for r in row.replicas},
            "states": {r.number: r.state for r in row.replicas},
            "errors": [a.error[:200] for a in failed[:5]],
        }

    def equal(self, answer: Answer) -> bool:
        return answer.text == self.alone[answer.prompt]


def _processes(pid: int) -> dict[str, psutil.Process]:
    """Return a replica's processes by kind: the API server spawns the core, and the core its workers."""
    api = psutil.Process(pid)
    found = {"api": api}
    for child in api.children(recursive=True):
        title = " ".join(child.cmdline())
        if SPAWNED in title or any(word in title for word in TITLES.values()):
            found["core" if child.ppid() == pid else "worker"] = child
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
