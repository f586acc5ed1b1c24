"""OpenAI's routes as vLLM has them: priority, the tenant's part of the prefix cache, prompts and answers as ids.

Knows the wire alone; a plan does not need it.
Path: VllmServer.wire -> VllmWire -> EngineWire
"""

from __future__ import annotations

from typing import Any

from freehold.backends.engines.wire import EngineWire, TokenRoutes, salt
from freehold.serving import Job


class VllmWire(EngineWire):
    """OpenAI's routes as vLLM has them."""

    gives_ids = True
    takes_ids = True
    tokens = TokenRoutes()

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write the priority, of which the lower is scheduled first, and the tenant's own part of the prefix cache."""
        if job.priority == "batch":
            body["priority"] = 1
        if job.tenant:
            body["cache_salt"] = salt(job.tenant)
