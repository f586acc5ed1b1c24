"""SGLang as a running server: its start, its log, its counters, its end. Plans are the driver's own file's.

What is here was read in the wheel of 0.5.23 and is tested against a stand-in; no server of it has run here.

- Its keys are in a file of the replica's folder, as it reads no variable for them. The routes of administration need
  the second one, which no client has.
- `sglang:generation_tokens_total` grows when an answer ends, `sglang:realtime_tokens_total` while it runs, once in
  `--decode-log-interval` steps.
- A stream of a chat refuses `return_token_ids`: an answer is continued from its text.
- SIGTERM: /health says 503, answers run to their end, looked at every 5 s.
Path: EngineDriver.launch -> SGLangServer.launch -> launch -> OwnProcess
"""

from __future__ import annotations

import re
from typing import Any

from freehold.backends.contract import EngineNumbers
from freehold.backends.engines.scrape import of_label, series
from freehold.backends.engines.started import StartedEngine
from freehold.backends.engines.wire import EngineWire, salt
from freehold.providers.compatible import CompatibleWire
from freehold.serving import Job
from freehold.types import Format

_PHASES = (
    (r"server_args=", "reading its configuration"),
    (r"Load weight begin", "loading weights"),
    (r"Load weight end", "weights loaded"),
    (r"KV Cache is allocated|Memory pool end", "cache allocated"),
    (r"[Cc]aptur\w+ .*graph", "capturing graphs"),
    (r"fired up and ready", "up"),
)


class _SGLangAsker(CompatibleWire.asker):
    def format(self, format: Format | None) -> dict[str, Any]:
        """Write a format: a regular expression, and so a choice, is a field of its own."""
        if format is None or format.kind not in ("choice", "regex"):
            return super().format(format)
        if format.kind == "regex":
            return {"regex": format.source}
        return {"regex": "|".join(f"({re.escape(word)})" for word in format.source)}


class SGLangWire(EngineWire):
    """OpenAI's routes as SGLang has them."""

    asker = _SGLangAsker
    formats = ("json", "json_schema", "choice", "regex")
    takes_ids = True

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write the tenant's own part of the prefix cache."""
        if job.tenant:
            body["cache_salt"] = salt(job.tenant)


class SGLangServer(StartedEngine):
    """The half of SGLang's driver that runs it."""

    phases = _PHASES
    title = "SGLang"
    wire = SGLangWire()
    metrics_path = "/metrics"
    drains = True

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its counters."""
        metrics = series(body)
        running = of_label(body, "sglang:realtime_tokens_total", "mode")
        return EngineNumbers(
            running=int(metrics.get("sglang:num_running_reqs", 0)),
            waiting=int(metrics.get("sglang:num_queue_reqs", 0)),
            prompt_tokens=int(metrics.get("sglang:prompt_tokens_total", 0)),
            generated_tokens=int(metrics.get("sglang:generation_tokens_total", 0)),
            cached_tokens=int(metrics.get("sglang:cached_tokens_total", 0)),
            steps=int(sum(running.values())),
            cache_usage=metrics.get("sglang:token_usage"),
            series={name: v for name, v in metrics.items() if name in _SHOWN},
        )


_SHOWN = frozenset(
    f"sglang:{name}"
    for name in (
        "gen_throughput",
        "cache_hit_rate",
        "spec_accept_length",
        "num_retracted_reqs",
        "num_aborted_requests_total",
    )
)
