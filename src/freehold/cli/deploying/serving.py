"""Deployments of a server that is started for them: added once its doors are open, followed on stderr.

Knows plans, the server's desk and the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from freehold.base.errors import EngineLost, FreeholdError
from freehold.cli.deploying.running import LOOKED_S, last_words, progress, ready
from freehold.cli.progress import StatusLine
from freehold.cli.serving.logs import tell
from freehold.outgrow.contract import DeploymentRow, DeployPlan
from freehold.outgrow.options import DeployOptions

if TYPE_CHECKING:
    from freehold.serve.http.system.deployments import DeploymentDesk


class StartedDeployments:
    """What a server begins with. `done` is called once all answer or have failed."""

    def __init__(
        self, plans: Sequence[tuple[DeployPlan, DeployOptions]], *, keep: bool = True, again: bool = False
    ) -> None:
        """`keep`: as files once they answer, for `freehold deploy` without MODEL.

        `again`: they answered before, so that an engine that dies at its start is tried as often as later.
        """
        self._plans, self._keep, self._again = plans, keep, again
        self.failed = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many deployments."""
        return len(self._plans)

    def begin(self, desk: DeploymentDesk, url: str, done: Callable[[], None]) -> None:
        """Start every plan, in the server's event loop. /ready waits for them from now on."""
        desk.awaits([plan.model.name for plan, _ in self._plans])
        self._task = asyncio.get_running_loop().create_task(self._all(desk, url, done))

    async def _all(self, desk: DeploymentDesk, url: str, done: Callable[[], None]) -> None:
        with StatusLine("its engines end with the server") as line:
            await asyncio.gather(*(self._one(desk, url, line, *each) for each in self._plans))
        if self.failed < self.count:
            desk.forget_lost()
        done()

    async def _one(
        self, desk: DeploymentDesk, url: str, line: StatusLine, plan: DeployPlan, options: DeployOptions
    ) -> None:
        started = time.monotonic()
        try:
            name = (await desk.add(plan, options, awaited=True, keep=False)).name
            row = await self._followed(desk, name, line)
            if self._keep:
                desk.keep(plan, options)
        except FreeholdError as e:
            self.failed += 1
            desk.lost(plan.model.name, e.message)
            line.blank()
            if isinstance(e, EngineLost):
                for each in last_words(desk.deployments.log, plan.model.name):
                    tell(each)
                with suppress(FreeholdError):  # a file of an earlier server stays
                    await desk.deployments.stop(plan.model.name, 0.0)
            tell(f"error: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""))
            return
        line.blank()
        for each in ready(row, url, time.monotonic() - started):
            tell(each)

    async def _followed(self, desk: DeploymentDesk, name: str, line: StatusLine) -> DeploymentRow:
        while not (row := desk.row(name)).answers(first=not self._again):
            line.show(progress(row))
            await asyncio.sleep(LOOKED_S)
        return row
