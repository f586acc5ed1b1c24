"""The stand-in's server: OpenAI's routes in the dialect's words, its health and metrics, its deaths.

Deaths: those measured of vLLM, and the plain ones of any process. A death is asked for by a line in the control file
(`cut`, `exit 1 LINE FOR THE LOG`), which is removed when it is obeyed, or by the prompt: `[[cut 5]]` dies once five
tokens of the answer were given, counted from the prompt, so that an answer resumed elsewhere does not die again.

    error        each stream gets an error event, then [DONE]; health 503; the process ends after --standin-corpse-s
    abort        each stream gets finish_reason "abort", then [DONE]; the process ends
    cut          each connection is cut; the process ends with status 1
    exit N TEXT  TEXT goes to the log, the process ends at once with status N: `exit 0` is a death too
    hang         no further token, no metric moves; health as the dialect has it for a stuck engine
    kill         SIGKILL to itself: children and /dev/shm files stay
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.outgrow.standin import text
from tests.outgrow.standin.dialects import NAMED, Counted, Dialect

_ASKED = re.compile(r"\[\[(\w+) (\d+)\]\]")
_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
BLOCK = 16  # tokens of a block of the prefix cache


@dataclass(frozen=True)
class Settings:
    """What the command line said."""

    dialect: str
    host: str
    port: int
    socket: str
    model: str
    source: str
    key: str
    drain_s: float
    flags: frozenset[str]
    start_s: float
    token_s: float
    slots: int
    context: int
    control: str
    die_at_start: str
    corpse_s: float
    children: int
    shm: int
    first_ends: int


class Torn(Exception):
    """The engine died under a stream; its argument is the kind."""


def say(line: str) -> None:
    """Write a line to the log."""
    print(line, file=sys.stderr, flush=True)


class StandIn:
    """One engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dialect: Dialect = NAMED[settings.dialect]
        variables = (os.environ.get(name, "") for name in self.dialect.key_variables)
        self.key = settings.key or next((key for key in variables if key), "")
        self.counted = Counted()
        self.slots = asyncio.Semaphore(settings.slots)
        self.blocks: set[str] = set()
        self.death = ""  # the kind, once it was asked for
        self.loading = self.draining = False
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.children = [
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            for _ in range(settings.children)
        ]
        self.shm = [Path(f"/dev/shm/psm_{secrets.token_hex(4)}") for _ in range(settings.shm)]
        self.maps: list[mmap.mmap] = []  # as engines have it mapped while they live
        for path in self.shm:
            path.write_bytes(b"x")
            with path.open("r+b") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0))

    # --- life -----------------------------------------------------------------------------------------

    def end(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def die(self, words: str) -> None:
        """Begin the death that `words` ask for."""
        kind, _, rest = words.strip().partition(" ")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "exit":
            status, _, line = rest.partition(" ")
            if line:
                say(line)
            os._exit(int(status or 0))
        self.death = kind
        if kind in ("error", "abort"):
            say(f"ERROR [async_llm.py:700] EngineDeadError: {_DEAD}")
            asyncio.get_running_loop().call_later(self.settings.corpse_s, self.end, 1)
        elif kind == "cut":
            asyncio.get_running_loop().call_later(0.05, os._exit, 1)

    async def watch(self) -> None:
        """Obey the control file."""
        path = Path(self.settings.control)
        while True:
            if path.is_file() and (words := path.read_text().strip()):
                path.unlink()
                self.die(words)
            await asyncio.sleep(0.02)

    async def drain(self, stop_listening: Any) -> None:
        """End as the dialect does at SIGTERM."""
        self.draining = True
        how = self.dialect.drain
        until = time.monotonic() + (self.settings.drain_s if how == "flag" else 60.0)
        if how == "none" or (how == "flag" and not self.settings.drain_s):
            await stop_listening()
        else:
            while self.counted.running + self.counted.waiting and time.monotonic() < until:
                await asyncio.sleep(0.01)
        self.end(0)

    # --- answers --------------------------------------------------------------------------------------

    async def tokens(self, prompt: str, most: int, salt: str) -> AsyncIterator[int]:
        """Give out token ids one by one, or raise Torn."""
        c, asked = self.counted, _ASKED.search(prompt)
        before = len([i for i in text.encode(prompt[asked.end() :]) if i >= 256]) if asked else 0
        c.waiting += 1
        async with self.slots:
            c.waiting -= 1
            c.running += 1
            try:
                self._prefill(prompt)
                if self.settings.first_ends:
                    self.die("exit 1 ValueError: Unsupported CPU attention configuration: head_dim=16")
                for given in range(most):
                    await asyncio.sleep(self.settings.token_s)
                    if asked and given and before + given == int(asked[2]) and not self.death:
                        self.die(asked[1])
                    while self.death == "hang":
                        await asyncio.sleep(1)
                    if self.death:
                        raise Torn(self.death)
                    token = text.next_id(prompt, salt)
                    prompt += text.WORDS[token - 256]
                    c.generated += 1
                    c.steps += 1
                    if self.settings.dialect == "trtllm":
                        c.unread.append(self._iteration())
                    yield token
                c.ended += most
                c.answers += 1
            finally:
                c.running -= 1

    def _prefill(self, prompt: str) -> None:
        ids = text.encode(prompt)
        self.counted.prompt += len(ids)
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            block = json.dumps(ids[:end])
            self.counted.cached += BLOCK if block in self.blocks else 0
            self.blocks.add(block)

    def _iteration(self) -> dict[str, object]:
        c = self.counted
        return {
            "iter": c.steps,
            "iterLatencyMS": self.settings.token_s * 1000,
            "numActiveRequests": c.running,
            "numQueuedRequests": c.waiting,
            "kvCacheStats": {
                "maxNumBlocks": 1024,
                "usedNumBlocks": c.running,
                "reusedBlocks": c.cached // BLOCK,
            },
            "inflightBatchingStats": {
                "numContextRequests": 0,
                "numGenRequests": c.running,
                "numCtxTokens": 0,
            },
        }


@dataclass
class Answer:
    """One request and its answer's shape on the wire."""

    standin: StandIn
    chat: bool
    body: dict[str, Any]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(8)}")

    def prompt(self) -> str:
        """Return the text that the model reads."""
        if not self.chat:
            prompt = self.body["prompt"]
            return text.decode(prompt) if isinstance(prompt, list) else str(prompt)
        messages = self.body["messages"]
        how = self.standin.dialect.continues
        last = messages[-1]["role"] == "assistant"
        return text.rendered(
            messages,
            open_end=last
            and (how == "always" or bool(how == "field" and self.body.get("continue_final_message"))),
        )

    def most(self) -> int:
        """Return how many tokens it has."""
        found = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return int(found) if found is not None else (32 if self.chat else 16)

    def salt(self) -> str:
        """Return what makes a sampled answer differ."""
        if self.body.get("temperature", 1.0) == 0:
            return ""
        seed = self.body.get("seed")
        return str(seed) if seed is not None else secrets.token_hex(4)

    def tool(self) -> str:
        """Return the tool that is called; "" for none."""
        unsaid = "none" if self.standin.settings.dialect == "trtllm" else "auto"
        tools, choice = self.body.get("tools") or [], self.body.get("tool_choice", unsaid)
        if isinstance(choice, dict):
            return str(choice["function"]["name"])
        asked = choice == "required" or (choice == "auto" and "[[tool]]" in self.prompt())
        return str(tools[0]["function"]["name"]) if tools and asked else ""

    @property
    def with_ids(self) -> bool:
        return bool(self.standin.dialect.gives_ids and self.body.get("return_token_ids"))

    def piece(self, said: str, ids: list[int], end: str | None, *, first: bool) -> dict[str, Any]:
        """Return one event of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": end}
        if self.chat:
            choice["delta"] = {"role": "assistant", "content": ""} if first else {"content": said}
        else:
            choice["text"] = said
        event = self.head("chat.completion.chunk" if self.chat else "text_completion") | {"choices": [choice]}
        if self.with_ids:
            choice["token_ids"] = None if first and self.chat else ids
            if first:
                (event if self.chat else choice)["prompt_token_ids"] = text.encode(self.prompt())
        return event

    def head(self, kind: str) -> dict[str, Any]:
        """Return what every body has."""
        return {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": self.standin.settings.model,
        }

    def usage(self, tokens: int) -> dict[str, Any]:
        """Return the counts."""
        prompt = len(text.encode(self.prompt()))
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    async def whole(self) -> web.StreamResponse:
        """Answer in one piece."""
        ids: list[int] = []
        try:
            async for token in self.standin.tokens(self.prompt(), self.most(), self.salt()):
                ids.append(token)
        except Torn as e:
            if str(e) == "cut":
                os._exit(1)
            return problem(500, _DEAD, "InternalServerError")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        said = text.decode(ids)
        if self.chat:
            last = self.body["messages"][-1]
            if self.standin.dialect.repeats_begun and last["role"] == "assistant":
                said = str(last["content"]) + said
            choice["message"] = {"role": "assistant", "content": said}
            if name := self.tool():
                call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": "{}"}}
                choice |= {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}
                choice["finish_reason"] = "tool_calls"
        else:
            choice["text"] = said
        body = self.head("chat.completion" if self.chat else "text_completion")
        body |= {"choices": [choice], "usage": self.usage(len(ids))}
        if self.with_ids:
            choice["token_ids"] = ids
            (body if self.chat else choice)["prompt_token_ids"] = text.encode(self.prompt())
        return web.json_response(body)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer in events."""
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)

        async def send(event: Any) -> None:
            data = event if isinstance(event, str) else json.dumps(event)
            await reply.write(f"data: {data}\n\n".encode())

        first, given, most = True, 0, self.most()
        if self.chat:
            await send(self.piece("", [], None, first=True))
            first = False
        if self.chat and (name := self.tool()):
            call = {
                "index": 0,
                "id": "call_0",
                "type": "function",
                "function": {"name": name, "arguments": "{}"},
            }
            for delta, end in (({"tool_calls": [call]}, None), ({}, "tool_calls")):
                event = self.head("chat.completion.chunk")
                await send(event | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]})
            most = 0
        try:
            async for token in self.standin.tokens(self.prompt(), most, self.salt()):
                given += 1
                end = "length" if given == most else None
                await send(self.piece(text.WORDS[token - 256], [token], end, first=first))
                first = False
        except Torn as e:
            if str(e) == "cut":
                os._exit(1)
            error = {"message": _DEAD, "type": "InternalServerError", "param": None, "code": 500}
            await send({"error": error} if str(e) == "error" else self.piece("", [], "abort", first=False))
            await send("[DONE]")
            return reply
        if (self.body.get("stream_options") or {}).get("include_usage"):
            event = self.head("chat.completion.chunk" if self.chat else "text_completion")
            await send(event | {"choices": [], "usage": self.usage(given)})
        await send("[DONE]")
        return reply


def problem(status: int, message: str, kind: str) -> web.Response:
    """Return an error as vLLM writes it; the others differ in names only."""
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status
    )


async def serve(settings: Settings) -> int:
    """Run until the end; return the status."""
    from tests.outgrow.standin.routes import application

    standin = StandIn(settings)
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(application(standin), handle_signals=False, shutdown_timeout=0.05)
    await runner.setup()
    site: web.BaseSite
    if settings.socket:
        site = web.UnixSite(runner, settings.socket)
    else:
        site = web.TCPSite(runner, settings.host, settings.port)
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        task = loop.create_task(standin.drain(site.stop))
        tasks.add(task)

    async def start() -> None:
        if standin.dialect.early_port:
            standin.loading = True
            await site.start()
        lines = standin.dialect.start
        for line in lines:
            say(line)
            await asyncio.sleep(settings.start_s / max(len(lines), 1))
        if settings.die_at_start:
            say(settings.die_at_start)
            standin.end(1)
            return
        if not standin.dialect.early_port:
            await site.start()
        standin.loading = False
        say(standin.dialect.ready)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        tasks.add(loop.create_task(standin.watch())) if settings.control else None
        await start()
    except OSError as e:
        say(f"OSError: {e}")
        standin.end(1)
    status = await standin.status
    for child in standin.children:
        child.kill()
    for path in standin.shm:
        path.unlink(missing_ok=True)
    sys.stderr.flush()
    os._exit(status)
