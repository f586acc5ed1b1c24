"""One gateway.toml as requests use it: its labels, its routes with their targets, and what any name stands for.

Made at start and at each reload; a request keeps the plan it began with. Knows names, and no model of the store.
Path: directory.py -> GatewayPlan.route -> PlannedRoute -> routing.py
"""

from __future__ import annotations

from freehold.providers.cleared import HOUSE
from freehold.router.detect.apart import LongTexts
from freehold.router.gateway import Gateway, GatewayModel, GatewayRoute, QualityTask
from freehold.router.labels import Asks, Labeller
from freehold.router.routing import PlannedRoute
from freehold.serving import ModelInfo


class GatewayPlan:
    """A Gateway with everything resolved that a request would otherwise look up."""

    def __init__(
        self, gateway: Gateway, asks: Asks | None = None, long_texts: LongTexts | None = None
    ) -> None:
        self.gateway, self.labeller = gateway, Labeller(gateway, asks, long_texts)
        self._routes = {name: self._planned(route) for name, route in gateway.routes.items()}
        for name, model in gateway.models.items():
            lone = PlannedRoute(GatewayRoute(name, (name,)), (model,), remote=model.remote is not None)
            self._routes.setdefault(name, lone)
        self.infos: dict[str, ModelInfo] = {}  # of routes without an engine: they do not change

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Every name of the file that a request may use, with the places where it may be answered; none: here."""
        planned = self._routes.items()
        return {name: () if route.places == (HOUSE,) else route.places for name, route in planned}

    def route(self, name: str) -> PlannedRoute | None:
        """Return what a name of the file stands for; None for a name that it does not have."""
        return self._routes.get(name) or self._routes.get(name.removesuffix(":latest"))

    def owned(self, name: str) -> PlannedRoute:
        """Return the route of a model of the store that the file does not name."""
        model = next((m for m in self.gateway.models.values() if m.local == name), None)
        return PlannedRoute(GatewayRoute(name, (name,)), (model or GatewayModel(name, local=name),))

    def target(self, name: str) -> GatewayModel:
        """Return a model of the file by its name."""
        return self.gateway.models[name]

    def _planned(self, route: GatewayRoute) -> PlannedRoute:
        targets = tuple(self.gateway.models[name] for name in route.targets)
        task: QualityTask | None = self.gateway.tasks.get(route.task)
        return PlannedRoute(route, targets, task, all(target.remote is not None for target in targets))
