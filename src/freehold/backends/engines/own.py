"""Our own engine as replicas: `freehold serve` as a process of its own, on this machine or for Ray on others.

A replica is one server with a home of its own in the replica's folder, on loopback, with a key. On this machine the
home leads to the model's files and packs of ours, so that all replicas map the same weights; each has its part of the
cores and a cache (planning/siblings.py). Knows no cluster.
Path: cli/deploy -> OwnEngine.plan -> siblings.shared_out, ray/plan.py: over; OwnEngine.launch -> OwnProcess
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold import private
from freehold.backends.contract import (
    DeployPlan,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    Listens,
    ParallelSizes,
    PlannedFlag,
    PlanRequest,
    SecretRef,
)
from freehold.backends.engines.scrape import series
from freehold.backends.engines.started import StartedEngine
from freehold.backends.engines.wire import EngineDemands, EngineWire, TokenRoutes, salt
from freehold.backends.planning import siblings
from freehold.errors import UsageError
from freehold.providers.demands import Demands
from freehold.serving import Job
from freehold.version import __version__

MOST_REQUESTS = 1024  # of a replica, computed and waiting: our server's own limits are in front of it
_HOME = "{folder}/home"


class _OwnDemands(EngineDemands):
    """What a server of ours lacks behind another one."""

    def sampling(self, known: Mapping[str, str]) -> dict[str, Any]:
        """Return all that was given: a neutral value too stands for a default of the model's own."""
        given = {name: value for name, value in self.job.sampling.items() if value is not None}
        return {name: value for name, value in given.items() if name != "logit_bias"}


class OwnWire(EngineWire):
    """Our own routes, which give and take the ids of tokens.

    Draws are of seed and position, so an answer with a seed continues from ids as a greedy one does.
    """

    demands = _OwnDemands
    gives_ids = True
    takes_ids = True
    tokens = TokenRoutes()
    ready_path = "/ready"  # 503 while the model loads, which a request for a token would wait for

    def limits(self, body: dict[str, Any], demands: Demands, *, stream: bool) -> None:
        """Write what both routes have in common; a text without a limit ends with the context, not after 16 tokens."""
        super().limits(body, demands, stream=stream)
        if demands.job.max_tokens is None and demands.job.messages is None:
            body["max_tokens"] = demands.model.context or None

    def think(self, body: dict[str, Any], demands: Demands) -> None:
        """Write thinking, with the most tokens of it."""
        super().think(body, demands)
        if demands.job.think_tokens is not None:
            body["thinking_token_budget"] = demands.job.think_tokens

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write what our routes alone have, and the tenant's own part of the prefix cache."""
        if job.priority == "batch":
            body["priority"] = "batch"
        if job.tenant:
            body["cache_salt"] = salt(job.tenant)
        if job.messages is not None and job.overflow != "error":
            body["overflow"] = job.overflow


class OwnEngine(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "freehold"
    phases = ((r"^loading ", "loading weights"),)
    title = "Freehold's own engine"
    package = "freehold"
    least = "0.1.0"
    metrics_path = "/metrics"
    drains = True
    busy_waits = False
    wire = OwnWire()

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan one server a replica. Raises UsageError: any flag, another format, too few cores, too little memory."""
        if request.flags:
            raise UsageError(f"{self.title} takes no --engine-flag: {request.flags[0]}", "leave it out")
        return self._here(request, request.home) if request.home is not None else self._elsewhere(request)

    def _here(self, request: PlanRequest, home: Path) -> DeployPlan:
        """Plan replicas that share this machine, and the files of `home`."""
        model = request.model
        if not model.here:
            raise UsageError(
                f"{model.source} is not on this machine",
                f"fetch it: freehold pull {model.base or model.name}",
            )
        portion = siblings.shared_out(request)
        word, served, links = _found(request, home)
        flags = [
            PlannedFlag("serve", word, "the model, by a link in the replica's own home"),
            PlannedFlag("--port", "{port}", "a free one of loopback"),
            PlannedFlag("--engine", "freehold", "on processors, whatever else is found"),
            PlannedFlag("--threads", str(portion.threads), "cores that are its own"),
            PlannedFlag("--context", str(portion.context), _why_context(request, portion)),
            PlannedFlag("--cache-size", str(portion.cache_bytes), "bytes: its part of the memory"),
            *([_kv_type(request)] if request.cache_type else []),
            PlannedFlag("--keep-alive", "never", "the deployment decides how long it lives"),
            PlannedFlag("--no-disk-cache", None, "a replica's prompts end with it"),
            PlannedFlag("--max-requests", str(MOST_REQUESTS), "of one key: all requests come with the same"),
            PlannedFlag("--max-queued", str(MOST_REQUESTS), "they wait here as in front of one engine"),
            PlannedFlag("--no-console", None, "its web page is a door that is not needed"),
            PlannedFlag("--offline", None, "it fetches nothing"),
            PlannedFlag("--log-level", "warning", "failures only"),
        ]
        return DeployPlan(
            engine="freehold",
            version=request.engine.version or __version__,
            schema="",
            model=model,
            nodes=request.nodes,
            command=request.engine.command or ("freehold",),
            flags=tuple(flags),
            environment={"FREEHOLD_HOME": _HOME, "FREEHOLD_OFFLINE": "1"},
            secrets=(SecretRef("FREEHOLD_API_KEY"),),
            listens=Listens(),
            sizes=ParallelSizes(),
            context=portion.context,
            streams=request.streams or siblings.STREAMS,
            replicas=max(1, request.replicas),
            memory_bytes=portion.memory_bytes,
            shared_bytes=portion.shared_bytes,
            cache_bytes=portion.cache_bytes,
            cache_type=request.cache_type,
            basis="the file's sizes: weights are mapped once, each replica has a cache and two processes",
            served=served,
            links=links,
            places=portion.places,
        )

    def _elsewhere(self, request: PlanRequest) -> DeployPlan:
        """Plan replicas on machines of a cluster, which have the model's file under the same path."""
        model = request.model
        if model.files != "gguf":
            raise UsageError(
                f"{self.title} reads GGUF files there, and {model.source} is {model.files}",
                "name a GGUF, or --engine vllm",
            )
        streams = request.streams or siblings.STREAMS
        flags = [
            PlannedFlag("serve", f"{{folder}}/{file_name(model.name)}", "a link to the model's file"),
            PlannedFlag("--port", "{port}", "a free one of loopback"),
            PlannedFlag("--engine", "freehold", "on processors, whatever else is found"),
            PlannedFlag("--keep-alive", "never", "the replica decides how long it lives"),
            PlannedFlag("--offline", None, "the model's file is on each machine"),
            PlannedFlag("--log-level", "warning", "failures only"),
            PlannedFlag("--max-requests", str(4 * streams), "of one key: all requests come with the same"),
        ]
        if request.context:
            flags.append(PlannedFlag("--context", str(request.context), "asked for"))
        if request.cache_type:
            flags.append(_kv_type(request))
        return DeployPlan(
            engine="freehold",
            version=request.engine.version,
            schema="",
            model=model,
            nodes=request.nodes,
            command=request.engine.command or ("freehold",),
            flags=tuple(flags),
            environment={"FREEHOLD_HOME": _HOME, "FREEHOLD_OFFLINE": "1"},
            secrets=(SecretRef("FREEHOLD_API_KEY"),),
            listens=Listens(),
            sizes=ParallelSizes(),
            context=request.context,
            streams=streams,
            replicas=max(1, request.replicas),
            links={file_name(model.name): model.source},
            notes=(f"{model.source} has to be on each machine, under this path",),
        )

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it, with a folder for packs to share. Raises UsageError, EngineLost."""
        if packs := plan.links.get("home/packs"):
            private.folder(Path(packs))
        return await super().launch(plan, folder)

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its metrics, which have vLLM's names; of all its models together. `before` is not needed."""
        metrics = series(body)
        return EngineNumbers(
            running=int(metrics.get("vllm:num_requests_running", 0)),
            waiting=int(metrics.get("vllm:num_requests_waiting", 0)),
            prompt_tokens=int(metrics.get("vllm:prompt_tokens_total", 0)),
            generated_tokens=int(metrics.get("vllm:generation_tokens_total", 0)),
            cached_tokens=int(metrics.get("vllm:prompt_tokens_cached_total", 0)),
            steps=int(metrics.get("freehold_engine_steps_total", 0)),
        )


def file_name(model: str) -> str:
    """Return the name of a link to a model's file: the server calls the model as its file is called."""
    return f"{model.replace('/', '_')}.gguf"


def _found(request: PlanRequest, home: Path) -> tuple[str, str, dict[str, str]]:
    """Return the word by which a replica finds its model, what it calls it, and the links that this takes."""
    links = {"home/packs": str(home / "packs")}
    source, models = Path(request.model.source), (home / "models").resolve()
    if request.stored and source.is_relative_to(models):
        slug = source.relative_to(models).parts[0]
        links[f"home/models/{slug}"] = str(models / slug)
        made = {f"home/{each}": str(home / each) for each in ("overlays", "adapters")}
        links |= {name: target for name, target in made.items() if Path(target).is_dir()}
        return request.stored, request.stored, links
    file = file_name(request.model.name.lower())
    links[file if source.is_file() else file.removesuffix(".gguf")] = str(source)
    served = file.removesuffix(".gguf")
    return f"{{folder}}/{file if source.is_file() else served}", served, links


def _why_context(request: PlanRequest, portion: siblings.Portion) -> str:
    if request.context:
        return "asked for"
    return "what memory has room for in each replica" if portion.cut else "the model's own"


def _kv_type(request: PlanRequest) -> PlannedFlag:
    return PlannedFlag("--kv-type", request.cache_type, "asked for")


DRIVER = OwnEngine()
