"""A server of ours with vLLM deployed behind it, and clients that read streams: what the benches of this folder share.

The engines are real; the server runs in a thread of the bench, so that it sees each replica's processes.
Path: chaos.py, rolling.py, overhead.py -> serving -> DeployedModels -> vLLM
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from freehold.base.config import Settings
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan, EngineFacts, PlannedFlag, PlanRequest
from freehold.outgrow.planning import facts
from freehold.outgrow.replicas.models import DeployedModels
from freehold.outgrow.replicas.replica import DEFAULTS, ReplicaLimits
from freehold.run.store import Store
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import Doors, ServerSettings
from freehold.serve.worker.models import EngineModels

T = TypeVar("T")
NAME = "tiny"


@dataclass
class Answer:
    """What one client read."""

    prompt: str
    began: float
    first: float = 0.0
    ended: float = 0.0
    text: str = ""
    reason: str = ""
    error: str = ""
    done: bool = False  # its end event came: [DONE]
    receipt: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it ended as an answer does."""
        return self.done and bool(self.reason) and not self.error

    @property
    def silent(self) -> bool:
        """Whether it was cut and nothing said so."""
        return not self.whole and not self.error

    @property
    def resumed(self) -> bool:
        """Whether another replica took it over."""
        return bool(self.receipt.get("engine", {}).get("resumed"))


class Serving:
    """A server in a thread, and its deployments."""

    def __init__(self, home: Path, limits: ReplicaLimits, drivers: Any = None) -> None:
        self.models: DeployedModels
        self.doors: Doors
        self.loop: asyncio.AbstractEventLoop
        store = Store(Settings(home=home, offline=True))
        tcp, up = bind_tcp("127.0.0.1", 0), threading.Event()

        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.models = DeployedModels(EngineModels(store), home, drivers=drivers, limits=limits)
            self.doors = Doors(self.models, ServerSettings(home=home, drain_s=5.0), store=store)
            await self.doors.open(tcp, None, up.set)

        self._thread = threading.Thread(target=asyncio.run, args=(main(),))
        self._thread.start()
        up.wait(60)
        self.url = self.doors.url

    def do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result()

    def row(self) -> Any:
        """Return the deployment as it is now."""
        return self.models.rows()[0]

    def until_ready(self, most_s: float = 600.0) -> float:
        """Wait until every replica answers; return the seconds."""
        began = time.monotonic()
        while not all(r.state == "ready" for r in self.row().replicas):
            failed = [r.said for r in self.row().replicas if r.state == "failed"]
            if failed or time.monotonic() - began > most_s:
                lines = self.models.log(NAME, 0)[-20:]
                raise SystemExit("\n".join([*lines, f"not ready: {failed or self.row().replicas}"]))
            time.sleep(0.2)
        return time.monotonic() - began

    def end(self) -> None:
        """Stop the server and its engines."""
        self.loop.call_soon_threadsafe(lambda: self.doors.stop(now=True))
        self._thread.join(60)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benches ask."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--model", type=Path, required=True, help="a folder, such as tiny.py makes")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--engine-flag", action="append", default=[])
    return parser


def planned(args: argparse.Namespace, **more: Any) -> DeployPlan:
    """Return the plan of a bench: this machine, caches that leave room for several replicas."""
    model = facts.of_path(args.model)
    engine = EngineFacts(
        "0.32.0+cpu", (args.python, "-m", "vllm.entrypoints.openai.api_server"), cpu=True, checked=False
    )
    flags = ("--enforce-eager", "--kv-cache-memory-bytes=134217728", *args.engine_flag)
    request = PlanRequest(
        model,
        facts.nodes_here(Path(tempfile.gettempdir())),
        engine,
        **{
            "context": 2048,
            "streams": 16,
            "replicas": args.replicas,
            "flags": flags,
            "socket": Path("s.sock"),
            **more,
        },
    )
    plan = drivers.driver("vllm").plan(request)
    return replace(plan, model=replace(plan.model, name=NAME), flags=tuple(map(_named, plan.flags)))


def _named(flag: PlannedFlag) -> PlannedFlag:
    return replace(flag, value=NAME) if flag.name == "--served-model-name" else flag


@contextmanager
def serving(plan: DeployPlan, limits: ReplicaLimits = DEFAULTS, *, drivers: Any = None) -> Iterator[Serving]:
    """Serve a plan, all replicas ready. `drivers`: of stand-ins."""
    with tempfile.TemporaryDirectory(prefix="fh-") as folder:
        server = Serving(Path(folder), limits, drivers)
        try:
            server.do(lambda: server.models.add(plan))
            print(f"ready after {server.until_ready():.0f} s", flush=True)
            yield server
        finally:
            server.end()


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Yield the data of a stream's events."""
    async for line in reply.content:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


async def ask(session: aiohttp.ClientSession, url: str, prompt: str, **more: Any) -> Answer:
    """Ask for a streamed chat and read it to whatever end it has."""
    answer = Answer(prompt, time.monotonic())
    body = {"model": NAME, "messages": [{"role": "user", "content": prompt}], "stream": True, **more}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            if reply.status != 200:
                answer.error = f"{reply.status}: {(await reply.text())[:300]}"
            else:
                async for data in events(reply):
                    _take(answer, data)
    except aiohttp.ClientError as e:
        answer.reason = ""
        print(f"connection: {type(e).__name__}", flush=True)
    answer.ended = time.monotonic()
    return answer


def _take(answer: Answer, data: str) -> None:
    if data == "[DONE]":
        answer.done = True
        return
    event = json.loads(data)
    if "error" in event:
        answer.error = str(event["error"].get("message"))
    if "timings" in event.get("freehold", {}):
        answer.receipt = event["freehold"]
    for choice in event.get("choices", ()):
        answer.text += choice["delta"].get("content") or ""
        answer.first = answer.first or time.monotonic()
        answer.reason = choice.get("finish_reason") or answer.reason
