"""Engines that were started by other means: known by their answers, asked as ours are, neither started nor ended.

    plan = attached_plan("http://127.0.0.1:8000", "qwen3")     # asks what it is; raises UsageError, EngineLost
    engine = await AttachDriver(driver).launch(plan, folder)   # at once; ready is one token, as ever
    death = await engine.ended                                 # it no longer answers; the next launch waits for it

Its address is on this machine, or https. Plain http to another machine shows prompts, answers and the key to everyone
on the way, so it takes the explicit word that the way is private already (a tunnel, a cable): `cleartext`.

A server that speaks OpenAI's routes and is none of the engines we know is attached only, as CompatibleServer: it gets
no field beyond what such servers document, and has no counters.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from freehold.base.catalog.hardware import Device, Rig
from freehold.base.config import suggestion
from freehold.base.errors import EngineLost, UsageError
from freehold.choose.advisor.anatomy import Anatomy
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    EngineDeath,
    EngineDriver,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    Listens,
    Nodes,
    PlanRequest,
    SecretRef,
    StartProgress,
    named,
)
from freehold.outgrow.engines import StartedEngine
from freehold.outgrow.engines.wire import EngineDemands, EngineWire
from freehold.route.providers.hop import http_client
from freehold.route.providers.openai.wire import SAMPLING

HERE = ("127.0.0.1", "localhost", "::1")
LOOK_S = 2.0  # between two looks at an engine that answers
LOST_S = 10.0  # without an answer: it counts as dead
KEY = "ATTACHED_KEY"
# A route that says that the engine lives; SGLang's own health runs a token for each call.
_LIVES: Mapping[str, str] = {
    "vllm": "/health",
    "llamacpp": "/health",
    "trtllm": "/health",
    "ollama": "/api/version",
}


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """Where an attached engine answers."""

    url: str  # without a path: http://127.0.0.1:8000, or http://engine with a socket
    socket: Path | None = None
    key_env: str = ""  # the variable of our environment that has its key

    @property
    def shown(self) -> str:
        """As the user wrote it."""
        return f"unix:{self.socket}" if self.socket is not None else self.url

    @property
    def beyond(self) -> bool:
        """Whether it is not this machine."""
        return self.socket is None and urlsplit(self.url).hostname not in HERE

    @property
    def key(self) -> str:
        """The key's value; "" for none. Raises UsageError where the variable is not set."""
        if not self.key_env:
            return ""
        value = os.environ.get(self.key_env, "")
        if not value:
            raise UsageError(
                f"{self.key_env}, which --attach-key-env names, is not set in this process",
                f"export {self.key_env}=... before freehold serve or freehold deploy, whichever runs the server",
            )
        return value

    def client(self) -> EngineClient:
        """Return a way to ask its routes."""
        return EngineClient(self.url, socket=self.socket, key=self.key)


def target(text: str, *, key_env: str = "", cleartext: bool = False) -> AttachTarget:
    """Read an address. Raises UsageError: not an address, or plain http beyond this machine without the word for it."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:").removeprefix("//"))
        if not path.is_absolute():
            raise UsageError(f"{text!r} names no socket", "write unix:/path/to/engine.sock")
        return AttachTarget("http://engine", path, key_env)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise UsageError(f"{text!r} has no valid port or host", "write http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{text!r} is not an engine's address", "write http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query:
        raise UsageError(
            "an engine's address has no password and no query",
            "name the key's variable: --attach-key-env NAME",
        )
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise UsageError(f"{text!r}: only an address without a path is known", "leave the path out")
    if parts.scheme == "http" and parts.hostname not in HERE and not cleartext:
        raise UsageError(
            f"{parts.hostname} is not this machine, and http shows prompts, answers and keys on the way",
            "use https, a tunnel to a local port, or --attach-cleartext where the way is private",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return AttachTarget(f"{parts.scheme}://{host}" + (f":{port}" if port else ""), None, key_env)


class AttachDriver(StartedEngine):
    """Implements contract.EngineDriver for an attached engine; all but its life and its log is the engine's own."""

    drains = False
    phases = ()

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self.name: EngineName = driver.name
        self.title, self.package, self.least = driver.title, driver.package, driver.least
        self.wire = driver.wire
        # What trtllm-serve's metrics tell, they tell once: reading them would take them from their owner.
        self.metrics_path = "" if driver.name == "trtllm" else driver.metrics_path

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse: nothing is planned for what runs already."""
        raise UsageError(f"an attached {self.title} is not planned", "leave its flags to who runs it")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Return it at once, whether it answers by now or not."""
        return AttachedEngine(plan, target_of(plan), self.title)

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its metrics."""
        return self._driver.numbers(body, before)


def target_of(plan: DeployPlan) -> AttachTarget:
    """Return where a plan's engine answers; what was allowed when it was planned is allowed still."""
    source = next((s.source for s in plan.secrets if s.variable == KEY), "")
    return target(plan.attached, key_env=source.removeprefix("env:"), cleartext=True)


class AttachedEngine:
    """Implements contract.LaunchedEngine. It dies once it has answered and no longer does, for LOST_S."""

    pid = 0

    def __init__(self, plan: DeployPlan, at: AttachTarget, title: str) -> None:
        """Made inside a running event loop. Raises UsageError where the key's variable is not set."""
        self.plan, self.title = plan, title
        self.ended: asyncio.Future[EngineDeath | None] = asyncio.get_running_loop().create_future()
        self.log: deque[str] = deque(maxlen=100)
        self.url, self.socket, self.key = f"{at.url}/v1", at.socket, at.key
        self._at = at
        self._answered = False
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def progress(self) -> StartProgress:
        """Return whether it answers. Its start is not ours, so it counts as progress."""
        phase = "up" if self._answered else f"waiting for {self._at.shown} to answer"
        return StartProgress(phase, cpu_s=0.0, memory_bytes=0, lines=len(self.log), since_s=0.0)

    async def stop(self, drain_s: float) -> None:
        """Let go of it. It runs on: nothing of its life is ours."""
        self._end(None)

    def kill(self, why: str) -> None:
        """Let go of it; `ended` says why."""
        self._end(EngineDeath(f"{self.title} at {self._at.shown} was given up: {why}"))

    async def _watch(self) -> None:
        path = _LIVES.get(self.plan.engine, "/v1/models")
        heard = time.monotonic()
        async with self._at.client() as ask:
            while not self.ended.done():
                response = await ask.get(path)
                now = time.monotonic()
                if response is not None and response.status < 500:
                    heard = now
                    if not self._answered:
                        self._answered = True
                        self.log.append(f"{self.title} at {self._at.shown} answers")
                elif self._answered and now - heard >= LOST_S:
                    what = "does not answer" if response is None else f"says {response.status} to {path}"
                    self._end(EngineDeath(f"{self.title} at {self._at.shown} {what} for {now - heard:.0f} s"))
                await asyncio.wait([self.ended], timeout=LOOK_S)

    def _end(self, death: EngineDeath | None) -> None:
        if not self.ended.done():
            if death is not None:
                self.log.append(death.sentence)
            self.ended.set_result(death)


# --- what an engine is that runs already, and the plan by which it is asked -----------------------------
# Judged by who its models are owned by and by routes that one engine alone has; no prompt is sent. The plan
# says that hardware and files are not known.

# What /v1/models says of its models' owner -> the engine.
_OWNERS: dict[str, EngineName] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "trtllm",
    "llamacpp": "llamacpp",
    "library": "ollama",
    "freehold": "freehold",
}
# A route that tells an engine's version, and where in its answer.
_VERSIONS = {
    "vllm": ("/version", "version"),
    "sglang": ("/server_info", "version"),
    "trtllm": ("/version", "version"),
    "llamacpp": ("/props", "build_info"),
    "ollama": ("/api/version", "version"),
    "freehold": ("/version", "version"),
}
FOREIGN = "it is already running: Freehold neither starts nor stops it, and its ports stay as they are"
BEYOND = (
    "this other machine counts as yours, so private requests may go there; add a server of someone else to "
    "gateway.toml, as a provider"
)
MOST = 1 << 30  # tokens of a context, and answers at a time: beyond any engine's
STREAMS = 64  # answers at a time that an engine is given whose own number is not known
_ELSEWHERE = Device(
    name="elsewhere",
    title="hardware that is not known",
    vendor="",
    kind="cpu",
    generation="",
    memory_gib=0,
    bandwidth_gb_s=0,
    watts=0,
    source="not known",
    checked=date(2026, 11, 28),
)


@dataclass(frozen=True, slots=True)
class EngineSurvey:
    """What an engine said of itself."""

    engine: EngineName
    version: str
    models: tuple[str, ...]
    context: int = 0  # tokens; 0: it does not say
    streams: int = 0


def attached_plan(
    address: str,
    model: str = "",
    *,
    name: str = "",
    engine: str = "",
    key_env: str = "",
    cleartext: bool = False,
) -> DeployPlan:
    """Plan for an engine that runs. `model`: what it calls the model; `name`: what clients here call it.

    `engine`: what it is, where that is known: it need not answer now then. Blocks the calling thread, and a running
    event loop with it, until the engine has answered. Raises UsageError, EngineLost.
    """
    at = target(address, key_env=key_env, cleartext=cleartext)
    survey = _completed(lambda: _survey(at, engine, model))
    served = _served(at, survey, model)
    # Whether it gives text or vectors shows when it is asked for one of them: its start is its proof.
    anatomy = Anatomy(
        name=served, quant="", architecture="", parts=(), layers=(), context=survey.context, role=""
    )
    files = "gguf" if survey.engine in ("llamacpp", "ollama") else "safetensors"
    return DeployPlan(
        engine=survey.engine,
        version=survey.version,
        model=DeployedModel(named(name or served), at.shown, files, anatomy),
        nodes=Nodes(Rig(_ELSEWHERE), here=False),
        secrets=(SecretRef(KEY, f"env:{at.key_env}"),) if at.key_env else (),
        listens=Listens(socket=at.socket),
        context=survey.context,
        streams=survey.streams or STREAMS,
        notes=(FOREIGN, BEYOND) if at.beyond else (FOREIGN,),
        attached=at.shown,
        served=served,
    )


def _completed(survey: Callable[[], Coroutine[Any, Any, EngineSurvey]]) -> EngineSurvey:
    """Run a survey to its end; in a thread of its own where this one's event loop runs, which takes no second one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(survey())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(survey())).result()


async def _survey(at: AttachTarget, engine: str, model: str) -> EngineSurvey:
    async with at.client() as ask:
        survey = await surveyed(ask, engine)
    if survey is not None:
        return survey
    if engine and model:
        return EngineSurvey(engine, "", (model,))  # type: ignore[arg-type]  # drivers.driver checks it
    raise EngineLost(
        f"nothing answers at {at.shown}",
        "start the engine, or say what it is: --engine, and the model's name",
    )


async def surveyed(ask: EngineClient, engine: str = "") -> EngineSurvey | None:
    """Ask an engine what it is; None where nothing answers. Raises UsageError for a key that it refuses."""
    listed = await ask.get("/v1/models")
    if listed is None:
        return None
    if listed.status in (401, 403):
        raise UsageError(
            f"the engine wants a key (it says {listed.status})",
            "name the variable that has it: --attach-key-env NAME",
        )
    rows: Any = listed.member("data")
    if listed.status != 200 or not isinstance(rows, list):
        raise UsageError(
            f"what answers speaks no dialect of OpenAI's: /v1/models says {listed.status}",
            "name an engine's address",
        )
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
    rows = [row for row in rows if row["id"].isprintable()]  # they are shown in a terminal
    known = engine or await _engine(ask, listed.headers.get("Server", ""), rows)
    path, member = _VERSIONS.get(known, ("", ""))
    version = await ask.get(path) if path else None
    version_text = version.member(member) if version is not None and version.status == 200 else None
    context, streams = await _sizes(ask, known, rows)
    shown = version_text if isinstance(version_text, str) and version_text.isprintable() else ""
    return EngineSurvey(known, shown[:64], tuple(row["id"] for row in rows), context, streams)  # type: ignore[arg-type]


async def _engine(ask: EngineClient, server: str, rows: list[dict[str, Any]]) -> str:
    owners = {str(row.get("owned_by", "")) for row in rows}
    owner_engine = next((_OWNERS[owner] for owner in owners if owner in _OWNERS), None)
    if owner_engine is not None:
        return owner_engine
    if server == "llama.cpp":
        return "llamacpp"
    response = await ask.get("/api/version")  # an Ollama without models owns none
    tells = response is not None and response.status == 200 and response.member("version")
    return "ollama" if tells else "compatible"


async def _sizes(ask: EngineClient, engine: str, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the context of an answer and the answers at a time, as far as it tells."""
    context = next((n for row in rows if (n := _count(row.get("max_model_len")))), 0)
    if engine != "llamacpp":
        return context, 0
    props = await ask.get("/props")
    if props is None or props.status != 200:
        return context, 0
    return _count(props.member("default_generation_settings", "n_ctx")), _count(props.member("total_slots"))


def _count(value: Any) -> int:
    """Return a number that an engine tells; 0 for what cannot be one."""
    return value if type(value) is int and 0 < value <= MOST else 0


def _served(at: AttachTarget, survey: EngineSurvey, model: str) -> str:
    if not model and len(survey.models) == 1:
        return survey.models[0]
    if not model:
        raise UsageError(
            f"{at.shown} has {len(survey.models)} models: name one",
            f"it has {', '.join(survey.models[:8]) or 'none'}",
        )
    if model in survey.models or not survey.models:
        return model
    raise UsageError(
        f"{at.shown} has no model {model!r}",
        suggestion(model, survey.models, f"it has {', '.join(survey.models[:8])}"),
    )


# --- an engine's own routes, beside the requests that clients make --------------------------------------
#     async with EngineClient("http://127.0.0.1:8000", key="...") as ask:
#         reply = await ask.get("/version")      # None where nothing answers
#         reply.status, reply.member("version")
# No prompt is ever sent here. Follows no redirect, uses no proxy, reads little.

MOST_REPLY = 4 << 20  # bytes of an answer: an engine's settings, its models
ASKED_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineReply:
    """An answer of one of its routes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def member(self, *path: str) -> Any:
        """Return a member of a member of the body; None where there is none."""
        value = self.json()
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


class EngineClient:
    """Connections to one engine, for its own routes."""

    def __init__(self, url: str, *, socket: Path | None = None, key: str = "") -> None:
        """`url`: without a path. Made inside a running event loop."""
        aiohttp = http_client()
        connector = aiohttp.UnixConnector(str(socket)) if socket is not None else aiohttp.TCPConnector()
        headers = {"User-Agent": "freehold"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._url = url.rstrip("/")
        self._faults = aiohttp.ClientError, OSError, TimeoutError
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, *, limit_s: float = ASKED_S) -> EngineReply | None:
        """Return what a route says; None where nothing answers in time."""
        return await self._request("GET", path, None, limit_s)

    async def post(self, path: str, body: Any, *, limit_s: float = ASKED_S) -> EngineReply | None:
        """Return what a route says to a JSON body; None where nothing answers in time."""
        return await self._request("POST", path, body, limit_s)

    async def _request(self, method: str, path: str, body: Any, limit_s: float) -> EngineReply | None:
        aiohttp = http_client()
        try:
            async with self._session.request(
                method,
                self._url + path,
                json=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit_s),
            ) as reply:
                received = bytearray()
                async for part in reply.content.iter_chunked(1 << 16):
                    received += part
                    if len(received) > MOST_REPLY:
                        break
                return EngineReply(reply.status, dict(reply.headers), bytes(received[:MOST_REPLY]))
        except self._faults:
            return None


# --- a server of OpenAI's routes that we do not know -----------------------------------------------


class _CompatibleDemands(EngineDemands):
    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            *super().beyond_dialect(),
            (job.ignore_eos, "may not know ignore_eos"),
            (job.turn != "new", "may not continue a begun answer"),
        )


class CompatibleServerWire(EngineWire):
    """OpenAI's routes, as every such server has them."""

    demands = _CompatibleDemands
    formats = ("json", "json_schema")
    sampling = SAMPLING


class CompatibleServer(StartedEngine):
    """Implements contract.EngineDriver, but for a start; its log is not ours, and it tells no numbers."""

    name: EngineName = "compatible"
    title = "the server"
    package = ""
    least = ""
    wire = CompatibleServerWire()
    metrics_path = ""
    drains = False
    phases = ()

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse."""
        raise UsageError(f"{self.title} is not started by a deployment", "give its address: --attach URL")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Refuse."""
        raise UsageError(f"{self.title} is not started by a deployment", "give its address: --attach URL")


DRIVER = CompatibleServer()
