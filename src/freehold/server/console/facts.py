"""Routes of the pages that show facts. Knows handlers. Path: routes.console_routes -> fact_routes"""

from __future__ import annotations

from starlette.routing import Route

from freehold.server.console.choose import choose, models, starters
from freehold.server.console.live import live
from freehold.server.console.training import compared, training, trainings
from freehold.server.console.usage import usage
from freehold.server.core.call import route


def fact_routes() -> list[Route]:
    """Return the routes that the pages of models, engine, usage and runs ask."""
    return [
        route("GET", "/console/api/live", live, audience="any", answer=["text/event-stream"]),
        route("GET", "/console/api/models", models, audience="any", query=["held", "newest"]),
        route("GET", "/console/api/starters", starters, audience="any"),
        route(
            "GET",
            "/console/api/choose",
            choose,
            audience="any",
            query=["verb", "model", "name", "task", "on"],
        ),
        route("GET", "/console/api/usage", usage, audience="any", query=["days", "on"]),
        route("GET", "/console/api/training", trainings, audience="operator"),
        route("GET", "/console/api/training/compare", compared, audience="operator", query=["one", "other"]),
        route("GET", "/console/api/training/{id}", training, audience="operator"),
    ]
