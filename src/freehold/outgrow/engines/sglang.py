"""SGLang: its plan, and how it runs. It listens on loopback, and reads its two keys from a file of its folder.

Key and admin key close its routes; on a command line every program of the machine could read them, and it takes none
from the environment, so both are in keys.yaml, which `--config` names. Knows SGLang alone.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Format
from freehold.outgrow.contract import (
    DeployPlan,
    EngineName,
    EngineNumbers,
    Layout,
    Listens,
    PlanRequest,
    SecretRef,
)
from freehold.outgrow.engines import StartedEngine, of_label, series
from freehold.outgrow.engines.wire import EngineWire, salt
from freehold.outgrow.planning.eyes import ONLY_PICTURES
from freehold.outgrow.planning.layout import EngineTraits, Wanted
from freehold.outgrow.planning.planning import laid_out
from freehold.outgrow.planning.wording import Wording, opened, source
from freehold.outgrow.process.process import PRIVATE
from freehold.route.providers.compatible import CompatibleWire

# What is here was read in the wheel of 0.5.23 and is tested against a stand-in; no server of it has run here.
# - Its keys are in a file of the replica's folder, as it reads no variable for them. The routes of administration need
# the second one, which no client has.
# - `sglang:generation_tokens_total` grows when an answer ends, `sglang:realtime_tokens_total` while it runs, once in
# `--decode-log-interval` steps.
# - A stream of a chat refuses `return_token_ids`: an answer is continued from its text.
# - SIGTERM: /health says 503, answers run to their end, looked at every 5 s.
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


FLAGS = {
    "tensor": "--tp-size",  # counts every device that shares a layer, those of data attention too
    "data": "--dp-size",
    "apart": "--enable-dp-attention",
    "pipeline": "--pp-size",
    "expert": "--ep-size",
    "context": "--context-length",
    "streams": "--max-running-requests",
    "cache_type": "--kv-cache-dtype",
    "memory_share": "--mem-fraction-static",
    "quantisation": "--quantization",
}
TRAITS = EngineTraits("sglang", "SGLang", cpu=False, fp8_while_loading=True)
COMMAND = ("python", "-m", "sglang.launch_server")
KEYS = "keys.yaml"
SECRETS = (SecretRef("api-key", file=KEYS), SecretRef("admin-api-key", file=KEYS))
MEETING_PORT = 5000  # of a rendezvous between nodes


class Sglang(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "sglang"
    package = "sglang"
    least = "0.5.23"
    phases = _PHASES
    title = "SGLang"
    wire = SGLangWire()
    metrics_path = "/metrics"
    drains = True

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan a start. Raises UsageError: unknown and dangerous flags, a misfit with what would fit."""
        words = opened(request, self.name, self.title, self.least)
        wishes = words.wishes(FLAGS)
        if words.off("--enable-dp-attention"):  # its tensor size counts every device, those of all groups
            wishes = replace(wishes, sizes=_apart(wishes.sizes))
        layout = laid_out(request, TRAITS, wishes)
        environment = dict(PRIVATE)
        listens = Listens(port=request.port)
        _flags(words, layout, listens, source(request, environment, words.notes))
        return words.plan(
            "sglang",
            request.engine.command or COMMAND,
            layout,
            environment=environment,
            listens=listens,
            secrets=SECRETS,
        )

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


def _apart(sizes: Wanted) -> Wanted:
    """Return sizes of groups that attend apart. Raises UsageError where the devices do not divide among them."""
    groups = max(sizes.data, 1)
    if sizes.tensor % groups:
        raise UsageError(
            f"--enable-dp-attention: {groups} groups cannot share {sizes.tensor} devices out",
            f"give a --tp-size that {groups} divides",
        )
    return replace(sizes, tensor=sizes.tensor // groups, expert=True)


def _flags(words: Wording, layout: Layout, listens: Listens, loads: str) -> None:
    request, why, add = words.request, layout.why, words.add
    add("--model-path", loads, "what it loads")
    add("--served-model-name", request.model.name, "the deployment's name")
    words.listens(listens)
    add("--config", "{folder}/" + KEYS, "its key and its admin key, in a folder that only you may enter")
    # Where the user gave groups of their own, whether they attend apart is theirs to say too.
    words.sizes(FLAGS, layout, without="apart" if words.value("--dp-size") else "")
    if layout.across > 1:
        add("--nnodes", layout.across, why["pipeline"])
        add("--node-rank", "{rank}", "of this node")
        add("--dist-init-addr", f"{{head}}:{MEETING_PORT}", "where the nodes meet: keep that network private")
    add(FLAGS["context"], layout.context, why["context"])
    words.override("--json-model-override-args", layout)
    add(FLAGS["streams"], layout.streams, why["streams"])
    add(FLAGS["memory_share"], f"{layout.memory_share:g}", "of each device, for weights and cache")
    words.cache_type(FLAGS["cache_type"], layout, fp8="fp8_e4m3")
    if layout.quantise:
        add(FLAGS["quantisation"], layout.quantise, why["quantise"])
        # Else all weights in 16 bits are on the device before the first is rounded.
        add("--load-format", "layered", "rounds layer by layer: the weights fit only then")
    else:
        add("--load-format", "safetensors", "never a pickle")
    if request.model.anatomy.role == "generator":
        words.parsers("sglang", "--tool-call-parser", "--reasoning-parser")
        words.drafts(_drafting, "--speculative-algorithm")
    else:
        add("--is-embedding", True, "it returns vectors, not text")
    if request.model.sees:
        _pictures(words, layout)
    add("--enable-metrics", True, "its counters show that it lives")
    add("--enable-cache-report", True, "tells how much of a prompt was cached")
    add("--enable-priority-scheduling", True, "requests carry the priority of our queue")


def _pictures(words: Wording, layout: Layout) -> None:
    """Add the flags of a model that sees: pictures alone, as many as our server takes, none fetched."""
    words.add(
        "--enable-multimodal", True, "without it, SGLang leaves out the vision encoder of some families"
    )
    words.add("--allowed-media-domains", "none.invalid", "requests contain their pictures: it downloads none")
    words.add(
        "--limit-mm-data-per-request",
        ONLY_PICTURES,
        "as many pictures as Freehold's server accepts, no video or audio",
    )
    words.sees(layout, "--mm-process-config")


def _drafting(model: str) -> str:
    """Return the flags that draft tokens: by a model's own layers, or by a draft model."""
    flags = ["--speculative-algorithm=EAGLE3", f"--speculative-draft-model-path={model}"] if model else []
    return " ".join(f"--engine-flag={flag}" for flag in flags or ["--speculative-algorithm=EAGLE"])


DRIVER = Sglang()
