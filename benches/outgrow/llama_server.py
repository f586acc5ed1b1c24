"""Drive a real llama-server as a deployment: start, doors, counters, deaths under load, a hang, drain, leftovers.

`python -m benches.outgrow.llama_server PROGRAM GGUF [--deaths 3]`
PROGRAM is a llama-server. Two replicas on Unix sockets answer greedy chats; a replica is killed (-9) while streams run,
then stopped (SIGSTOP) until it is found hung. Each stream must equal the undisturbed text as far as the engine is
deterministic. Ends in one JSON line.
Path: llama_server.py -> drivers.driver -> ReplicaSet -> llama-server
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan, EngineFacts, PlanRequest
from freehold.outgrow.planning import facts
from freehold.outgrow.replicas.deployment import ReplicaSet
from freehold.outgrow.replicas.replica import DEFAULTS
from freehold.route.providers.hop import Hop

TOKENS = 120
PROMPTS = (
    "Tell a story of a lighthouse.",
    "Explain how rain forms.",
    "Describe a market in spring.",
    "Name trees.",
)


def planned(program: str, model: Path, home: Path) -> DeployPlan:
    """Return the plan of two replicas on this machine's processor."""
    request = PlanRequest(
        model=replace(facts.of_path(model), name="bench"),
        nodes=facts.nodes_here(home),
        engine=EngineFacts(command=(program,)),
        context=1024,
        streams=4,
        replicas=2,
        socket=Path("{folder}/s.sock"),
    )
    return drivers.driver("llamacpp").plan(request)


def chat(said: str) -> Job:
    """Return a greedy chat of TOKENS tokens."""
    return Job(
        messages=(Message("user", said),), max_tokens=TOKENS, ignore_eos=True, sampling={"temperature": 0.0}
    )


async def answer(replicas: ReplicaSet, said: str) -> tuple[str, str]:
    """Return an answer's text and how it ended."""
    stream = await replicas.start(chat(said))
    text, end = "", "cut"
    try:
        async for _, chunk in stream:
            text += chunk.text
            end = chunk.finish_reason or end
    finally:
        await stream.aclose()
    return text, end


async def until(true: Any, most_s: float) -> float:
    """Wait until something is true; return the seconds."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > most_s:
            raise TimeoutError(f"not within {most_s:g} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def died_under_load(
    replicas: ReplicaSet, expected: list[str], number: int, kind: int
) -> dict[str, Any]:
    """Signal a replica while streams run; say how they ended and when it was back."""
    running = [asyncio.create_task(answer(replicas, said)) for said in PROMPTS]
    await until(lambda: replicas.replica(number).in_flight > 0, 60)
    await asyncio.sleep(0.4)
    before = replicas.replica(number).restarts
    flying = replicas.replica(number).in_flight
    os.kill(replicas.replica(number).row().pid, kind)
    began = time.monotonic()
    ended = await asyncio.gather(*running, return_exceptions=True)
    await until(lambda: replicas.replica(number).restarts > before, 60)
    await until(lambda: replicas.replica(number).ready, 60)
    texts = [e[0] if isinstance(e, tuple) else "" for e in ended]
    return {
        "in_flight_on_it": flying,
        "whole": sum(isinstance(e, tuple) and e[1] == "length" for e in ended),
        "equal": sum(a == b for a, b in zip(texts, expected, strict=True)),
        "failed": [repr(e) for e in ended if isinstance(e, BaseException)],
        "back_s": round(time.monotonic() - began, 2),
        "said": replicas.replica(number).said,
    }


def listens(pids: list[int]) -> list[str]:
    """Return the TCP ports that processes listen on."""
    told = subprocess.run(["ss", "-lntpH"], capture_output=True, text=True, check=False).stdout
    return [line.split()[3] for line in told.splitlines() if any(f"pid={pid}," in line for pid in pids)]


async def run(program: str, model: Path, deaths: int) -> dict[str, Any]:
    """Run all of it."""
    with tempfile.TemporaryDirectory(prefix="fh-") as made:
        folder = Path(made)
        plan = planned(program, model, folder)
        hop = Hop()
        limits = replace(DEFAULTS, hung_s=8.0, quiet_s=2.0)
        replicas = ReplicaSet(plan, drivers.driver_of, folder, hop, limits=limits)
        found: dict[str, Any] = {"program": program, "model": model.name, "tokens": TOKENS}
        try:
            began = time.monotonic()
            replicas.run()
            await until(lambda: all(r.ready for r in replicas), 120)
            found["ready_s"] = round(time.monotonic() - began, 2)
            rows = [r.row() for r in replicas]
            pids = [row.pid for row in rows]
            found["memory_mb"] = [round(row.memory_bytes / 1e6) for row in rows]
            found["planned_mb"] = round(plan.memory_bytes / 1e6)
            keys = [r.calls.remote.provider.key for r in replicas if r.calls is not None]
            lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
            found["key_in_command_line"] = any(k is not None and k.value.encode() in lines for k in keys)
            found["ports"] = listens(pids)
            expected = [(await answer(replicas, said))[0] for said in PROMPTS]
            again = [(await answer(replicas, said))[0] for said in PROMPTS]
            found["deterministic"] = sum(a == b for a, b in zip(expected, again, strict=True))
            log = "\n".join(line for r in replicas for line in r.log)
            found["prompts_in_log"] = sum(said in log for said in PROMPTS)
            found["kills"] = [
                await died_under_load(replicas, expected, n % 2, signal.SIGKILL) for n in range(deaths)
            ]
            found["hang"] = await died_under_load(replicas, expected, 0, signal.SIGSTOP)
            last = asyncio.create_task(answer(replicas, PROMPTS[0]))
            await until(lambda: replicas.in_flight > 0, 30)
            pids = [r.row().pid for r in replicas]
            began = time.monotonic()
            await replicas.stop(60.0)
            found["drained"] = (await last)[1] == "length"
            found["stop_s"] = round(time.monotonic() - began, 2)
            found["left"] = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            return found
        finally:
            await replicas.stop(0.0)
            await hop.close()


def main() -> None:
    """Run and print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("model", type=Path)
    parser.add_argument("--deaths", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(run(args.program, args.model, args.deaths))))


if __name__ == "__main__":
    main()
