"""TensorRT-LLM's trtllm-serve: its plan, and how it runs. It listens on loopback and has no key at all.

Its telemetry is on unless it is switched off twice. Several nodes start under MPI, whose ranks it takes: every node
runs the same line. Knows trtllm-serve alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Format
from freehold.outgrow.contract import (
    DeployPlan,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    Layout,
    Listens,
    PlannedFlag,
    PlanRequest,
)
from freehold.outgrow.engines import StartedEngine
from freehold.outgrow.engines.wire import EngineDemands, EngineWire, salt
from freehold.outgrow.planning.layout import EngineTraits, stretch_of
from freehold.outgrow.planning.planning import laid_out
from freehold.outgrow.planning.wording import Wording, opened, source
from freehold.outgrow.process.process import PRIVATE, write_settings
from freehold.route.providers.compatible import CompatibleWire
from freehold.route.providers.openai.wire import SAMPLING

# What is here was read in its repository and is tested against a stand-in; no server of it has run here.
# - It has no key at all: only a random port on loopback protects it from the machine's other users.
# - /metrics gives the steps since it was read last, once: another reader takes them from us. It has them only
# where its configuration says `enable_iter_perf_stats`, which `--config` in the replica's folder does.
# - Its requests refuse every field that they do not know, so only those of its own schema are sent; `tool_choice` left
# out means none there, not auto. A chat's begun answer cannot be continued; a text's can.
CONFIG_FILE = "serve.yaml"  # in the replica's folder, in which the engine starts
CONFIG = {"enable_iter_perf_stats": True, "guided_decoding_backend": "xgrammar"}
_PHASES = (
    (r"PyTorch backend|TensorRT backend|LLM Args", "reading its configuration"),
    (r"[Ll]oading weights", "loading weights"),
    (r"[Mm]ax_seq_len=|KV ?cache|max tokens in paged", "cache allocated"),
    (r"autotun", "tuning kernels"),
    (r"CUDA graph", "capturing graphs"),
    (r"Application startup complete", "up"),
)


class _TrtllmDemands(EngineDemands):
    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            *super().beyond_dialect(),
            (job.turn == "continue", "continues no begun answer of a chat"),
            (job.suffix is not None, "fills in no middle"),
        )


class _TrtllmAsker(CompatibleWire.asker):
    def format(self, format: Format | None) -> dict[str, Any]:
        """Write a format; a regular expression is a kind of response_format."""
        if format is not None and format.kind == "regex":
            return {"response_format": {"type": "regex", "regex": format.source}}
        return super().format(format)

    def tools(self) -> dict[str, Any]:
        """Write the tools, and the choice in any case."""
        fields = super().tools()
        return fields | ({"tool_choice": "auto"} if fields and "tool_choice" not in fields else {})


class TrtllmWire(EngineWire):
    """OpenAI's routes as trtllm-serve has them."""

    asker = _TrtllmAsker
    demands = _TrtllmDemands
    formats = ("json", "json_schema", "regex")
    sampling = SAMPLING | {name: name for name in ("top_k", "min_p", "repetition_penalty")}
    takes_ids = True

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write the budget of thinking under its own name, and a chat's own part of the prefix cache."""
        if job.think_tokens is not None:
            body["thinking_token_budget"] = job.think_tokens
        if job.tenant and job.messages is not None:  # a text's request has no such field
            body["cache_salt"] = salt(job.tenant)


class _CacheStats(msgspec.Struct, gc=False):
    maxNumBlocks: int = 0  # its own names
    usedNumBlocks: int = 0
    cacheHitRate: float = 0.0


class _BatchStats(msgspec.Struct, gc=False):
    numContextRequests: int = 0
    numGenRequests: int = 0
    numCtxTokens: int = 0


class _Iteration(msgspec.Struct, gc=False):
    iterLatencyMS: float = 0.0
    numActiveRequests: int = 0
    numQueuedRequests: int = 0
    kvCacheStats: _CacheStats = msgspec.field(default_factory=_CacheStats)
    inflightBatchingStats: _BatchStats = msgspec.field(default_factory=_BatchStats)


FLAGS = {
    "tensor": "--tensor_parallel_size",
    "apart": "--enable_attention_dp",
    "pipeline": "--pipeline_parallel_size",
    "expert": "--moe_expert_parallel_size",
    "context": "--max_seq_len",
    "streams": "--max_batch_size",
    "cache_type": "--kv_cache_dtype",
    "memory_share": "--free_gpu_memory_fraction",
}
TRAITS = EngineTraits("tensorrt-llm", "TensorRT-LLM", cpu=False, fp8_while_loading=False)
COMMAND = ("trtllm-serve",)
ACROSS = ("trtllm-llmapi-launch",)  # goes before the command where MPI starts it on several nodes
ENVIRONMENT = {**PRIVATE, "TRTLLM_NO_USAGE_STATS": "1"}
OPEN = "trtllm-serve has no key: other users on this machine can reach its port on loopback"
MPI = "several nodes start under MPI: srun --mpi=pmix or mpirun runs this line once for each device"


class Trtllm(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "trtllm"
    package = "tensorrt-llm"
    least = "1.2.1"
    phases = _PHASES
    title = "TensorRT-LLM"
    wire = TrtllmWire()
    metrics_path = "/metrics"
    drains = False  # not tried: a replica is emptied first

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan a start. Raises UsageError: unknown and dangerous flags, a misfit with what would fit."""
        words = opened(request, self.name, self.title, self.least)
        wishes = words.wishes(FLAGS)
        if words.off("--enable_attention_dp"):  # each of its devices attends to sequences of its own
            apart = replace(wishes.sizes, tensor=1, data=wishes.sizes.tensor, expert=True)
            wishes = replace(wishes, sizes=apart)
        layout = laid_out(request, TRAITS, wishes)
        environment = dict(ENVIRONMENT)
        listens = Listens(port=request.port)
        loads = source(request, environment, words.notes)
        _flags(words, layout, listens)
        words.notes.append(MPI if layout.across > 1 else OPEN)
        launcher = ACROSS if layout.across > 1 else ()
        command = (*launcher, *(request.engine.command or COMMAND), loads)
        return words.plan("trtllm", command, layout, environment=environment, listens=listens)

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it, its statistics on. Raises UsageError, EngineLost."""
        write_settings(folder / CONFIG_FILE, CONFIG)
        config = PlannedFlag("--config", f"{{folder}}/{CONFIG_FILE}", "statistics of each step, and formats")
        plan = replace(plan, flags=(*plan.flags, config))
        return await super().launch(plan, folder)

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Add what is new to what the last reading had; it counts no tokens, so a step is one for each answer."""
        steps = msgspec.json.decode(body, type=list[_Iteration])
        last = before or EngineNumbers(steps=0)
        if not steps:
            return last
        newest = steps[-1]
        cache, batch = newest.kvCacheStats, newest.inflightBatchingStats
        used = cache.usedNumBlocks / cache.maxNumBlocks if cache.maxNumBlocks else None
        return EngineNumbers(
            running=batch.numContextRequests + batch.numGenRequests or newest.numActiveRequests,
            waiting=newest.numQueuedRequests,
            prompt_tokens=last.prompt_tokens + sum(s.inflightBatchingStats.numCtxTokens for s in steps),
            generated_tokens=last.generated_tokens
            + sum(s.inflightBatchingStats.numGenRequests for s in steps),
            steps=(last.steps or 0) + len(steps),
            cache_usage=used,
            series={"trtllm:iterLatencyMS": newest.iterLatencyMS, "trtllm:cacheHitRate": cache.cacheHitRate},
        )


def _flags(words: Wording, layout: Layout, listens: Listens) -> None:
    why, add = layout.why, words.add
    add("--served_model_name", words.request.model.name, "the deployment's name")
    words.listens(listens)
    words.sizes(FLAGS, layout)
    if layout.across > 1:
        add("--gpus_per_node", words.request.nodes.rig.count, "how many devices each node has")
    add(FLAGS["context"], layout.context, why["context"])
    if stretch_of(words.request.model, layout.context):
        raise UsageError(
            f"a context of {layout.context:,} tokens: trtllm-serve has no flag that stretches one",
            f"--context {words.request.model.anatomy.context}, or --engine vllm",
        )
    add(FLAGS["streams"], -(-layout.streams // layout.sizes.data), why["streams"])
    add(FLAGS["memory_share"], f"{layout.memory_share:g}", "of what weights leave, for the cache")
    words.cache_type(FLAGS["cache_type"], layout)
    words.parsers("trtllm", "--tool_parser", "--reasoning_parser")
    add("--no-telemetry", True, "on by default; it reports even how the process ended")


DRIVER = Trtllm()
