"""Ollama's server: planned from a GGUF, on a random port of loopback, with a store of its own.

Read in its repository, tested against a stand-in; no Ollama has run here.
- It has no key: only a random local port protects it from the machine's other users. Where that is not enough,
  llama.cpp's server runs the same files behind a socket and a key.
- Its settings are variables, not flags. Models come from its store, so the file is linked into one in the replica's
  folder under its digest, and made a model by /api/create: nothing is pulled, and the user's own store is not touched.
- It has no metrics: a hang is found by answers that stop growing.
- SIGTERM ends it and its runners at once: a replica is emptied first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from freehold.base import private
from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, EngineName, LaunchedEngine, Listens, PlanRequest
from freehold.outgrow.engines import StartedEngine
from freehold.outgrow.engines.attach import EngineClient
from freehold.outgrow.engines.wire import EngineDemands, EngineWire
from freehold.outgrow.planning.layout import room
from freehold.outgrow.planning.wording import refuse_old, refuse_scores
from freehold.outgrow.process.process import filled
from freehold.route.providers.openai.wire import SAMPLING

MODELS = "models"  # its store, in the replica's folder
CREATE_S = 600.0  # that it may take to make a model of a file: it reads all of it
CACHE_TYPES = ("f16", "q8_0", "q4_0")
UNNUMBERED = "0.0.0"  # what a build of one's own says
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}(?:/[A-Za-z0-9][\w.-]{0,79})?(?::[A-Za-z0-9][\w.-]{0,79})?")
_PHASES = (
    (r"server config", "reading its configuration"),
    (r"Listening on", "making the model"),
    (r"starting runner|loading model|load_tensors", "loading weights"),
    (r"runner started|llama runner started", "up"),
)


class _OllamaDemands(EngineDemands):
    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            *super().beyond_dialect(),
            (job.n > 1, f"returns one answer per request, not {job.n}"),
            (job.ignore_eos, "decides itself when an answer ends: ignore_eos is not possible"),
            (bool(job.sampling.get("logit_bias")), "does not support logit_bias"),
            (job.turn == "none", "always adds an answer: a prompt without an assistant turn is not possible"),
        )


class OllamaWire(EngineWire):
    """OpenAI's routes as Ollama has them: little sampling, and a chat's last turn is always continued."""

    demands = _OllamaDemands
    formats = ("json", "json_schema")
    sampling = SAMPLING


OPEN = (
    "Ollama has no key: every local program that finds its port can send it requests. --engine llamacpp runs the same "
    "file on a socket that only you can open."
)
SEES = (
    "Ollama has no limit on picture tokens, and its token counts may differ from Freehold's engine; --engine llamacpp "
    "counts as Freehold does where it can"
)


class Ollama(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "ollama"
    phases = _PHASES
    title = "Ollama"
    package = ""
    least = "0.35.0"  # before: /api/pull writes outside its store (CVE-2026-103663)
    wire = OllamaWire()
    metrics_path = ""
    drains = False
    busy_waits = False

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan one server for one GGUF file. Raises UsageError."""
        _check(request)
        layout = room(request, self.title, "llama.cpp")
        command = request.engine.command or ("ollama",)  # the program alone opens a menu
        return DeployPlan.of(
            request,
            layout,
            engine=self.name,
            command=(*command, "serve") if len(command) == 1 else command,
            environment=_environment(layout.context, layout.streams, request.cache_type),
            listens=Listens(port=request.port),
            cache_bytes=0,  # its variables have no room for one
            cache_type="",
            notes=(OPEN, *([SEES] if request.model.tower is not None else [])),
        )

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it with a store of its own, and return it once the model is made. Raises UsageError, EngineLost."""
        sources, blobs = _files(plan), folder / MODELS / "blobs"
        files = {path.name: await asyncio.to_thread(linked, path, blobs) for path in sources}
        placed = filled(plan, folder)
        listens = placed.listens
        environment = {
            **plan.environment,
            "OLLAMA_HOST": f"{listens.host}:{listens.port}",
            "OLLAMA_MODELS": str(folder / MODELS),
            "HOME": str(folder),  # it writes a key of its own there
        }
        engine = await super().launch(replace(placed, environment=environment), folder)
        try:
            await _create_model(engine, files, self.least)
        except BaseException:  # an old one; cancelled: it was asked to end meanwhile
            engine.kill("it was not needed any more")
            await engine.ended
            raise
        return engine


def _check(request: PlanRequest) -> None:
    """Raise UsageError for flags, an old Ollama, and a model that it does not load or name."""
    model = request.model
    if request.flags:
        raise UsageError(
            f"{request.flags[0].partition('=')[0]}: ollama serve takes no flags",
            "its settings are variables, which the plan makes of --context and --streams",
        )
    refuse_old(Ollama.title, request.engine.version, Ollama.least)
    refuse_scores(model)
    if model.files != "gguf":
        raise UsageError(
            f"{Ollama.title} loads a GGUF, and {model.name} is a folder of safetensors",
            "--engine vllm loads it; or use a GGUF of the same model",
        )
    if request.nodes.here and not model.here:
        raise UsageError(f"{model.source} is not on this machine", "freehold pull it, or --on HARDWARE")
    if not _NAME.fullmatch(model.name):
        raise UsageError(
            f"{model.name!r} is not a name that Ollama gives a model",
            "say one with --name, such as qwen3:4b",
        )


def _environment(context: int, streams: int, cache_type: str) -> dict[str, str]:
    if cache_type and cache_type not in CACHE_TYPES:
        raise UsageError(f"{cache_type!r} is not a cache of Ollama", f"it has {', '.join(CACHE_TYPES)}")
    cache = {"OLLAMA_KV_CACHE_TYPE": cache_type, "OLLAMA_FLASH_ATTENTION": "1"} if cache_type else {}
    return {
        "OLLAMA_HOST": "127.0.0.1:0",  # the port is chosen at the start
        "OLLAMA_NUM_PARALLEL": str(streams),
        "OLLAMA_CONTEXT_LENGTH": str(context),
        "OLLAMA_KEEP_ALIVE": "-1",  # the model stays: ready is ready
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOHISTORY": "1",
        **cache,
    }


def _files(plan: DeployPlan) -> tuple[Path, ...]:
    """Return the model's file, and its tower's where it sees: Ollama tells them apart by their headers."""
    tower = plan.model.tower
    return (Path(plan.model.source), *([Path(tower.file)] if tower is not None and tower.file else []))


def linked(file: Path, blobs: Path) -> str:
    """Put a file into a store's blobs under its digest, without copying it; return `sha256:...`."""
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    private.folder(blobs)
    blob = blobs / f"sha256-{digest}"
    if not blob.exists():
        blob.unlink(missing_ok=True)  # a link to what is gone
        try:
            os.link(file.resolve(), blob)
        except OSError:  # another disk
            blob.symlink_to(file.resolve())
    return f"sha256:{digest}"


async def _create_model(engine: LaunchedEngine, files: Mapping[str, str], least: str) -> None:
    """Wait until it answers, and have the model made of `files`, names and digests.

    An engine that cannot is ended, and says why.

    Raises UsageError for a version below `least`: the program on PATH was not asked for its own before.
    """
    name = engine.plan.model.name
    async with EngineClient(engine.url.removesuffix("/v1")) as ask:
        response = None
        while not engine.ended.done():
            response = await ask.get("/api/version", limit_s=1.0)
            if response is not None and response.status == 200:
                break
            await asyncio.wait([engine.ended], timeout=0.1)
        if response is None or engine.ended.done():
            return
        version = str(response.member("version") or "")
        refuse_old(Ollama.title, "" if version == UNNUMBERED else version, least)
        body = {"model": name, "files": dict(files), "stream": False}
        response = await ask.post("/api/create", body, limit_s=CREATE_S)
        if response is None or response.status != 200:
            why = response.member("error") if response is not None else None
            engine.kill(f"it made no model of {', '.join(files)}: {why or 'no answer'}")


DRIVER = Ollama()
