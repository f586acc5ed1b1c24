"""mlx_lm's server on Apple silicon: planned from a folder, on a random port of loopback.

Read in the wheel of 0.32.2, tested against a stand-in; there is no Apple machine here.
- It has no key and allows any origin; what it can be given is a random local port and one allowed origin.
- A request's `model`, `draft_model` and `adapters` name what it loads, from the hub too: MlxWire always asks for the
  model that it was started with, the hub is offline, and no other field passes.
- It takes no format and no begun answer, has no metrics, and ends at once when it is asked to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.outgrow.contract import DeployPlan, EngineName, Listens, PlanRequest
from freehold.outgrow.engines import StartedEngine
from freehold.outgrow.engines.wire import EngineDemands, EngineWire
from freehold.outgrow.planning.layout import room
from freehold.outgrow.planning.wording import opened
from freehold.outgrow.process.process import PRIVATE
from freehold.route.providers.openai.wire import SAMPLING

STARTED_WITH = "default_model"  # its own word for the model of its command line
OPEN = "mlx_lm's server has no key: every local program that finds its port can send it requests"
BLIND = "mlx_lm's server cannot read pictures; use --engine llamacpp with a GGUF and its mmproj file"
_PHASES = ((r"Fetching|[Ll]oading", "loading weights"), (r"Starting httpd", "up"))


class _MlxDemands(EngineDemands):
    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            *super().beyond_dialect(),
            (job.n > 1, f"returns one answer per request, not {job.n}"),
            (job.ignore_eos, "decides itself when an answer ends: ignore_eos is not possible"),
            (job.turn != "new", "cannot continue an assistant turn"),
            (job.suffix is not None, "does not support fill-in-the-middle"),
            (job.format is not None, "does not support response formats"),
        )


class MlxWire(EngineWire):
    """OpenAI's routes as mlx_lm has them."""

    demands = _MlxDemands
    formats = ()
    sampling = SAMPLING | {name: name for name in ("top_k", "min_p", "repetition_penalty")}

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Name the model that it was started with; another name would be loaded."""
        body["model"] = STARTED_WITH
        if body.get("max_tokens", 0) is None:
            del body["max_tokens"]


class Mlx(StartedEngine):
    """Implements contract.EngineDriver."""

    name: EngineName = "mlx"
    phases = _PHASES
    title = "MLX"
    package = "mlx-lm"
    least = ""  # no advisory about it was found
    wire = MlxWire()
    metrics_path = ""
    drains = False

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan one server for one folder. Raises UsageError."""
        words = opened(request, self.name, self.title, self.least)
        rig = request.nodes.rig
        if rig.device.kind != "mac":
            raise UsageError(
                f"{self.title} runs on Apple silicon, and {rig.name} is none",
                "plan for a Mac with --on, or take --engine vllm",
            )
        layout = room(request, self.title, "mlx", streams=words.number("--decode-concurrency"))
        listens, add = Listens(port=request.port), words.add
        add("--model", request.model.source, "the folder")
        words.listens(listens)
        add("--allowed-origins", "http://127.0.0.1", "by default any web page may read its answers")
        add("--decode-concurrency", layout.streams, "answers at a time")
        add("--max-tokens", layout.context, "an answer without a limit ends with the context")
        add("--log-level", "INFO", "DEBUG writes what is asked")
        words.notes.append(OPEN)
        if request.model.sees:
            words.notes.append(BLIND)
        return words.plan(
            self.name,
            request.engine.command or ("mlx_lm.server",),
            layout,
            environment=dict(PRIVATE),
            listens=listens,
        )


DRIVER = Mlx()
