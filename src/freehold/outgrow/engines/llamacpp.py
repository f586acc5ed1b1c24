"""llama.cpp's server: planned from a GGUF, on a Unix socket, its key by environment.

Run here: a build of 2026-08. What that showed, and what the plan does about it:
- /health says 503 while it loads, and /health and /v1/models answer without the key. It echoes any origin, with
  credentials, unless `--cors-origins` says otherwise.
- A whole answer that continues a begun turn repeats what was begun, and a stream does not: LlamaCppWire takes it off.
- `llamacpp:tokens_predicted_total` grows when an answer ends; `llamacpp:n_decode_total` with each step.
- SIGTERM closes the socket at once and gives no further token: the stream ends without an end when the next ping is
  due, by default 30 s later. So a replica is emptied first, and pings come each second.
- No prompt is in its log at its usual verbosity; the socket's file stays after its end.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Format
from freehold.outgrow.contract import (
    DeployedTower,
    DeployPlan,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    Layout,
    Listens,
    PlanRequest,
    SecretRef,
)
from freehold.outgrow.engines import StartedEngine, series
from freehold.outgrow.engines.wire import EngineWire
from freehold.outgrow.flags import BY_OPTION, schema_of_help
from freehold.outgrow.planning.eyes import llamacpp_counts
from freehold.outgrow.planning.layout import room
from freehold.outgrow.planning.wording import Wording, opened, refuse_old
from freehold.route.providers.compatible import MORE_SAMPLING, CompatibleWire
from freehold.route.providers.contract import WholeAnswer
from freehold.route.providers.openai.wire import SAMPLING

COMMAND = ("llama-server",)
HELP_S = 20.0  # it takes 0.1 s, and longer where it wakes a GPU
KEY = SecretRef("LLAMA_API_KEY")
MICRO_BATCH = 512  # tokens of it, unless --ubatch-size says otherwise
# Of its caches; a quantised value cache needs flash attention.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_PHASES = (
    (r"loading model|loaded meta data|load_model:", "loading weights"),
    (r"warming up", "warming up"),
    (r"initializing, n_slots|new slot|init: initializing slots", "slots ready"),
    (r"listening on", "up"),
)


class _LlamaAsker(CompatibleWire.asker):
    def format(self, format: Format | None) -> dict[str, Any]:
        """Write a format; a choice is a grammar of its words."""
        if format is not None and format.kind == "choice":
            words = " | ".join(json.dumps(word, ensure_ascii=False) for word in format.source)
            return {"grammar": f"root ::= {words}"}
        return super().format(format)


class LlamaCppWire(EngineWire):
    """OpenAI's routes as llama.cpp has them."""

    asker = _LlamaAsker
    formats = ("json", "json_schema", "choice")
    sampling = SAMPLING | MORE_SAMPLING | {"repetition_penalty": "repeat_penalty"}
    takes_ids = True

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        """Read a whole answer; of a continued turn without what was begun, which it repeats."""
        answer = super().whole(body, job)
        if job.turn != "continue" or not job.messages:
            return answer
        begun, pieces, seen = job.messages[-1].content, [], set[int]()
        for number, chunk in answer.pieces:
            if number not in seen and chunk.text:
                seen.add(number)
                chunk = replace(chunk, text=chunk.text.removeprefix(begun))
            pieces.append((number, chunk))
        return replace(answer, pieces=tuple(pieces))


class LlamaCpp(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "llamacpp"
    phases = _PHASES
    title = "llama.cpp"
    package = ""  # the user's own build: no package with one is ours to choose
    least = "8146"  # builds before it read GGUF files whose sizes overflow (CVE-2026-27940)
    wire = LlamaCppWire()
    metrics_path = "/metrics"
    drains = False
    busy_waits = False

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan one server for one GGUF file. Raises UsageError."""
        words = opened(request, self.name, self.title, self.least, files="gguf")
        streams = words.number("--parallel")
        whole = words.number("--ctx-size")
        context = whole // (streams or request.streams or 1)
        embeds = request.model.anatomy.role == "embedder"
        in_one = embeds and not words.number("--ubatch-size")
        layout = room(request, self.title, "llama.cpp", context, streams, whole=in_one)
        listens = Listens(request.socket) if request.socket is not None else Listens(port=request.port)
        _flags(words, layout, listens, embeds)
        command = request.engine.command or COMMAND
        return words.plan(self.name, command, layout, listens=listens, secrets=(KEY,))

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it with the flags that this build has. Raises UsageError, EngineLost."""
        if len(plan.command) == 1:  # the program itself: its own help has the last word
            printed = await asyncio.to_thread(_printed, plan.command[0], "--version")
            plan = replace(plan, version=build_of(printed) or plan.version)
            refuse_old(self.title, plan.version, self.least)
            plan = fitted(plan, await asyncio.to_thread(_printed, plan.command[0], "--help"))
        return await super().launch(plan, folder)

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its counters."""
        metrics = series(body)
        cached = metrics.get("llamacpp:prompt_tokens_cached_total")
        return EngineNumbers(
            running=int(metrics.get("llamacpp:requests_processing", 0)),
            waiting=int(metrics.get("llamacpp:requests_deferred", 0)),
            prompt_tokens=int(metrics.get("llamacpp:prompt_tokens_total", 0) + (cached or 0)),
            generated_tokens=int(metrics.get("llamacpp:tokens_predicted_total", 0)),
            cached_tokens=None if cached is None else int(cached),
            steps=int(metrics.get("llamacpp:n_decode_total", 0)),
            series={name: v for name, v in metrics.items() if "_seconds" in name or "busy_slots" in name},
        )


def _flags(words: Wording, layout: Layout, listens: Listens, embeds: bool) -> None:
    request, add = words.request, words.add
    rig, whole = request.nodes.rig, layout.context * layout.streams
    if request.model.here:
        add("--model", request.model.source, "the file")
    else:
        add("--hf-repo", request.model.source, "the repository, and which of its files")
        words.notes.append(
            f"{request.model.source} comes from the hub; with a local file the engine stays offline"
        )
    add("--alias", request.model.name, "what clients ask for")
    add("--ctx-size", whole, f"{layout.streams} x {layout.context:,}: llama.cpp divides it among its answers")
    if (stretch := words.stretched(layout)) and stretch.kind == "yarn":
        add("--rope-scaling", stretch.kind, "stretches the context, as its card says")
        add("--rope-scale", f"{stretch.factor:g}", "how far")
        add("--yarn-orig-ctx", stretch.original, "what is stretched")
    add("--parallel", layout.streams, "answers at a time")
    add("--gpu-layers", "0" if rig.device.kind == "cpu" else "all", f"it runs on {rig.name}")
    add("--jinja", True, "the model's own chat template, and its tools")
    add("--metrics", True, "counters, to detect a hang")
    add("--no-ui", True, "its web page is not needed")
    add("--no-slots", True, "/slots shows what is asked")
    if request.model.here:
        add("--offline", True, "it downloads nothing")
    add("--cors-origins", "localhost", "by default any web page may read its answers")
    add("--sse-ping-interval", 1, "the next ping detects that a stream's server has ended")
    words.listens(listens, "--host")
    if embeds:
        add("--embedding", True, "it returns vectors, not text")
        for batch in ("--batch-size", "--ubatch-size"):
            add(batch, layout.context, "tokens attend to the whole text, so it must fit one batch")
    if request.model.tower is not None and not embeds and words.off("--mmproj-auto") is not False:
        _pictures(words, layout, request.model.tower)
    if kind := request.cache_type:
        if kind not in CACHE_TYPES:
            raise UsageError(f"{kind!r} is not a cache of llama.cpp", f"it has {', '.join(CACHE_TYPES)}")
        for side in "kv":
            add(f"--cache-type-{side}", kind, "asked for")
        if kind not in ("f32", "f16", "bf16"):
            add("--flash-attn", "on", "a quantised value cache needs it")


def _pictures(words: Wording, layout: Layout, tower: DeployedTower) -> None:
    """Add the tower beside the model, and limits by which its tokens are counted as ours."""
    counts, add = llamacpp_counts(tower), words.add
    if words.request.model.here:
        add("--mmproj", tower.file, "the vision encoder, for pictures")
    else:
        add("--mmproj-auto", True, "the vision encoder is downloaded with the model")
        words.notes.append(
            "llama.cpp uses the vision encoder (mmproj file) of the repository; without one, it cannot read pictures"
        )
    if counts.most:
        add("--image-min-tokens", counts.least, "as the model's own files have it: llama.cpp takes constants")
        add("--image-max-tokens", counts.most, "as the model's own files have it: llama.cpp takes constants")
    # An image whose rows see each other and that is larger than a micro-batch ends the whole process.
    most = words.number("--image-max-tokens") or counts.most or tower.most
    if tower.whole and most > MICRO_BATCH:
        for batch in ("--batch-size", "--ubatch-size"):
            add(
                batch,
                -(-most // MICRO_BATCH) * MICRO_BATCH,
                "the tokens of a picture attend to each other, so it must fit one batch",
            )
    if counts.note:
        words.notes.append(counts.note)
    words.sees(layout, "--image-max-tokens")


def fitted(plan: DeployPlan, printed: str) -> DeployPlan:
    """Return the plan without what a build lacks, by what its `--help` prints. Raises UsageError for a user's flag."""
    known = schema_of_help(printed, plan.version)
    if not known.flags:
        return plan
    lacking = [flag for flag in plan.flags if known.find(flag.name) is None]
    refused = next((flag for flag in lacking if flag.reason == BY_OPTION), None)
    if refused is not None:
        near = known.near(refused.name)
        raise UsageError(
            f"this llama-server has no flag {refused.name}",
            f"did you mean {near}?" if near else "leave it out",
        )
    return replace(plan, flags=tuple(flag for flag in plan.flags if flag not in lacking))


def _printed(program: str, option: str) -> str:
    """Return what a build prints; "" where it prints nothing: its start will say why."""
    try:
        done = subprocess.run(
            [program, option], capture_output=True, text=True, errors="replace", timeout=HELP_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def build_of(text: str) -> str:
    """Return a build's number from what `--version` prints; "" where it was made from a copy that does not know it."""
    match = re.search(r"version: (\d+) \(|\(build (\d+)", text)
    number = (match[1] or match[2]) if match else ""
    return number if number.isdigit() and int(number) > 1 else ""


DRIVER = LlamaCpp()
