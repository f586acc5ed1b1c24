"""Our own engine as a replica elsewhere: `freehold serve FILE` on a machine of a cluster, for Ray Serve and files.

On this machine nothing of it is needed: `freehold serve` has the engine inside. A replica is one server with a home of
its own in the replica's folder, on loopback, with a key. Knows no cluster.
Path: cli/deploy -> OwnEngine.plan -> ray/plan.py: over
"""

from __future__ import annotations

from pathlib import Path

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
from freehold.backends.engines.wire import EngineWire
from freehold.errors import UsageError


class OwnWire(EngineWire):
    """Our own routes, which give and take the ids of tokens."""

    gives_ids = True
    takes_ids = True


class OwnEngine:
    """Implements contract.EngineDriver."""

    name: EngineName = "freehold"
    title = "Freehold's own engine"
    package = "freehold"
    least = "0.1.0"
    metrics_path = "/metrics"
    drains = True
    busy_waits = True
    wire = OwnWire()

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan one server a replica. Raises UsageError for a model of another format, and for any flag."""
        model = request.model
        if model.files != "gguf":
            raise UsageError(
                f"{self.title} reads GGUF files, and {model.source} is {model.files}",
                "name a GGUF, or --engine vllm",
            )
        if request.flags:
            raise UsageError(f"{self.title} takes no --engine-flag: {request.flags[0]}", "leave it out")
        streams = request.streams or 8
        command = request.engine.command or ("freehold",)
        flags = [
            PlannedFlag("serve", f"{{folder}}/{file_name(model.name)}", "a link to the model's file"),
            PlannedFlag("--port", "{port}", "a free one of loopback"),
            PlannedFlag("--offline", None, "the model's file is on each machine"),
            PlannedFlag("--log-level", "warning", "failures only"),
            PlannedFlag("--max-requests", str(4 * streams), "of one key: all requests come with the same"),
        ]
        if request.context:
            flags.append(PlannedFlag("--context", str(request.context), "asked for"))
        if request.cache_type:
            flags.append(PlannedFlag("--kv-type", request.cache_type, "asked for"))
        return DeployPlan(
            engine="freehold",
            version=request.engine.version,
            schema="",
            model=model,
            nodes=request.nodes,
            command=command,
            flags=tuple(flags),
            environment={"FREEHOLD_HOME": "{folder}/home", "FREEHOLD_OFFLINE": "1"},
            secrets=(SecretRef("FREEHOLD_API_KEY"),),
            listens=Listens(),
            sizes=ParallelSizes(),
            context=request.context,
            streams=streams,
            replicas=max(1, request.replicas),
            notes=(f"{model.source} has to be on each machine, under this path",),
        )

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Refuse: on this machine the engine runs inside our server."""
        raise UsageError(
            f"{self.title} runs inside freehold serve on this machine",
            f"freehold serve {plan.model.name}; --on ray starts it on other machines",
        )

    def phase(self, line: str) -> str:
        """Return what a line of its log tells of the start."""
        return "loading weights" if line.startswith("loading ") else ""

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


DRIVER = OwnEngine()
