"""What drivers of engines that start as processes of ours do alike: the start, and its phases by lines of the log.

Knows patterns; the tables are the drivers'. Path: EngineDriver.launch -> StartedEngine.launch -> launch -> OwnProcess
"""

from __future__ import annotations

import re
from pathlib import Path

from freehold.backends.contract import DeployPlan, EngineNumbers, LaunchedEngine

Phases = tuple[tuple[str, str], ...]  # (pattern of a line, what it tells); the first that fits


class StartedEngine:
    """The half of a driver that starts its engine. An engine without counters has `numbers` as they are here."""

    title: str
    phases: Phases
    busy_waits = True

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it. Raises UsageError, EngineLost."""
        from freehold.backends.process.process import launch

        return await launch(plan, folder, phase=self.phase, title=self.title)

    def phase(self, line: str) -> str:
        """Return what a line of its log tells of the start; "" for nothing."""
        return next((told for pattern, told in self.phases if re.search(pattern, line)), "")

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Return what was known before: it has no metrics."""
        return before or EngineNumbers()
