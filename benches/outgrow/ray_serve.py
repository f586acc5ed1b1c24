"""Deploy a model on Ray Serve with two replicas, behind our server, and count what clients see.

`python -m benches.outgrow.ray_serve MODEL --engine freehold --ray /…/bin/python [--python /…/bin/python]`
A cluster of this machine is started by `freehold deploy --on ray` and ends with it. Checked: what listens, a wrong
token, the ingress without its key, a replica killed under a stream, a redeploy under three clients, and what Ray adds
to the smallest request, beside the same engine asked directly. Ends in one JSON line.
Path: ray_serve.py -> freehold deploy -> RayDriver -> head.py -> app.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.base.config import load_settings
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning.options import planned
from freehold.outgrow.process.process import free_port
from freehold.outgrow.ray.app import EngineChild
from freehold.outgrow.ray.plan import settings_of

START_S = 420.0
TOKENS = 200
LONG = "Tell a long story of a lighthouse, its keeper and the sea. " * 8


class Deployed:
    """`freehold deploy` as a child, and its HTTP."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.port = free_port()
        words = [
            str(Path(sys.executable).with_name("freehold")),
            "deploy",
            args.model,
            "--engine",
            args.engine,
        ]
        words += ["--on", f"ray:{args.ray}", "--replicas", "2", "--port", str(self.port), "--name", "m"]
        words += ["--log-level", "warning", "--offline"]
        words += [
            w for option in ("python", "context") if (v := getattr(args, option)) for w in (f"--{option}", v)
        ]
        self.home = tempfile.mkdtemp(prefix="fhb-")
        self.log = os.open(args.log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        environment = {**os.environ, "FREEHOLD_HOME": args.home or self.home}
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log, env=environment)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def processes(self, pattern: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    async def ask(
        self, prompt: str, tokens: int, on_token: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """Return status, text, whether it came to its end, and what the receipt says of a resume."""
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        text, whole, resumed, seen = "", False, 0, 0
        async with self.session.post(f"http://127.0.0.1:{self.port}/v1/completions", json=body) as reply:
            async for line in reply.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    whole = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return {"status": reply.status, "text": text, "whole": False, "error": event["error"]}
                text += "".join(choice.get("text") or "" for choice in event.get("choices", ()))
                found = re.search(r'"resumed_tokens": ?(\d+)', line.decode())
                resumed = max(resumed, int(found[1]) if found else 0)
                seen += 1
                if on_token is not None:
                    on_token(seen)
            return {
                "status": reply.status,
                "text": text,
                "whole": whole and reply.status == 200,
                "resumed": resumed,
            }

    async def ready(self) -> float:
        began = time.monotonic()
        while time.monotonic() - began < START_S:
            if self.process.poll() is not None:
                raise SystemExit(f"freehold deploy ended with status {self.process.returncode}")
            try:
                if (await self.ask("Hi", 1))["whole"]:
                    return time.monotonic() - began
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(1)
        raise SystemExit(f"not ready after {START_S:.0f} s")

    async def stop(self, number: int) -> float:
        """End it by a signal; return the seconds until no process is left, -1 where one was after ten seconds."""
        await self.session.close()
        tree = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        began = time.monotonic()
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
        _, left = psutil.wait_procs(tree, timeout=10)
        for each in left:
            each.kill()
        return -1.0 if left else time.monotonic() - began


def inside(deployed: Deployed, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the cluster's network namespace."""
    (head,) = deployed.processes(r"ray/head\.py.*--socket")[-1:]
    enter = ["nsenter", "--user", "--preserve-credentials", "--net", "--target", str(head.pid)]
    return subprocess.run([*enter, *words], capture_output=True, text=True, timeout=120)


def doors(deployed: Deployed, ray: str) -> dict[str, Any]:
    """Say what listens where, how a wrong token is answered, and what the ingress says without its key."""
    tree = {p.pid for p in psutil.Process(deployed.process.pid).children(recursive=True)} | {
        deployed.process.pid
    }
    outside = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout.splitlines()
    ours = [line.split()[3] for line in outside if any(f"pid={pid}," in line for pid in tree)]
    within = [line.split()[3] for line in inside(deployed, "ss", "-Hltn").stdout.splitlines()]
    code = "import ray; ray.init('127.0.0.1:26300')"
    wrong = inside(deployed, "env", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=" + "0" * 48, ray, "-c", code)
    (head,) = deployed.processes(r"ray/head\.py.*--socket")[-1:]
    argv = head.cmdline()
    socket = argv[argv.index("--socket") + 1]
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20", "--unix-socket", socket]
    codes = [
        subprocess.run([*curl, f"http://x{p}"], capture_output=True, text=True).stdout
        for p in ("/v1/models", "/")
    ]
    held = head.environ()
    secrets = [held["FREEHOLD_INGRESS_KEY"], held["RAY_AUTH_TOKEN"]]
    lines = " ".join(" ".join(p.cmdline()) for p in psutil.process_iter() if p.pid in tree)
    return {
        "listening_outside": sorted(set(ours)),
        "listening_beyond_loopback": [at for at in ours if not at.startswith(("127.", "[::1]"))],
        "listening_within": len(within),
        "wrong_token": "refused" if wrong.returncode and "Auth" in wrong.stderr + wrong.stdout else "taken",
        "ingress_without_key": codes,
        "key_in_a_command_line": any(secret in lines for secret in secrets),
    }


async def killed_in_mid_stream(deployed: Deployed, rounds: int) -> dict[str, Any]:
    """Kill a replica under a stream until `rounds` streams had theirs killed; compare with the undisturbed text."""
    undisturbed = (await deployed.ask(LONG, TOKENS))["text"]
    went_on = equal = hit = 0
    said: list[str] = []
    for attempt in range(6 * rounds):
        replicas = deployed.processes(r"ray::ServeReplica")
        if len(replicas) < 2:
            await asyncio.sleep(2)
            continue
        victim = replicas[attempt % 2]

        def kill(seen: int, victim: psutil.Process = victim) -> None:
            if seen == 20:
                victim.kill()

        found = await deployed.ask(LONG, TOKENS, kill)
        if found.get("resumed") or not found["whole"]:
            hit += 1
            went_on += found["whole"]
            equal += found["text"] == undisturbed
            if not found["whole"]:
                said.append(str(found.get("error"))[:200])
        await all_back(deployed)
        if hit == rounds:
            break
    return {"streams": hit, "went_on": went_on, "equal": equal, "errors": said}


async def all_back(deployed: Deployed, most_s: float = 240.0) -> None:
    until = time.monotonic() + most_s
    while time.monotonic() < until and len(deployed.processes(r"ray::ServeReplica")) < 2:
        await asyncio.sleep(0.5)
    await deployed.ask("Hi", 1)


async def redeploy(deployed: Deployed, clients: int) -> dict[str, Any]:
    """Replace every replica of Ray's under load."""
    old = {p.pid for p in deployed.processes(r"ray::ServeReplica")}
    counted = {"requests": 0, "failed": 0}
    longest, over = 0.0, False

    async def client(number: int) -> None:
        nonlocal longest
        while not over:
            began = time.monotonic()
            found = await deployed.ask(f"{number} {LONG}", 16)
            counted["requests"] += 1
            counted["failed"] += not found["whole"]
            longest = max(longest, time.monotonic() - began)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    began = time.monotonic()
    deployed.processes(r"ray/head\.py.*--socket")[-1].send_signal(signal.SIGHUP)
    now = old
    while time.monotonic() - began < START_S:
        now = {p.pid for p in deployed.processes(r"ray::ServeReplica")}
        if len(now) == 2 and not now & old:
            break
        await asyncio.sleep(0.5)
    took = time.monotonic() - began
    await asyncio.sleep(5)
    over = True
    await asyncio.gather(*tasks)
    return {**counted, "longest_s": round(longest, 2), "seconds": round(took, 1), "all_new": not now & old}


async def overhead(deployed: Deployed, args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    """Time the smallest request through Ray's ingress and at the same engine directly, in turn."""
    options = DeployOptions(
        args.model, "m", args.engine, on=f"ray:{args.ray}", python=args.python, replicas=1
    )
    plan = planned(load_settings(), replace(options, context=int(args.context or 0))).inner
    assert plan is not None
    direct = EngineChild({**settings_of(plan), "still_s": 300.0})
    direct.start()
    await direct.first_token()
    (head,) = deployed.processes(r"ray/head\.py.*--socket")[-1:]
    argv, key = head.cmdline(), head.environ()["FREEHOLD_INGRESS_KEY"]
    body = json.dumps(
        {"model": settings_of(plan)["model"], "prompt": "1 2 3", "max_tokens": 1, "temperature": 0}
    ).encode()
    door = aiohttp.UnixConnector(argv[argv.index("--socket") + 1])
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def timed(request: Callable[[], Any]) -> float:
        began = time.perf_counter()
        async with request() as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()
        return 1000 * (time.perf_counter() - began)

    through: list[float] = []
    alone: list[float] = []
    async with aiohttp.ClientSession(connector=door, headers=headers) as ingress:
        for _ in range(rounds):
            through.append(await timed(lambda: ingress.post("http://x/v1/completions", data=body)))
            alone.append(await timed(lambda: direct.request("POST", "/v1/completions", body)))
    await direct.close()
    through, alone = through[5:], alone[5:]
    added = statistics.median(through) - statistics.median(alone)
    return {
        "through_ray_ms": round(statistics.median(through), 2),
        "direct_ms": round(statistics.median(alone), 2),
        "added_ms": round(added, 2),
        "least_ms": [round(min(through), 2), round(min(alone), 2)],
        "requests": len(through),
        "load": os.getloadavg()[0],
    }


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    deployed = Deployed(args)
    result: dict[str, Any] = {"bench": "ray_serve", "engine": args.engine, "ray": "2.60.0"}
    steps: dict[str, Callable[[], Awaitable[Any]]] = {
        "doors": lambda: asyncio.to_thread(doors, deployed, args.ray),
        "killed": lambda: killed_in_mid_stream(deployed, args.kills),
        "redeploy": lambda: redeploy(deployed, 3),
        "overhead": lambda: overhead(deployed, args, args.requests),
    }
    try:
        result["ready_s"] = round(await deployed.ready(), 1)
        for name in args.steps.split(","):
            result[name] = await steps[name]()
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
    finally:
        number = signal.SIGKILL if args.kill else signal.SIGTERM
        result["ended_by"], result["ended_in_s"] = number.name, round(await deployed.stop(number), 1)
    return result


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--engine", default="freehold")
    parser.add_argument("--ray", required=True, help="a Python that has ray[serve]")
    parser.add_argument("--python", default="", help="a Python that has the engine")
    parser.add_argument("--context", default="")
    parser.add_argument("--home", default="", help="data folder with the model; default: an empty one")
    parser.add_argument("--kill", action="store_true", help="end freehold by SIGKILL: nothing of it may stay")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--requests", type=int, default=105)
    parser.add_argument("--steps", default="doors,killed,redeploy,overhead")
    parser.add_argument("--log", default="")
    args = parser.parse_args()
    if args.home:
        os.environ["FREEHOLD_HOME"] = args.home
    print(json.dumps(asyncio.run(measure(args))))


if __name__ == "__main__":
    main()
