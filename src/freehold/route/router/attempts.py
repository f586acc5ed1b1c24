"""Asks targets in their order until one's answer is good: nothing reaches the client before.

An answer is good when its first chunk has come; where a route escalates, when its first tokens are likely enough;
where the client does not stream, when it is whole. Failures before that go to the next target by their cause; the
caller's own faults go nowhere, and what the caller's own time limit cut says nothing of a target. Knows causes, times
and breakers; knows no wire.

`explain` says what a request would meet, without sending it: its labels, each target with a reason, and what it would
cost. It uses the same functions as a request (labels, routing, prices), with no engine started and no provider asked.
A classifier is not asked either: a label that needs one is taken as set, as it is when the classifier fails.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from freehold.base.errors import (
    BudgetSpent,
    EngineClosed,
    FreeholdError,
    PolicyRefused,
    UnsupportedModel,
    UsageError,
)
from freehold.base.prompts import PromptSize, prompt_size
from freehold.base.serving import Job, Origin, Stream, hears_alone
from freehold.base.types import Usage
from freehold.route.providers.contract import Cleared, Piece, SetLabel, UpstreamFault
from freehold.route.providers.signatures import SignatureWatch
from freehold.route.router.contract import BarCheck
from freehold.route.router.gateway import Escalation, GatewayModel, GatewayRoute, SpendLimit
from freehold.route.router.parts import (
    CHARGED,
    MOST_WAIT_S,
    RETRIED,
    GatewayParts,
    cause_of,
    judge,
    wait_before_retry,
)
from freehold.route.router.price import TokenRatio, letters_in, used_so_far
from freehold.route.router.record import RequestRecord
from freehold.route.router.routing import Breakers, GatewayPlan, PassedOver, TargetChoice, choose

CLOCK_S = 0.01  # by which a timer may be early
ANSWER_TOKENS = 8192  # most of an answer where neither the request nor the model's entry has a limit


@dataclass(slots=True)
class Started:
    """A good answer: its target, its stream, and the pieces that were read to see that it is good."""

    target: GatewayModel
    stream: Stream
    pieces: list[Piece]
    began: float  # time.monotonic() of its attempt
    watch: SignatureWatch | None = None  # of a rented model's answer


class Discarded(Exception):
    """A cascade threw an answer away: the next target is asked."""


class MostCosts:
    """`most_cost` of one request's targets, each computed once."""

    __slots__ = ("_costs", "_job", "_size", "_when")

    def __init__(self, job: Job, size: PromptSize, when: float) -> None:
        self._job, self._size, self._when = job, size, when
        self._costs: dict[str, int] = {}

    def __call__(self, target: GatewayModel) -> int:
        cost = self._costs.get(target.name)
        if cost is None:
            cost = self._costs[target.name] = most_cost(target, self._job, self._size, self._when)
        return cost


def most_cost(target: GatewayModel, job: Job, size: PromptSize, when: float) -> int:
    """Return nano-dollars that an answer of a target does not exceed."""
    if target.price is None:
        return 0
    limit = job.max_tokens
    if limit is None:
        limit = (target.remote.max_output if target.remote is not None else 0) or ANSWER_TOKENS
    model = target.remote.model if target.remote is not None else ""
    return target.price.most(size.most_of(model), limit * job.n, when)


class Attempts:
    """The attempts of one request. `size`: of its prompt."""

    def __init__(
        self,
        parts: GatewayParts,
        record: RequestRecord,
        choice: TargetChoice,
        route: GatewayRoute,
        size: PromptSize,
        most: MostCosts,
    ) -> None:
        self._parts, self._breakers, self._calls = parts, parts.breakers, parts.calls
        self._record, self._choice, self._route = record, choice, route
        self._size, self._most = size, most
        self._until = record.started + route.timeout_s
        self._limit_s = route.timeout_s
        self._callers_limit = False  # the request's own time ends before the route's
        self._keep_alive: float | None = None
        self._errors: dict[str, FreeholdError] = {}
        # The attempt in progress, from its first piece on.
        self._coming: tuple[Stream, list[Piece]] | None = None

    async def first_good(self, cleared: Cleared[Job], keep_alive: float | None = None) -> Started:
        """Return the first good answer. Raises the request's own fault, or what every target failed with."""
        job = cleared.work
        self._keep_alive = keep_alive
        if job.timeout_s is not None and job.timeout_s < self._limit_s:
            self._limit_s, self._callers_limit = job.timeout_s, True
            self._until = self._record.started + job.timeout_s
        waiting, thrown = list(self._choice.allowed), None
        while waiting:
            target = waiting.pop(0)
            if not await self._may_ask(target, alone=not waiting):
                continue
            try:
                return await self._attempt(target, cleared, more=waiting, check=thrown is not target)
            except Discarded:
                thrown = target
                # Asked again, and sent as it is, only where every target after it fails.
                waiting.append(target)
            except FreeholdError as e:
                self._note(target, e)
                if cause_of(e) == "context":
                    waiting = [each for each in waiting if self._is_larger(each, target)]
        raise self._failure()

    async def _may_ask(self, target: GatewayModel, *, alone: bool) -> bool:
        """Set the target's money aside, unless its breaker opened or the budget is spent since it was chosen.

        `alone`: no other target is left, so that the outcome of a request which tries this one is waited for.
        """
        if self._passes_over(target, *self._breakers.why_not(target.name)):
            return False
        try:
            await self._record.reserve(self._most(target), target)
            if target.price is not None:
                await self._record.leaves()
        except BudgetSpent as e:
            self._choice.drop(target, PassedOver("budget", e.message))
            self._errors[target.name] = e
            return False
        turn = await self._breakers.turn(target.name, max(self._left, 0.0) if alone else 0.0)
        return not self._passes_over(target, *turn)

    def _passes_over(self, target: GatewayModel, reason: str, wait_s: float) -> bool:
        """Pass the target over if its breaker has a reason; return whether it has."""
        if reason:
            self._choice.drop(target, PassedOver("breaker", reason, wait_s))
        return bool(reason)

    def _note(self, target: GatewayModel, e: FreeholdError) -> None:
        """Remember a failure; raise it where no other target could do better."""
        if isinstance(e, PolicyRefused) or (cause_of(e) == "request" and not self._wire_refused(target, e)):
            raise e
        self._errors[target.name] = e

    def _wire_refused(self, target: GatewayModel, e: FreeholdError) -> bool:
        """Return whether a target cannot carry the request, and was never sent it."""
        return isinstance(e, UnsupportedModel) or (target.remote is not None and isinstance(e, UsageError))

    def _is_larger(self, other: GatewayModel, target: GatewayModel) -> bool:
        theirs = self._window(other)
        return not theirs or theirs > self._window(target)

    def _window(self, target: GatewayModel) -> int:
        if target.remote is not None:
            return target.remote.context
        loaded = {each.name: each.info.context for each in self._calls.engines.loaded()}
        return loaded.get(target.local, 0)

    async def _attempt(
        self, target: GatewayModel, cleared: Cleared[Job], *, more: list[GatewayModel], check: bool
    ) -> Started:
        """Ask one target, again where the cause allows it and its time does."""
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(target, cleared, check=check and bool(more), alone=not more)
            except FreeholdError as e:
                wait = wait_before_retry(e, tries)
                if cause_of(e) not in RETRIED or tries > self._route.retries or wait >= self._left:
                    raise
                if wait > MOST_WAIT_S and more:
                    raise  # another target is sooner
            await asyncio.sleep(wait)
            await self._record.reserve(self._most(target), target)

    @property
    def _left(self) -> float:
        return self._until - time.monotonic()

    async def _once(
        self, target: GatewayModel, cleared: Cleared[Job], *, check: bool, alone: bool
    ) -> Started:
        began = time.monotonic()
        left = self._until - began
        if left <= 0:
            raise UpstreamFault("timeout", f"{self._limit_s:g} s passed before a target answered")
        self._breakers.begin(target.name)
        self._parts.load.begin(target)
        self._coming, good = None, False
        try:
            started = await self._good(target, cleared, began, left, check=check, alone=alone)
            self._breakers.good(target.name)
            good = True  # RoutedStream counts it off
            return started
        except Discarded:
            raise
        except FreeholdError as e:
            self._failed(target, e, began)
            raise
        except BaseException:  # the client left, or the server stops
            self._breakers.dropped(target.name)
            self._record.attempted(target, "left", time.monotonic() - began, nano=self._cost_so_far(target))
            raise
        finally:
            if not good:
                self._parts.load.end(target)

    async def _good(
        self,
        target: GatewayModel,
        cleared: Cleared[Job],
        began: float,
        left: float,
        *,
        check: bool,
        alone: bool,
    ) -> Started:
        """Return an answer once it is good. Raises FreeholdError or Discarded.

        `alone`: no other target is left, so that a silent one need not be found out by its first token.
        """
        limit = min(self._route.first_token_s, left)
        escalate = self._route.escalate
        looks = check and escalate is not None and can_look(target, cleared.work)
        if looks and cleared.work.logprobs is None:
            cleared = cleared.with_work(replace(cleared.work, logprobs=0))
        whole = cleared.work.whole and not alone
        if whole:  # a stream, so that silence shows early
            cleared = cleared.with_work(replace(cleared.work, whole=False))
        cleared = self._parts.signatures.restored(cleared, target.remote)
        watch = None if target.remote is None else self._parts.signatures.watch(cleared, target.remote)
        stream, first = await self._calls.start(
            target,
            cleared,
            self._record.warnings,
            first_token_s=limit,
            timeout_s=left,
            keep_alive=self._keep_alive,
        )
        pieces = [first]
        self._coming = stream, pieces
        try:
            if looks and escalate is not None:
                await self._look(target, stream, pieces, escalate)
            if whole:
                await _rest(target, stream, pieces, cleared.work.n)
        except BaseException:
            await stream.aclose()
            raise
        return Started(target, stream, pieces, began, watch)

    async def _look(
        self, target: GatewayModel, stream: Stream, pieces: list[Piece], escalate: Escalation
    ) -> None:
        """Read an answer's first tokens. Raises Discarded where they are not likely enough."""
        try:
            async with asyncio.timeout(self._left):
                looked = await look(stream, pieces, escalate)
        except TimeoutError:
            raise UpstreamFault("timeout", f"{target.name} took more than {self._limit_s:g} s") from None
        except StopAsyncIteration:
            raise UpstreamFault("broken", f"{target.name} ended its answer before its end") from None
        if looked.escalates(escalate):
            await self._discard(target, stream, looked.tokens, looked.probability or 0.0)
            raise Discarded

    async def _discard(self, target: GatewayModel, stream: Stream, tokens: int, probability: float) -> None:
        """End an answer that is not good enough, with a row of its own."""
        prompt = len(stream.begin.prompt_ids) or self._parts.ratio(target).prompt_tokens(self._size)
        await stream.aclose()
        self._breakers.answered(target.name)
        usage = Usage(prompt, tokens)
        nano = self._record.cost(target, usage)
        await self._record.book_beside(self._record.beside("discarded", target, usage, nano))
        below = self._route.escalate.below if self._route.escalate else 0.0
        reason = f"its first {tokens} tokens have a mean probability of {probability:.3f}, below {below:g}"
        self._record.warnings.append(f"{target.name} was skipped: {reason}")
        self._record.attempted(target, "discarded", self._record.passed_s)

    def _failed(self, target: GatewayModel, e: FreeholdError, began: float) -> None:
        """Note an attempt that failed, in the record and in the target's health."""
        if isinstance(e, PolicyRefused) or self._wire_refused(target, e):
            self._breakers.dropped(target.name)
            if not isinstance(e, PolicyRefused):
                self._choice.drop(target, PassedOver("ability", e.message))
            return
        cause = cause_of(e)
        status = e.status if isinstance(e, UpstreamFault) else 0
        charged = cause in CHARGED
        nano = self._cost_so_far(target, e) if charged else 0
        if charged:  # the answer may have been made whole, and not have arrived
            self._record.risked += max(self._most(target) - nano, 0)
        self._record.attempted(target, cause, time.monotonic() - began, status=status, nano=nano)
        self._record.warnings.append(f"{target.name} was skipped: {cause}")
        cut = cause == "timeout" and self._callers_limit and self._left <= CLOCK_S
        judge(self._breakers, target, cause, self._route.breaker, blameless=cut)

    def _cost_so_far(self, target: GatewayModel, e: FreeholdError | None = None) -> int:
        """Return what an attempt costs that gave no answer: its prompt, and what came, as counted or estimated."""
        if target.price is None:
            return 0
        self._record.estimated = True
        ratio = self._parts.ratio(target)
        if self._coming is not None:
            stream, pieces = self._coming
            length = sum(letters_in(chunk) for _, chunk in pieces)
            tokens = sum(len(chunk.token_ids) for _, chunk in pieces)
            return self._record.cost(target, used_so_far(stream, ratio, self._size, length, tokens))
        reported = e.reported if isinstance(e, UpstreamFault) else None
        return self._record.cost(target, reported or Usage(ratio.prompt_tokens(self._size), 0))

    def _failure(self) -> FreeholdError:
        errors = self._errors
        if not errors:
            return self._choice.none_left()
        if len(errors) == 1 or all(cause_of(e) == "context" for e in errors.values()):
            return [*errors.values()][-1]
        return _together(self._route.name, errors)


async def _rest(target: GatewayModel, stream: Stream, pieces: list[Piece], answers: int) -> None:
    """Read the rest of an answer that the client gets in one piece: it has seen nothing, so another may answer."""
    left = answers - sum(chunk.finish_reason is not None for _, chunk in pieces)
    try:
        while left:
            pieces.append(await anext(stream))
            left -= pieces[-1][1].finish_reason is not None
    except StopAsyncIteration:
        raise UpstreamFault("broken", f"{target.name} ended its answer before its end") from None
    if any(chunk.finish_reason == "cancelled" for _, chunk in pieces):
        raise UpstreamFault("broken", f"{target.name} cancelled the answer")


def _together(route: str, errors: dict[str, FreeholdError]) -> FreeholdError:
    """Return one error for the failures of several targets, with the shortest time after which one may answer."""
    listed = "; ".join(f"{name}: {e.message}" for name, e in errors.items())
    faults = [e for e in errors.values() if not isinstance(e, BudgetSpent)]
    if not faults:
        return [*errors.values()][-1]
    last = faults[-1]
    waits = [e.retry_after_s for e in faults if isinstance(e, UpstreamFault) and e.retry_after_s is not None]
    status = last.status if isinstance(last, UpstreamFault) else 0
    return UpstreamFault(
        cause_of(last),
        f"no target of {route} answered: {listed}",
        last.hint,
        status=status,
        retry_after_s=min(waits, default=None),
    )


# --- a cascade: whether an owned model's first tokens are likely enough, or the next target is asked -
# The mean of the log-probabilities of at most `check` tokens, as a probability, against `below`. Tokens of
# thinking and of tool calls count: they are the answer's too.


@dataclass(frozen=True, slots=True)
class Looked:
    """What an answer's first pieces say. `probability` None: it had no log-probabilities."""

    probability: float | None
    tokens: int

    def escalates(self, limit: Escalation) -> bool:
        """Return whether the answer is to be thrown away."""
        return self.probability is not None and self.probability < limit.below


def can_look(target: GatewayModel, job: Job) -> bool:
    """Return whether a cascade can look at a target's answer: an owned one that reports log-probabilities."""
    if not target.owned or job.n != 1:
        return False
    return target.remote is None or target.remote.abilities.logprobs


async def look(stream: Stream, pieces: list[Piece], limit: Escalation) -> Looked:
    """Read an answer until `check` tokens have come, or all of it. Raises what the stream raises.

    `pieces`: its first; those that are read are appended.
    """
    total, tokens = 0.0, 0
    while True:
        chunk = pieces[-1][1]
        total += sum(each.logprob for each in chunk.logprobs)
        tokens += len(chunk.logprobs)
        if chunk.finish_reason == "cancelled":
            raise EngineClosed("the answer was cancelled before its end", "try again")
        if tokens >= limit.check or chunk.finish_reason is not None:
            return Looked(math.exp(total / tokens) if tokens else None, tokens)
        pieces.append(await anext(stream))


# --- what a request would meet ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExplainedTarget:
    """A target and what would become of it. Costs in nano-dollars."""

    name: str
    place: str
    owned: bool
    verdict: str  # chosen, fallback, skipped
    reason: str
    likely: int  # for the guessed prompt and an answer of max_tokens
    most: int  # what a budget would reserve for it


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a request would meet on a route."""

    route: str
    labels: tuple[SetLabel, ...]
    places: frozenset[str]
    prompt_tokens: int  # guessed
    max_tokens: int
    targets: tuple[ExplainedTarget, ...]
    refused: str  # why no target would answer; "" where one would
    budget: SpendLimit | None  # of the key
    seconds: float = 0.0  # of a recording, which has no prompt and no answer tokens to guess

    @property
    def reserved(self) -> int:
        """Nano-dollars that the key's budget would set aside: the dearest target that can be reached."""
        return max((t.most for t in self.targets if t.verdict != "skipped"), default=0)


async def explain(
    plan: GatewayPlan, name: str, job: Job, origin: Origin, *, bars: BarCheck | None = None, when: float = 0.0
) -> Explanation:
    """Return what would become of a job.

    Raises UsageError for a label that does not exist, UnsupportedModel for a route that takes recordings.
    """
    planned = plan.route(name) or plan.owned(name)
    if planned.route.hears:
        raise hears_alone(name)
    cleared = await plan.labeller.clear(job, origin, planned.route)
    size = prompt_size(job)
    choice = choose(planned, cleared, size, Breakers(), bars)
    plain = Explanation(
        planned.name,
        cleared.labels,
        cleared.places,
        TokenRatio().prompt_tokens(size),
        job.max_tokens or ANSWER_TOKENS,
        (),
        "",
        None,
    )
    costs = {t.name: (_likely(t, job, size, when), most_cost(t, job, size, when)) for t in choice.order}
    return explained(plain, plan, choice, origin, costs)


def explained(
    plain: Explanation,
    plan: GatewayPlan,
    choice: TargetChoice,
    origin: Origin,
    costs: Mapping[str, tuple[int, int]],
) -> Explanation:
    """Return an explanation with its targets and budget; `costs`: the likely and the largest cost of each target."""
    allowed = [target.name for target in choice.allowed]
    policy = plan.gateway.keys.get(origin.key)

    def each(target: GatewayModel) -> ExplainedTarget:
        passed = choice.passed_over.get(target.name)
        verdict = "skipped" if passed is not None else "chosen" if target.name == allowed[0] else "fallback"
        reason = passed.reason if passed is not None else _why(target)
        return ExplainedTarget(target.name, target.place, target.owned, verdict, reason, *costs[target.name])

    return replace(
        plain,
        targets=tuple(each(target) for target in choice.order),
        refused="" if allowed else choice.none_left().message,
        budget=policy.budget if policy is not None else None,
    )


def _why(target: GatewayModel) -> str:
    remote = target.remote
    if remote is None:
        return "on this machine"
    return f"{remote.model} at {remote.provider.name}{', owned' if target.owned else ''}"


def _likely(target: GatewayModel, job: Job, size: PromptSize, when: float) -> int:
    if target.price is None:
        return 0
    usage = Usage(TokenRatio().prompt_tokens(size), (job.max_tokens or ANSWER_TOKENS) * job.n)
    return target.price.cost(usage, when)
