"""A stored model in another engine, for one `freehold run`: started with it, and ended with it.

Knows plans and progress; which engine it is was chosen elsewhere.
Path: cli/chat/opened.py -> opened -> options.planned -> server.inside.DeployedLLM
"""

from __future__ import annotations

from freehold.backends.finding import EngineChoice
from freehold.backends.planning.options import DeployOptions, planned
from freehold.cli.deploying.tables import progress
from freehold.cli.progress import StatusLine
from freehold.config import Settings
from freehold.errors import EngineLost
from freehold.server.inside import DeployedLLM
from freehold.store import ModelRef


def opened(settings: Settings, ref: ModelRef, choice: EngineChoice, context: int | None) -> DeployedLLM:
    """Start another engine with a stored model. Raises EngineLost with the way back to ours."""
    options = DeployOptions(str(ref.path), ref.name, choice.engine, context=context or 0)
    plan = planned(settings, options, start=True)
    try:
        with StatusLine("the engine has ended") as line:
            return DeployedLLM(settings, options, plan, lambda row: line.show(progress(row)))
    except EngineLost as e:
        raise EngineLost(e.message, "--engine freehold computes on the processor") from e
