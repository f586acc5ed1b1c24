"""Our own engine as replicas: `freehold serve` as a process of its own, on this machine or for Ray on others.

A replica is one server with a home of its own in the replica's folder, on loopback, with a key. On this machine the
home leads to the model's files and packs of ours, so that all replicas map the same weights; each has its part of the
cores and a cache. Knows no cluster.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold._native import BLOCK_TOKENS
from freehold.base import private
from freehold.base.errors import UsageError
from freehold.base.layers import KV_WIDTHS, MOST_STATES
from freehold.base.machine import (
    cpu_quota,
    default_threads,
    listed,
    memory_nodes,
    processor,
    show_bytes,
    usable_cores,
)
from freehold.base.platforms import allowed_processors
from freehold.base.serving import POOL_CONTEXTS, Job
from freehold.base.version import __version__
from freehold.choose.advisor.anatomy import Anatomy
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    PlannedFlag,
    PlanRequest,
    SecretRef,
)
from freehold.outgrow.engines import StartedEngine, series
from freehold.outgrow.engines.wire import EngineDemands, EngineWire, TokenRoutes, salt
from freehold.outgrow.planning.layout import check_context
from freehold.route.providers.contract import Demands

MOST_REQUESTS = 1024  # of a replica, computed and waiting: our server's own limits are in front of it
_HOME = "{folder}/home"


class _OwnDemands(EngineDemands):
    """What a server of ours lacks behind another one."""

    def sampling(self, known: Mapping[str, str]) -> dict[str, Any]:
        """Return all that was given: a neutral value too stands for a default of the model's own."""
        sampling = self.job.sampling.items()
        return {name: value for name, value in sampling if value is not None and name != "logit_bias"}


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
            raise UsageError(
                f"{self.title} does not accept --engine-flag: {request.flags[0]}", "leave it out"
            )
        return self._here(request, request.home) if request.home is not None else self._elsewhere(request)

    def _here(self, request: PlanRequest, home: Path) -> DeployPlan:
        """Plan replicas that share this machine, and the files of `home`."""
        model = request.model
        if not model.here:
            raise UsageError(
                f"{model.source} is not on this machine",
                f"fetch it: freehold pull {model.base or model.name}",
            )
        portion = shared_out(request)
        word, served, links = _found(request, home)
        why = "what fits into the memory of each replica" if portion.cut else "the model's own"
        flags = [
            PlannedFlag("serve", word, "the model, by a link in the replica's own home"),
            PlannedFlag("--port", "{port}", "a free one of loopback"),
            PlannedFlag("--engine", "freehold", "on processors, whatever else is found"),
            PlannedFlag("--threads", str(portion.threads), "cores that are its own"),
            PlannedFlag("--context", str(portion.context), "asked for" if request.context else why),
            PlannedFlag("--cache-size", str(portion.cache_bytes), "bytes: its part of the memory"),
            *_kv_type(request),
            PlannedFlag("--keep-alive", "never", "the deployment decides how long it lives"),
            PlannedFlag("--no-disk-cache", None, "a replica's prompts end with it"),
            PlannedFlag("--max-requests", str(MOST_REQUESTS), "of one key: all requests come with the same"),
            PlannedFlag("--max-queued", str(MOST_REQUESTS), "they wait here as in front of one engine"),
            PlannedFlag("--no-console", None, "its web page is not needed"),
            PlannedFlag("--offline", None, "it downloads nothing"),
            PlannedFlag("--log-level", "warning", "failures only"),
        ]
        return _plan(
            request,
            flags,
            version=request.engine.version or __version__,
            context=portion.context,
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
        most = 4 * (request.streams or POOL_CONTEXTS)
        flags = [
            PlannedFlag("serve", f"{{folder}}/{file_name(model.name)}", "a link to the model's file"),
            PlannedFlag("--port", "{port}", "a free one of loopback"),
            PlannedFlag("--engine", "freehold", "on processors, whatever else is found"),
            PlannedFlag("--keep-alive", "never", "the replica decides how long it lives"),
            PlannedFlag("--offline", None, "the model's file is on each machine"),
            PlannedFlag("--log-level", "warning", "failures only"),
            PlannedFlag("--max-requests", str(most), "of one key: all requests come with the same"),
        ]
        if request.context:
            flags.append(PlannedFlag("--context", str(request.context), "asked for"))
        flags += _kv_type(request)
        return _plan(
            request,
            flags,
            links={file_name(model.name): model.source, **_tower_link(model, file_name(model.name))},
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
        folders = [each for each in ("overlays", "adapters") if (home / each).is_dir()]
        links |= {f"home/{each}": str(home / each) for each in folders}
        return request.stored, request.stored, links
    file = file_name(request.model.name.lower())
    links[file if source.is_file() else file.removesuffix(".gguf")] = str(source)
    links |= _tower_link(request.model, file)
    served = file.removesuffix(".gguf")
    return f"{{folder}}/{file if source.is_file() else served}", served, links


def _tower_link(model: DeployedModel, file: str) -> dict[str, str]:
    """Return the link to a tower beside a GGUF: the server finds it by its name."""
    tower = model.tower
    return {f"mmproj-{file}": tower.file} if tower is not None and tower.file else {}


def _kv_type(request: PlanRequest) -> list[PlannedFlag]:
    return [PlannedFlag("--kv-type", request.cache_type, "asked for")] if request.cache_type else []


def _plan(request: PlanRequest, flags: Sequence[PlannedFlag], **own: Any) -> DeployPlan:
    """Return the plan of a server a replica; `own`: what is other than this."""
    common: dict[str, Any] = {
        "engine": "freehold",
        "version": request.engine.version,
        "model": request.model,
        "nodes": request.nodes,
        "command": request.engine.command or ("freehold",),
        "flags": tuple(flags),
        "environment": {"FREEHOLD_HOME": _HOME, "FREEHOLD_OFFLINE": "1"},
        "secrets": (SecretRef("FREEHOLD_API_KEY"),),
        "context": request.context,
        "streams": request.streams or POOL_CONTEXTS,
        "replicas": max(1, request.replicas),
    }
    return DeployPlan(**{**common, **own})


# --- each replica's part of this machine: cores, memory nodes, and memory besides the weights -------------------
# Weights are mapped from one packed file, so all replicas have them once; a cache and two processes are each one's own.

USUAL_CONTEXT = 8192  # of a model whose files name none
# A replica beside weights and cache: HTTP server, engine process, activations of a step.
# Measured with SmolLM2-135M after prompts of 1,000 tokens: 150 MB of its own; wider models have more activations.
PROCESS_BYTES = 300 << 20
LEAST_CACHE = 64 << 20
_SHARE = 0.9  # of the free memory that replicas may take
_SLACK = 1.1  # of a cache: whole blocks, and window blocks beside them
_STEP = 256  # tokens by which a context is cut to what fits
_LEAST_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class Portion:
    """What each replica is given, and what all of them take."""

    threads: int
    places: tuple[str, ...]  # processors of each; (): any
    context: int
    cache_bytes: int
    memory_bytes: int  # of one replica, with all weights
    shared_bytes: int  # the weights
    cut: bool  # the context is shorter than the model's own, because memory is short


def shared_out(request: PlanRequest) -> Portion:
    """Return each replica's part of this machine. Raises UsageError for too few cores or too little memory."""
    replicas = max(request.replicas, 1)
    threads, places = _cores(replicas)
    context, cache, cut = _memory(request, replicas)
    weights = request.model.anatomy.weight_bytes
    return Portion(threads, places, context, cache, weights + PROCESS_BYTES + cache, weights, cut)


def _cores(replicas: int) -> tuple[int, tuple[str, ...]]:
    """Return the threads of each replica, and the processors of each where there are several memory nodes."""
    cores = default_threads()
    if replicas > cores:
        raise UsageError(
            f"{replicas} replicas need a core each, and this machine has {cores} for them",
            f"--replicas {cores}",
        )
    nodes = memory_nodes(allowed_processors())
    if replicas == 1 or len(nodes) == 1:
        return cores // replicas, ()
    places = places_of(replicas, nodes)
    sharing = -(-replicas // len(nodes))
    least = min(usable_cores(processor(), set(place), cpu_quota()) for place in places)
    return max(min(least // sharing, cores // replicas), 1), tuple(map(listed, places))


def places_of(replicas: int, nodes: tuple[frozenset[int], ...]) -> list[frozenset[int]]:
    """Return the processors of each replica: whole nodes where there are enough, else a node that several share."""
    count = len(nodes)
    if replicas >= count:
        return [nodes[number % count] for number in range(replicas)]
    bounds = [number * count // replicas for number in range(replicas + 1)]
    return [frozenset[int]().union(*nodes[bounds[n] : bounds[n + 1]]) for n in range(replicas)]


def _memory(request: PlanRequest, replicas: int) -> tuple[int, int, bool]:
    """Return the context of each replica, the bytes of its cache, and whether memory cut the context."""
    kind = request.cache_type or "f16"
    if kind not in KV_WIDTHS:
        raise UsageError(
            f"{kind!r} is not a cache of Freehold's own engine", f"it has {', '.join(KV_WIDTHS)}"
        )
    width, anatomy = KV_WIDTHS[kind], request.model.anatomy
    check_context(request.model, request.context)
    usable = int(request.nodes.rig.memory_bytes * _SHARE)
    room = (usable - anatomy.weight_bytes) // replicas - PROCESS_BYTES  # of one cache
    most = anatomy.context or USUAL_CONTEXT
    # A default takes half of it, so that an upgrade finds room for one replica more.
    context = (
        request.context or _longest(anatomy, most, room // 2, width) or _longest(anatomy, most, room, width)
    )
    need = max(_cache(anatomy, context or _LEAST_CONTEXT, 1, width), LEAST_CACHE)
    if need > room or context < min(_LEAST_CONTEXT, most):
        raise _too_large(request, replicas, usable, need, _longest(anatomy, most, room, width))
    wanted = max(_cache(anatomy, context, min(request.streams or POOL_CONTEXTS, POOL_CONTEXTS), width), need)
    cache = min(wanted, room if request.streams else max(room // 2, need))
    return context, cache, not request.context and context < most


def _cache(anatomy: Anatomy, context: int, streams: int, width: float) -> int:
    """Return the bytes of a cache for a number of conversations of `context` tokens."""
    states = max(MOST_STATES, streams) * anatomy.state_bytes
    paged = -(-context // BLOCK_TOKENS) * BLOCK_TOKENS
    return int(_SLACK * streams * anatomy.cache_bytes(paged, width)) + states


def _longest(anatomy: Anatomy, most: int, room: int, width: float) -> int:
    """Return the longest context of which one conversation fits into `room` bytes, up to `most`; 0 for none."""
    if _cache(anatomy, most, 1, width) <= room:
        return most
    lengths = range(_STEP, most + 1, _STEP)
    return _STEP * bisect_left(lengths, True, key=lambda tokens: _cache(anatomy, tokens, 1, width) > room)


def _too_large(request: PlanRequest, replicas: int, usable: int, cache: int, longest: int) -> UsageError:
    weights = request.model.anatomy.weight_bytes
    each = PROCESS_BYTES + cache
    fewer = (usable - weights) // each if usable > weights else 0
    ways = [f"--context {longest}"] if longest >= _LEAST_CONTEXT and request.context else []
    ways += [f"--replicas {fewer}"] if 0 < fewer < replicas else []
    return UsageError(
        f"{replicas} {'replica takes' if replicas == 1 else 'replicas take'} {show_bytes(weights + replicas * each)}: "
        f"weights of {show_bytes(weights)} once and {show_bytes(each)} for each; "
        f"{show_bytes(usable)} are free for them",
        ", or ".join(ways) or "free memory, or choose a smaller model",
    )


DRIVER = OwnEngine()
