"""TensorRT-LLM's server as it runs: its start, its log, its iteration statistics, its end. Plans are the driver's.

What is here was read in its repository and is tested against a stand-in; no server of it has run here.

- It has no key at all: only a random port on loopback protects it from the machine's other users.
- /metrics gives the steps since it was read last, once: another reader takes them from us. It has them only
  where its configuration says `enable_iter_perf_stats`, which `--config` in the replica's folder does.
- Its requests refuse every field that they do not know, so only those of its own schema are sent; `tool_choice` left
  out means none there, not auto. A chat's begun answer cannot be continued; a text's can.
Path: EngineDriver.launch -> TrtllmServer.launch -> launch -> OwnProcess
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from freehold.backends.contract import DeployPlan, EngineNumbers, LaunchedEngine, PlannedFlag
from freehold.backends.engines.started import StartedEngine
from freehold.backends.engines.wire import EngineDemands, EngineWire, salt
from freehold.backends.process.blanks import write_settings
from freehold.providers.compatible import CompatibleWire
from freehold.providers.openai.wire import SAMPLING
from freehold.serving import Job
from freehold.types import Format

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


class TrtllmServer(StartedEngine):
    """The half of TensorRT-LLM's driver that runs it."""

    phases = _PHASES
    title = "TensorRT-LLM"
    wire = TrtllmWire()
    metrics_path = "/metrics"
    drains = False  # not tried: a replica is emptied first

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it, its statistics on. Raises UsageError, EngineLost."""
        write_settings(folder / CONFIG_FILE, CONFIG)
        told = PlannedFlag("--config", f"{{folder}}/{CONFIG_FILE}", "statistics of each step, and formats")
        plan = replace(plan, flags=(*plan.flags, told))
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
