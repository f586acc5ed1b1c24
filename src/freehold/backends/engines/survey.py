"""Finds out what an engine is that runs already, and makes the plan by which it is asked.

    plan = attached_plan("http://127.0.0.1:8000", "qwen3", key_env="VLLM_KEY")

Judged by who its models are owned by and by routes that one engine alone has; no prompt is sent. The plan says
that hardware and files are not known. Path: cli -> attached_plan -> surveyed -> DeployPlan
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any

from freehold.advisor.anatomy import Anatomy
from freehold.backends.contract import DeployedModel, DeployPlan, EngineName, Listens, Nodes, ParallelSizes
from freehold.backends.engines import attach
from freehold.backends.engines.attach import AttachTarget
from freehold.backends.engines.client import EngineClient
from freehold.backends.names import named
from freehold.catalog.hardware import Device, Rig
from freehold.config import nearest
from freehold.errors import EngineLost, UsageError

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
_VERSIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vllm": ("/version", ("version",)),
    "sglang": ("/server_info", ("version",)),
    "trtllm": ("/version", ("version",)),
    "llamacpp": ("/props", ("build_info",)),
    "ollama": ("/api/version", ("version",)),
    "freehold": ("/version", ("version",)),
}
FOREIGN = "it runs already: it is neither started nor ended here, and its doors stay as they are"
BEYOND = (
    "it is another machine and counts as yours: requests that may not leave the house go there; a server of others "
    "belongs into the gateway's file, as a provider"
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
    at = attach.target(address, key_env=key_env, cleartext=cleartext)
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
        schema="",
        model=DeployedModel(named(name or served), at.shown, files, anatomy),
        nodes=Nodes(Rig(_ELSEWHERE), here=False),
        command=(),
        flags=(),
        environment={},
        secrets=attach.key_of(at),
        listens=Listens(socket=at.socket),
        sizes=ParallelSizes(),
        context=survey.context,
        streams=survey.streams or STREAMS,
        replicas=1,
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
    path, member = _VERSIONS.get(known, ("", ()))
    version = await ask.get(path) if path else None
    version_text = version.member(*member) if version is not None and version.status == 200 else None
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
    return (
        "ollama"
        if response is not None and response.status == 200 and response.member("version")
        else "compatible"
    )


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
    near = nearest(model, survey.models)
    raise UsageError(
        f"{at.shown} has no model {model!r}",
        f"did you mean {near}?" if near else f"it has {', '.join(survey.models[:8])}",
    )
