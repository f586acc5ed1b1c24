"""A server that speaks OpenAI's routes and is none of the engines we know: attached only, with what all have.

It is given no field beyond what such servers document; it tells no counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, EngineName, LaunchedEngine, PlanRequest
from freehold.outgrow.engines.started import StartedEngine
from freehold.outgrow.engines.wire import EngineDemands, EngineWire
from freehold.route.providers.openai.wire import SAMPLING


class _CompatibleDemands(EngineDemands):
    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            *super().beyond_dialect(),
            (job.ignore_eos, "may not know ignore_eos"),
            (job.turn != "new", "may not continue a begun answer"),
        )


class CompatibleServerWire(EngineWire):
    """OpenAI's routes, as every such server has them."""

    demands = _CompatibleDemands
    formats = ("json", "json_schema")
    sampling = SAMPLING


class CompatibleServer(StartedEngine):
    """Implements contract.EngineDriver, but for a start; its log is not ours, and it tells no numbers."""

    name: EngineName = "compatible"
    title = "the server"
    package = ""
    least = ""
    wire = CompatibleServerWire()
    metrics_path = ""
    drains = False
    phases = ()

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse."""
        raise UsageError(f"{self.title} is not started by a deployment", "give its address: --attach URL")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Refuse."""
        raise UsageError(f"{self.title} is not started by a deployment", "give its address: --attach URL")


DRIVER = CompatibleServer()
