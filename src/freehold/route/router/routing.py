"""The targets of a route that may and can answer a request, and why each of the others may not or cannot.

A plain model name is a route of one target. Reasons are one line each: the ledger keeps them, explain shows them,
and a refusal lists them. `GatewayPlan` is one gateway.toml as requests use it: a request keeps the one it began with.
Knows what a request needs; asks no model and opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freehold.base.errors import ContextOverflow, FreeholdError, PolicyRefused, UnsupportedModel
from freehold.base.prompts import PromptSize
from freehold.base.serving import EmbedJob, Job, ModelInfo
from freehold.base.types import Image
from freehold.route.providers.contract import HOUSE, Abilities, Cleared, RemoteModel, UpstreamFault
from freehold.route.router.breaker import Breakers, TargetLoad
from freehold.route.router.contract import BarCheck
from freehold.route.router.detect.apart import LongTexts
from freehold.route.router.gateway import Gateway, GatewayModel, GatewayRoute, QualityTask, Spread
from freehold.route.router.labels import Asks, Labeller
from freehold.route.router.ledger.rows import Candidate

KEYLESS = "openai-compatible"  # the one kind of provider that may need no key


@dataclass(frozen=True, slots=True)
class PlannedRoute:
    """A route with its targets and its task found."""

    route: GatewayRoute
    targets: tuple[GatewayModel, ...]
    task: QualityTask | None = None
    remote: bool = False  # every target is a provider's: no local engine answers

    @property
    def name(self) -> str:
        return self.route.name

    @property
    def places(self) -> tuple[str, ...]:
        """Where its targets are, each place once."""
        return tuple(dict.fromkeys(target.place for target in self.targets))


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Why a target is passed over. `kind` decides which error the client gets when no target is left."""

    kind: str  # label, key, ability, licence, window, bar, breaker, budget
    reason: str
    wait_s: float = 0.0  # of a breaker


@dataclass(slots=True)
class TargetChoice:
    """The targets in the order in which they are asked, and every target with its reason."""

    route: str
    allowed: list[GatewayModel]
    passed_over: dict[str, PassedOver]
    order: tuple[GatewayModel, ...]
    spread: Spread = "in-order"

    def drop(self, target: GatewayModel, why: PassedOver) -> None:
        """Pass over a target after all; harmless for one that is passed over already."""
        self.allowed = [each for each in self.allowed if each is not target]
        self.passed_over[target.name] = why

    def candidates(self, tried: Sequence[str]) -> tuple[Candidate, ...]:
        """Return every target with its reason; `tried`: names of those that were sent the request."""
        return tuple(self._candidate(target.name, tried) for target in self.order)

    def _candidate(self, name: str, tried: Sequence[str]) -> Candidate:
        why = self.passed_over.get(name)
        if name in tried:
            first = "the least busy" if self.spread == "least-busy" else "first of the route that is allowed"
            return Candidate(name, True, first if name == tried[0] else "fallback")
        return Candidate(name, False, "not needed" if why is None else why.reason)

    def none_left(self) -> FreeholdError:
        """Return the error for a request that no target may answer."""
        listed = "; ".join(f"{name}: {why.reason}" for name, why in self.passed_over.items())
        kinds = {why.kind for why in self.passed_over.values()}
        message = f"no target of {self.route} can answer this request: {listed}"
        if "breaker" in kinds:
            waits = [why.wait_s for why in self.passed_over.values() if why.kind == "breaker"]
            return UpstreamFault("resting", message, "ask again then", retry_after_s=min(waits))
        if kinds == {"window"}:
            return ContextOverflow(message, "shorten the prompt")
        if kinds == {"ability"}:  # another model could do it
            return UnsupportedModel(message, "ask for it without that, or name another model")
        return PolicyRefused(message, "freehold route explain shows what each target lacks")


def choose(
    planned: PlannedRoute,
    cleared: Cleared[Job] | Cleared[EmbedJob],
    size: PromptSize,
    breakers: Breakers,
    bars: BarCheck | None = None,
    windows: Mapping[str, int] | None = None,
    load: TargetLoad | None = None,
) -> TargetChoice:
    """Return a route's targets for a request. `windows`: tokens that loaded local models have room for.

    `load`: by which a route spreads its requests; None: in the file's order.
    """
    allowed: list[GatewayModel] = []
    passed_over: dict[str, PassedOver] = {}
    for target in planned.targets:
        why = _why_not(target, planned, cleared, size, bars, windows or {})
        if why is None:
            reason, wait = breakers.why_not(target.name)
            why = PassedOver("breaker", reason, wait) if reason else None
        if why is None:
            allowed.append(target)
        else:
            passed_over[target.name] = why
    spread = planned.route.spread
    if spread == "least-busy" and load is not None:
        allowed = load.sorted(allowed)
    return TargetChoice(planned.name, allowed, passed_over, planned.targets, spread)


def _why_not(
    target: GatewayModel,
    planned: PlannedRoute,
    cleared: Cleared[Job] | Cleared[EmbedJob],
    size: PromptSize,
    bars: BarCheck | None,
    windows: Mapping[str, int],
) -> PassedOver | None:
    if target.place not in cleared.places:
        rule = f"label {', '.join(cleared.label_names)}" if cleared.label_names else "its route"
        return PassedOver("label", f"{rule} does not allow {target.place}")
    remote = target.remote
    if remote is not None and remote.provider.key is None and remote.provider.kind != KEYLESS:
        return PassedOver("key", f"{remote.provider.name} has no key")
    if remote is not None and (lack := lacking(remote, cleared.work)):
        return PassedOver("ability", lack)
    window = remote.context if remote is not None else windows.get(target.local, 0)
    if window and size.fewest > window:
        return PassedOver(
            "window", f"its window of {window:,} tokens is smaller than the prompt of {size.bytes:,} bytes"
        )
    if planned.route.may_teach and not target.may_teach:
        terms_say = "do not let" if target.may_teach is False else "are not known to let"
        return PassedOver("licence", f"its terms {terms_say} answers train a model")
    if planned.task is not None and bars is not None:
        passes, figures = bars.passes(planned.task, target)
        if not passes:
            return PassedOver("bar", figures)
    return None


def lacking(remote: RemoteModel, work: Job | EmbedJob) -> str:
    """Return what a request needs and a remote model cannot do; "" for nothing."""
    can = remote.abilities
    if isinstance(work, EmbedJob):
        if not can.embeddings:
            return "makes no embeddings"
        given_ids = any(not isinstance(text, str) for text in work.texts)
        return "takes no token ids" if given_ids else ""
    return _lacks(can, work)


def _lacks(can: Abilities, job: Job) -> str:
    """Return the first ability that a job needs; what a wire leaves out with a warning is not one."""
    needs = (
        (not can.images and has_images(job), "sees no pictures"),
        (not can.tools and bool(job.tools) and job.tool_choice != "none", "calls no tools"),
        (
            not can.json_schema and job.format is not None and job.format.kind == "json_schema",
            "follows no schema",
        ),
        (job.format is not None and job.format.kind in ("regex", "lark", "choice"), "follows no grammar"),
        (not can.logprobs and job.logprobs is not None, "reports no log-probabilities"),
        (not can.several and job.n > 1, "gives one answer a request"),
        (job.prompt_logprobs is not None, "scores no prompts"),
        (isinstance(job.prompt, tuple), "takes no token ids"),
        (bool(job.template), "takes no template"),
        (bool(job.adapter), "has no adapters"),
    )
    return next((words for lacks, words in needs if lacks), "")


def has_images(job: Job) -> bool:
    """Return whether any message has a picture."""
    return any(isinstance(part, Image) for message in job.messages or () for part in message.parts)


def has_addresses(job: Job) -> bool:
    """Return whether any message has the address of a picture, which only a provider may fetch."""
    parts = (part for message in job.messages or () for part in message.parts)
    return any(isinstance(part, Image) and part.url for part in parts)


# --- one gateway.toml as requests use it: labels, routes with their targets, what any name stands for
# Made at start and at each reload.


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
