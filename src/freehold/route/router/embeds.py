"""Embeddings and counts over a route: the same labels, reasons, money and row as an answer has.

Vectors of two models are not comparable, so a route embeds with its first target's model only, at whatever places
have it. A count comes from an engine, from a provider's own door, or is our estimate, and says so. Knows no stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from freehold.base.errors import BudgetSpent, FreeholdError
from freehold.base.prompts import PromptSize
from freehold.base.serving import EmbedJob, EstimatedCount, Job, Vectors
from freehold.base.types import Usage
from freehold.route.providers.contract import HOUSE, Cleared, UpstreamFault
from freehold.route.router.breaker import Breakers
from freehold.route.router.calls import (
    BREAKS_AT_ONCE,
    CHARGED,
    NEVER_SENT,
    SAYS_NOTHING,
    TargetCalls,
    cause_of,
    fitted,
)
from freehold.route.router.gateway import BreakerLimits, GatewayModel, GatewayRoute
from freehold.route.router.parts import GatewayParts
from freehold.route.router.record import RequestRecord
from freehold.route.router.routing import PassedOver, TargetChoice

Computed = Callable[[int], None]


def only_one_space(choice: TargetChoice) -> None:
    """Pass over the targets whose vectors are not those of the route's first target."""
    first = choice.order[0]
    for target in list(choice.allowed):
        if _weights(target) != _weights(first):
            choice.drop(
                target, PassedOver("ability", f"its vectors are not comparable with those of {first.name}")
            )


def _weights(target: GatewayModel) -> str:
    return target.local if target.remote is None else target.remote.model


def embed_cost(target: GatewayModel, size: PromptSize, when: float) -> int:
    """Return nano-dollars that embedding texts does not exceed."""
    return target.price.most(size.most, 0, when) if target.price is not None else 0


async def embedded(
    parts: GatewayParts,
    cleared: Cleared[EmbedJob],
    choice: TargetChoice,
    record: RequestRecord,
    route: GatewayRoute,
    size: PromptSize,
    *,
    keep_alive: float | None = None,
    computed: Computed | None = None,
) -> Vectors:
    """Return the vectors of the first target that answers, its row booked."""
    breakers, last = parts.breakers, None
    for target in list(choice.allowed):
        most, guess = embed_cost(target, size, record.at), parts.ratio(target).prompt_tokens(size)
        try:
            await record.reserve(most, target)
        except BudgetSpent as e:  # earlier targets may have charged for what did not arrive
            last = last or e
            choice.drop(target, PassedOver("budget", e.message))
            continue
        if target.price is not None:
            await record.leaves()
        alone = target is choice.allowed[-1]
        reason, wait_s = await breakers.turn(target.name, route.timeout_s if alone else 0.0)
        if reason:
            choice.drop(target, PassedOver("breaker", reason, wait_s))
            continue
        began = time.monotonic()
        breakers.begin(target.name)
        try:
            vectors = await _vectors(target, cleared, parts.calls, route.timeout_s, keep_alive, computed)
        except FreeholdError as e:
            last = e
            _failed(target, e, record, breakers, route.breaker, began, most, guess)
            if cause_of(e) in SAYS_NOTHING:
                raise
            continue
        except BaseException:
            breakers.dropped(target.name)
            record.attempted(
                target, "left", time.monotonic() - began, nano=_charged(target, record, most, guess)
            )
            raise
        breakers.answered(target.name)
        usage = Usage(sum(vectors.tokens), 0)
        record.attempted(target, "", time.monotonic() - began, nano=record.cost(target, usage))
        await record.book("whole", target, usage)
        return vectors
    raise last or choice.none_left()


async def _vectors(
    target: GatewayModel,
    cleared: Cleared[EmbedJob],
    calls: TargetCalls,
    timeout_s: float,
    keep_alive: float | None,
    computed: Computed | None,
) -> Vectors:
    if target.remote is None:
        served = await calls.engines.use(target.local, keep_alive)
        return await served.embed(cleared.work, keep_alive, computed)
    vectors = await calls.rents().embed(cleared, target.remote, timeout_s=timeout_s)
    if computed is not None:
        computed(sum(vectors.tokens))
    return vectors


def _failed(
    target: GatewayModel,
    e: FreeholdError,
    record: RequestRecord,
    breakers: Breakers,
    limits: BreakerLimits,
    began: float,
    most: int,
    guess: int,
) -> None:
    if target.remote is not None and isinstance(e, NEVER_SENT):
        breakers.dropped(target.name)
        return
    cause = cause_of(e)
    status = e.status if isinstance(e, UpstreamFault) else 0
    nano = _charged(target, record, most, guess) if cause in CHARGED else 0
    record.attempted(target, cause, time.monotonic() - began, status=status, nano=nano)
    if cause in SAYS_NOTHING:
        breakers.dropped(target.name)
    else:
        breakers.failed(target.name, limits, at_once=cause in BREAKS_AT_ONCE)


def _charged(target: GatewayModel, record: RequestRecord, most: int, guess: int) -> int:
    """Return what an attempt is noted with whose provider may have charged for it, though no count came."""
    if target.price is None:
        return 0
    nano = record.cost(target, Usage(guess, 0))
    record.estimated = True
    record.risked += max(most - nano, 0)
    return nano


async def counted(
    parts: GatewayParts,
    cleared: Cleared[Job],
    choice: TargetChoice,
    record: RequestRecord,
    timeout_s: float,
    size: PromptSize,
) -> int:
    """Return the tokens of a prompt for the route's first target: counted, or an EstimatedCount."""
    if not choice.allowed:
        raise choice.none_left()
    target = choice.allowed[0]
    if target.remote is None:
        cleared.check(HOUSE)
        served = await parts.calls.engines.use(target.local)
        return await served.count(fitted(cleared.work, served.info, []))
    await record.reserve(0, target)  # of no money: refused where no row could be written
    began = time.monotonic()
    try:
        count = await parts.calls.rents().count(cleared, target.remote, timeout_s=timeout_s)
    except asyncio.CancelledError:
        record.attempted(target, "left", time.monotonic() - began)
        await parts.background.shielded(record.book_quietly("left", target))
        raise
    except UpstreamFault as e:  # the prompt was sent: the ledger says so, though nothing is charged
        record.attempted(target, e.cause, time.monotonic() - began, status=e.status)
        await record.book("failed", target)
        if e.cause in SAYS_NOTHING:
            raise
        count = None
    if count is not None:
        record.attempted(target, "", time.monotonic() - began)
        await record.book("whole", target, Usage(count, 0))
        return count
    return EstimatedCount(parts.ratio(target).prompt_tokens(size))
