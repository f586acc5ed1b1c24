"""The targets of a route that may and can answer a request, and why each of the others may not or cannot.

A plain model name is a route of one target. Reasons are one line each: the ledger keeps them, explain shows them,
and a refusal lists them. `GatewayPlan` is one gateway.toml as requests use it: a request keeps the one it began with.
Knows what a request needs; asks no model and opens nothing.

And how targets are: which are left alone for a while, as they failed several times in a row, and which are busy. After
the cooldown one request tries such a target, and its first token decides for all: those that come meanwhile wait for
it, where they have no other target. One process's own: two servers learn of a fault separately.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from freehold.base.errors import ContextOverflow, FreeholdError, PolicyRefused, UnsupportedModel
from freehold.base.prompts import PromptSize
from freehold.base.serving import EmbedJob, Job, ModelInfo
from freehold.base.types import Audio, Image, SamplingParams
from freehold.route.providers.contract import HOUSE, Abilities, Cleared, RemoteModel, UpstreamFault
from freehold.route.router.contract import BarCheck
from freehold.route.router.detect.apart import LongTexts
from freehold.route.router.gateway import (
    BreakerLimits,
    Gateway,
    GatewayModel,
    GatewayRoute,
    QualityTask,
    Spread,
)
from freehold.route.router.labels import Asks, Labeller
from freehold.route.router.ledger.rows import Candidate

# --- how targets are -------------------------------------------------------------------------------


@dataclass(slots=True)
class TargetHealth:
    """What is known of one target."""

    failures: int = 0  # in a row
    until: float = 0.0  # it is left alone until then; 0: it is not
    trying: asyncio.Event | None = None  # one request tries it after its cooldown; set once that is decided

    def decided(self) -> None:
        """Let those that wait for the request which tries the target look again."""
        if self.trying is not None:
            self.trying.set()
            self.trying = None


class Breakers:
    """The health of every target, by name; it outlives a reload of the file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._targets: dict[str, TargetHealth] = {}
        self._clock = clock

    def why_not(self, target: str) -> tuple[str, float]:
        """Return why a target is left alone, and for how many seconds; "" where it is not."""
        health = self._targets.get(target)
        if health is None or not health.until:
            return "", 0.0
        left = health.until - self._clock()
        if left > 0:
            return f"failed {health.failures} times in a row; the next attempt is in {left:.0f} s", left
        return "", 0.0

    async def turn(self, target: str, wait_s: float) -> tuple[str, float]:
        """Return why a target is left alone, as `why_not` does, once no other request tries it.

        Waits `wait_s` at most. The caller begins at once: a request between would try the target as well.
        """
        until = asyncio.get_running_loop().time() + wait_s
        while (health := self._targets.get(target)) is not None and (tried := health.trying) is not None:
            try:
                async with asyncio.timeout_at(until):
                    await tried.wait()
            except TimeoutError:
                return f"failed {health.failures} times in a row; one request is trying it now", 1.0
        return self.why_not(target)

    def begin(self, target: str) -> None:
        """Note that a request asks the target: the one that tries it, if its cooldown has passed."""
        health = self._targets.get(target)
        if health is not None and health.until and health.trying is None:
            health.trying = asyncio.Event()

    def failed(self, target: str, limits: BreakerLimits, *, at_once: bool = False) -> None:
        """Count a failure; `at_once`: the next request would fail too, whatever the count."""
        health = self._targets.setdefault(target, TargetHealth())
        health.failures += 1
        if at_once or health.trying is not None or health.failures >= limits.failures:
            health.until = self._clock() + limits.cooldown_s
        health.decided()

    def good(self, target: str) -> None:
        """Note that the request which tries a target has a good answer: others may ask it, too."""
        health = self._targets.get(target)
        if health is not None:
            health.until = 0.0
            health.decided()

    def answered(self, target: str) -> None:
        """Forget the failures of a target whose answer is whole."""
        health = self._targets.pop(target, None)
        if health is not None:
            health.decided()

    def dropped(self, target: str) -> None:
        """Note an attempt that says nothing of the target, such as one whose client left."""
        health = self._targets.get(target)
        if health is not None:
            health.decided()


# --- how busy targets are, as this server sees it ----------------------------------------------------


class TargetLoad:
    """Requests in progress by target, and when each was chosen last; it outlives a reload of the file."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()
        self._chosen: dict[str, int] = {}
        self._turns = count(1)

    def sorted(self, targets: Sequence[GatewayModel]) -> list[GatewayModel]:
        """Return targets with the least busy first, of several the one chosen longest ago; it counts as chosen now.

        So requests that arrive at once take turns before any of them has begun.
        """
        by_load = sorted(targets, key=lambda t: (self._running[t.name], self._chosen.get(t.name, 0)))
        if by_load:
            self._chosen[by_load[0].name] = next(self._turns)
        return by_load

    def begin(self, target: GatewayModel) -> None:
        """Count a request that is sent to a target."""
        self._running[target.name] += 1

    def end(self, target: GatewayModel) -> None:
        """Count off a request whose answer has ended or failed."""
        self._running[target.name] -= 1

    def running(self, name: str) -> int:
        """Return the requests in progress of a target."""
        return self._running[name]


# --- the targets of a request ----------------------------------------------------------------------

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
            return UpstreamFault("resting", message, "try again then", retry_after_s=min(waits))
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
    return choose_by(
        planned,
        lambda target: _why_not(target, planned, cleared, size, bars, windows or {}),
        breakers,
        load,
    )


def choose_by(
    planned: PlannedRoute,
    why_not: Callable[[GatewayModel], PassedOver | None],
    breakers: Breakers,
    load: TargetLoad | None,
) -> TargetChoice:
    """Return a route's targets for which `why_not` has no reason and whose breaker is closed."""
    allowed: list[GatewayModel] = []
    passed_over: dict[str, PassedOver] = {}
    for target in planned.targets:
        why = why_not(target)
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
    if (why := closed(target, cleared)) is not None:
        return why
    remote = target.remote
    if remote is not None and (lack := lacking(remote, cleared.work)):
        return PassedOver("ability", lack)
    window = remote.context if remote is not None else windows.get(target.local, 0)
    if window and size.fewest > window:
        return PassedOver(
            "window", f"its window of {window:,} tokens is smaller than the prompt of {size.bytes:,} bytes"
        )
    if (why := unlicensed(target, planned)) is not None:
        return why
    if planned.task is not None and bars is not None:
        passes, figures = bars.passes(planned.task, target)
        if not passes:
            return PassedOver("bar", figures)
    return None


def closed(target: GatewayModel, cleared: Cleared[Any]) -> PassedOver | None:
    """Return why no request may go to a target: its place, or a key that is missing."""
    if target.place not in cleared.places:
        rule = f"label {', '.join(cleared.label_names)}" if cleared.label_names else "its route"
        return PassedOver("label", f"{rule} does not allow {target.place}")
    remote = target.remote
    if remote is not None and remote.provider.key is None and remote.provider.kind != KEYLESS:
        return PassedOver("key", f"{remote.provider.name} has no key")
    return None


def unlicensed(target: GatewayModel, planned: PlannedRoute) -> PassedOver | None:
    """Return why a target's answers may not train a model, where the route wants such answers."""
    if not planned.route.may_teach or target.may_teach:
        return None
    terms_say = "do not let" if target.may_teach is False else "are not known to let"
    return PassedOver("licence", f"its terms {terms_say} answers train a model")


def lacking(remote: RemoteModel, work: Job | EmbedJob) -> str:
    """Return what a request needs and a remote model cannot do; "" for nothing."""
    can = remote.abilities
    if can.transcription:
        return "only transcribes recordings"
    if isinstance(work, EmbedJob):
        if not can.embeddings:
            return "has no embeddings"
        given_ids = any(not isinstance(text, str) for text in work.texts)
        return "does not accept token ids" if given_ids else ""
    return _lacks(can, work)


def _lacks(can: Abilities, job: Job) -> str:
    """Return the first ability that a job needs; what a wire leaves out with a warning is not one."""
    needs = (
        (not can.images and has_images(job), "cannot read pictures"),
        (has_sounds(job), "cannot receive audio"),
        (not can.tools and bool(job.tools) and job.tool_choice != "none", "does not support tools"),
        (
            not can.json_schema and job.format is not None and job.format.kind == "json_schema",
            "does not support JSON schemas",
        ),
        (
            job.format is not None and job.format.kind in ("regex", "lark", "choice"),
            "does not support grammars",
        ),
        (not can.logprobs and job.logprobs is not None, "returns no log-probabilities"),
        (not can.several and job.n > 1, "returns one answer per request"),
        (job.prompt_logprobs is not None, "does not score prompts"),
        (isinstance(job.prompt, tuple), "does not accept token ids"),
        (bool(job.template), "does not accept a template"),
        (bool(job.adapter), "has no adapters"),
    )
    return next((words for lacks, words in needs if lacks), "")


def has_images(job: Job) -> bool:
    """Return whether any message has a picture."""
    return any(isinstance(part, Image) for message in job.messages or () for part in message.parts)


def has_sounds(job: Job) -> bool:
    """Return whether any message has a sound, which no provider is sent."""
    return any(isinstance(part, Audio) for message in job.messages or () for part in message.parts)


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


UNKNOWN_CONTEXT = 131_072  # shown for a rented model without a stated window; never compared with a prompt


def info_of(planned: PlannedRoute, loaded: Mapping[str, ModelInfo]) -> ModelInfo:
    """Return what a route offers: whatever any of its targets can do, as a request goes to one that can."""
    locals_ = [loaded[t.local] for t in planned.targets if t.remote is None and t.local in loaded]
    remotes = [t.remote for t in planned.targets if t.remote is not None]
    unloaded = any(t.remote is None and t.local not in loaded for t in planned.targets)
    context = max([*(info.context for info in locals_), *(remote.context for remote in remotes)], default=0)
    thinks = (
        unloaded or any(r.abilities.thinking for r in remotes) or any(i.thinking != "none" for i in locals_)
    )
    return ModelInfo(
        name=planned.name,
        quantization="",
        context=context or UNKNOWN_CONTEXT,
        trained_context=context or UNKNOWN_CONTEXT,
        kv_tokens=0,
        threads=0,
        load_s=0.0,
        memory_bytes=0,
        vocab=0,
        can_chat=True,
        can_fill=unloaded or any(info.can_fill for info in locals_),
        default_sampling=SamplingParams(),
        can_see=unloaded or any(r.abilities.images for r in remotes) or any(i.can_see for i in locals_),
        can_listen=unloaded or any(i.can_listen for i in locals_),
        can_hear=planned.route.hears or (bool(remotes) and all(r.abilities.transcription for r in remotes)),
        can_fetch=any(r.abilities.images for r in remotes),
        can_call=True,
        thinking="switch" if thinks else "none",
        efforts=("low", "medium", "high") if thinks else (),
        notes=("a route: its targets answer",) if len(planned.targets) > 1 else (),
    )
