"""A server with a gateway between stand-ins that keep every byte: providers far away, a box of the house, a proxy.

Every request has a mark of its own in every field that its protocol has. Whatever happens to it, the mark of a
private one may be seen by the box and our engine, and nowhere else. Knows the doors, and what was planned to go wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from freehold.base.config import Settings
from freehold.route.router.opening import LiveGateway, ServedGateway, open_models
from freehold.route.router.toml.table import Outside
from freehold.run.store import Store
from freehold.serve.http.core.keys import Key, Ring, hashed
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import Doors, ServerSettings
from tests.http.fakes import FakeModels, Script
from tests.providers.standin import Answer, Fault, Received, StandIn
from tests.providers.standin.script import FaultKind

MARK = re.compile(rb"kq[0-9a-f]{12}z")
KEYS = {name: f"fh-{name}-0123456789abcdefghijklmnopqrstuv" for name in ("alice", "bob", "carol")}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
FILE = """
[providers.far]
kind = "openai"
url = "{far}"
key = "env:FAR_KEY"
[providers.paris]
kind = "mistral"
url = "{paris}"
key = "env:FAR_KEY"
[providers.box]
kind = "openai-compatible"
url = "{box}"
owned = true
[providers.claude]
kind = "anthropic"
url = "{claude}"
key = "env:FAR_KEY"
[providers.gem]
kind = "gemini"
url = "{gem}"
key = "env:FAR_KEY"
[models.claude-big]
provider = "claude"
model = "claude-big"
price = {{ input = 1.0, output = 2.0 }}
[models.gem-big]
provider = "gem"
model = "gem-big"
price = {{ input = 1.0, output = 2.0 }}
[models.big]
provider = "far"
model = "big"
price = {{ input = 1.0, cached = 0.1, output = 10.0 }}
[models.mist]
provider = "paris"
model = "mist"
price = {{ input = 0.5, output = 2.0 }}
[models.boxed]
provider = "box"
model = "box-70b"
[models.own]
local = "fake:1b"
[models.vectors-far]
provider = "far"
model = "embed-far"
price = {{ input = 0.1, output = 0.0 }}
[models.vectors-box]
provider = "box"
model = "embed-box"
[labels.private]
stay = "owned"
detect = ["pii", "secrets"]
patterns = ['ACME-\\d{{6}}']
[labels.eu]
stay = ["box"]
[labels.abroad]
stay = ["far", "box", "claude"]
[routes.fallback]
targets = ["boxed", "big", "mist"]
{limits}
[routes.remote-first]
targets = ["claude-big", "gem-big", "boxed"]
{limits}
[routes.remote-only]
targets = ["big", "mist"]
{limits}
[routes.cascade]
targets = ["own", "boxed", "claude-big"]
escalate = {{ when = "logprob", below = 0.99, check = 4 }}
{limits}
[routes.shadow]
targets = ["boxed", "own"]
shadow = {{ target = "big", share = 1.0 }}
{limits}
[routes.kept]
targets = ["boxed", "big"]
cache = "60s"
{limits}
[routes.fragile]
targets = ["boxed", "big", "own"]
breaker = {{ failures = 2, cooldown = "50ms" }}
timeout = "500ms"
first_token = "150ms"
[routes.sealed]
targets = ["own", "boxed"]
label = "private"
{limits}
[routes.cascade-kept]
targets = ["own", "boxed", "claude-big"]
escalate = {{ when = "logprob", below = 0.99, check = 4 }}
cache = "60s"
{limits}
[routes.cascade-shadow]
targets = ["own", "boxed", "claude-big"]
escalate = {{ when = "logprob", below = 0.99, check = 4 }}
shadow = {{ target = "big", share = 1.0 }}
{limits}
[routes.kept-shadow]
targets = ["boxed", "gem-big"]
cache = "60s"
shadow = {{ target = "big", share = 1.0 }}
{limits}
[routes.everything]
targets = ["own", "boxed", "claude-big"]
escalate = {{ when = "logprob", below = 0.99, check = 4 }}
cache = "60s"
shadow = {{ target = "big", share = 1.0 }}
{limits}
[routes.sealed-everything]
targets = ["own", "boxed"]
label = "private"
escalate = {{ when = "logprob", below = 0.99, check = 4 }}
cache = "60s"
shadow = {{ target = "boxed", share = 1.0 }}
{limits}
[routes.vectors]
targets = ["vectors-box", "vectors-far"]
{limits}
[keys.alice]
label = "private"
budget = {{ usd = 1000, per = "day" }}
[keys.bob]
budget = {{ usd = 1000, per = "day" }}
[keys.carol]
budget = {{ usd = 0.000001, per = "month" }}
"""
LIMITS = (
    'timeout = "500ms"\nfirst_token = "150ms"\nretries = 1\nbreaker = { failures = 1000, cooldown = "50ms" }'
)
ROUTES = (
    *("fallback", "remote-first", "remote-only", "cascade", "shadow", "kept", "fragile", "sealed"),
    # Every pair of features at once; keys, budgets, detectors and labels come with each request's way.
    *("cascade-kept", "cascade-shadow", "kept-shadow", "everything", "sealed-everything"),
)
DIRECT = ("big", "boxed", "vectors-far")
DOORS = ("chat", "completions", "messages", "responses", "ollama chat", "ollama generate", "count_tokens")
# How a request becomes private, or does not.
WAYS = (
    "header",
    "two headers",
    "header eu",
    "key",
    "mail",
    "secret",
    "own pattern",
    "none",
    "none",
    "abroad",
    "carol",
)
SECRET = "sk-ant-api03-" + "a1B2" * 12


@dataclass
class Planned:
    """One request, and what goes wrong on its way."""

    number: int
    mark: str
    model: str
    door: str
    way: str
    stream: bool
    faults: list[Fault]

    @property
    def private(self) -> bool:
        """Whether it may be on owned machines alone."""
        return self.way not in ("none", "abroad", "carol") or self.model.startswith("sealed")

    @property
    def headers(self) -> list[tuple[str, str]]:
        key = {"key": "alice", "carol": "carol"}.get(self.way, "bob")
        labels = {
            "header": ["private"],
            "two headers": ["private", "abroad"],
            "header eu": ["eu"],
            "abroad": ["abroad"],
        }
        given = [("X-Freehold-Label", label) for label in labels.get(self.way, [])]
        return [("Authorization", f"Bearer {KEYS[key]}"), ("X-Request-Id", f"case-{self.number}"), *given]

    @property
    def words(self) -> str:
        """What every field holds."""
        more = {"mail": f"{self.mark}@example.org", "secret": SECRET, "own pattern": "ACME-123456"}
        return f"{self.mark} {more.get(self.way, 'words')}"

    @property
    def request(self) -> tuple[str, dict[str, Any]]:
        """Its path and body."""
        return body_of(self.door, self.model, self.words, self.stream)


def body_of(door: str, model: str, words: str, stream: bool) -> tuple[str, dict[str, Any]]:
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": words}}}
    function = {"name": "send", "description": words, "parameters": schema}
    calls = [
        {
            "id": "call_1abcd",
            "type": "function",
            "function": {"name": "send", "arguments": json.dumps({"a": words})},
        }
    ]
    match door:
        case "chat":
            messages = [
                {"role": "system", "content": words},
                {"role": "user", "content": [{"type": "text", "text": words}]},
                {"role": "assistant", "content": words, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1abcd", "content": words},
            ]
            tools = [{"type": "function", "function": function}]
            return "/v1/chat/completions", {
                "model": model,
                "messages": messages,
                "tools": tools,
                "stream": stream,
            }
        case "completions":
            return "/v1/completions", {"model": model, "prompt": words, "stream": stream, "max_tokens": 20}
        case "responses":
            given = {"instructions": words, "input": words, "stream": stream, "store": False}
            return "/v1/responses", {"model": model, **given}
        case "messages" | "count_tokens":
            given: dict[str, Any] = {
                "model": model,
                "system": words,
                "messages": [{"role": "user", "content": words}],
            }
            given["tools"] = [{"name": "send", "description": words, "input_schema": schema}]
            if door == "count_tokens":
                return "/v1/messages/count_tokens", given
            return "/v1/messages", {**given, "max_tokens": 50, "stream": stream}
        case "ollama chat":
            messages = [{"role": "user", "content": words}]
            return "/api/chat", {"model": model, "messages": messages, "stream": stream}
        case "ollama generate":
            return "/api/generate", {"model": model, "prompt": words, "system": words, "stream": stream}
        case _:
            return "/v1/embeddings", {"model": model, "input": [words, words]}


@dataclass
class Answered:
    """What came of a request."""

    planned: Planned
    status: int
    text: str


@dataclass
class World:
    """The server and everything around it."""

    folder: Path
    far: StandIn
    paris: StandIn
    box: StandIn
    elsewhere: StandIn
    proxy: StandIn
    faults: defaultdict[bytes, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    models: ServedGateway = field(init=False)
    engines: FakeModels = field(init=False)
    doors: Doors = field(init=False)
    loop: asyncio.AbstractEventLoop = field(init=False)
    reloads: int = 0

    def text(self, more: str = "") -> str:
        urls = {
            "far": self.far.url("openai"),
            "paris": self.paris.url("mistral"),
            "box": self.box.url("compatible"),
        }
        urls |= {"claude": self.far.url("anthropic"), "gem": self.paris.url("gemini")}
        return FILE.format(**urls, limits=LIMITS) + more

    def reload(self) -> None:
        """Write the file again, a little different."""
        self.reloads += 1
        (self.folder / "gateway.toml").write_text(self.text(f"# {self.reloads}\n"))

    def behave(self, received: Received) -> Answer | Fault:
        """Play the faults that were planned for the request whose mark it holds."""
        mark = MARK.search(received.body)
        waiting = self.faults.get(mark[0]) if mark else None
        return waiting.popleft() if waiting else Answer(("It", " is", " done", "."))

    def ask(self, client: httpx2.Client, planned: Planned) -> Answered:
        self.faults[planned.mark.encode()].extend(planned.faults)
        path, body = planned.request
        try:
            answer = client.post(path, json=body, headers=planned.headers)
            return Answered(planned, answer.status_code, answer.text)
        except httpx2.HTTPError as e:  # a stream that broke off
            return Answered(planned, 0, str(e))

    def client(self) -> httpx2.Client:
        key = {"Authorization": f"Bearer {KEYS['bob']}"}
        return httpx2.Client(base_url=self.doors.url, timeout=30, trust_env=False, headers=key)

    def settled(self) -> None:
        """Wait for shadows and rows."""
        work = self.models.parts.background.settled()
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def files(self) -> Iterator[tuple[Path, bytes]]:
        """Yield every file of the house: ledger, logs, whatever a feature keeps."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


@contextmanager
def opened_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Run everything; at its end the server is closed, and the log complete."""
    with ExitStack() as stack:
        stands = [stack.enter_context(StandIn()) for _ in range(5)]
        far, paris, box, elsewhere, proxy = stands
        world = World(folder, far, paris, box, elsewhere, proxy)
        for stand in stands[:3]:
            stand.behave, stand.checks = world.behave, False
        for name in PROXIES:
            for spelled in (name, name.lower()):
                monkeypatch.setenv(spelled, f"http://127.0.0.1:{world.proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        stack.enter_context(debug_log(folder / "debug.log"))
        (folder / "gateway.toml").write_text(world.text())
        end = serve(world)
        stack.callback(end)
        yield world


def serve(world: World) -> Any:
    """Start the server in a thread; return what ends it."""
    up, failed = threading.Event(), []

    async def main() -> None:
        outside = Outside(environment={"FAR_KEY": "sk-far-0123456789abcdef"})
        live = LiveGateway(world.folder / "gateway.toml", outside)
        world.engines = FakeModels(Script(text="Our own engine says so."))
        store = Store(Settings(home=world.folder, offline=True))
        world.models = open_models(world.engines, live, store)
        world.loop = asyncio.get_running_loop()
        ring = Ring(Key(name=name, sha256=hashed(secret.encode())) for name, secret in KEYS.items())
        settings = ServerSettings(drain_s=1.0, home=world.folder, keys=ring)
        world.doors = Doors(world.models, settings, store=store)
        await world.doors.open(bind_tcp("127.0.0.1", 0), None, up.set)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as e:
            failed.append(e)
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(30)
    if failed:
        raise failed[0]

    def end() -> None:
        world.loop.call_soon_threadsafe(lambda: world.doors.stop(now=True))
        thread.join(30)
        assert not thread.is_alive() and not failed

    return end


@contextmanager
def debug_log(path: Path) -> Iterator[None]:
    """Write everything that is logged, with every exception's chain, into a file of the house."""
    root, handler = logging.getLogger(), logging.FileHandler(path)
    level, freehold = root.level, logging.getLogger("freehold")
    before = freehold.level, freehold.propagate
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    handler.addFilter(lambda record: not record.name.startswith(("httpx2", "httpcore2")))  # the test's client
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    freehold.setLevel(logging.DEBUG)
    freehold.propagate = True
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        freehold.level, freehold.propagate = before
        handler.close()


KINDS: tuple[FaultKind, ...] = (
    *("status", "status", "status", "reset", "cut", "cut", "cut_reset", "bad_utf8", "html", "redirect"),
    *("wrong_length", "endless", "error_event", "garbage", "hang", "stall"),
)


def drawn_fault(draw: random.Random, mark: str, elsewhere: int) -> Fault:
    """Return something that goes wrong. Errors quote the request, as some providers' do."""
    kind = draw.choice(KINDS)
    said = draw.choice((f"your prompt {mark} is not valid", "the server had an error"))
    to = f"http://127.0.0.1:{elsewhere}/openai/v1/chat/completions"
    status = draw.choice((400, 404, 408, 413, 422, 429, 500, 502, 503, 529)) if draw.random() < 0.98 else 401
    code = draw.choice(("", "context_length_exceeded", "rate_limit_exceeded", mark))
    retry = draw.choice(("", "", "0", "0.1"))
    at = draw.randrange(4) if kind == "error_event" else draw.randrange(900)
    return Fault(kind, status, said, code, at=at, to=to, retry_after=retry)


def drawn(draw: random.Random, number: int, elsewhere: int) -> Planned:
    mark = f"kq{number:04x}{draw.randrange(1 << 32):08x}z"
    embeds = draw.random() < 0.1
    door = "embeddings" if embeds else draw.choice(DOORS)
    model = (
        draw.choice(("vectors", "vectors-far"))
        if embeds
        else draw.choice(DIRECT[:2] if draw.random() < 0.1 else ROUTES)
    )
    alone = model in DIRECT  # of no route: it waits for ten minutes, and is left alone for half of one
    number_of_faults = 0 if alone else draw.choice((0, 1, 1, 2, 2, 3, 5))
    faults = [drawn_fault(draw, mark, elsewhere) for _ in range(number_of_faults)]
    return Planned(number, mark, model, door, draw.choice(WAYS), draw.random() < 0.5, faults)
