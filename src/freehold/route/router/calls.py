"""One call of one target, owned or rented: the same Stream from either, and one set of causes where it fails.

A call for a place that the request may not be at is refused here, and in the hop again. Knows no route and no other
target.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from freehold.base import errors
from freehold.base.errors import FreeholdError, UnsupportedModel
from freehold.base.serving import Job, ModelDirectory, ModelInfo, Stream
from freehold.route.providers.contract import Cause, Cleared, Piece, UpstreamFault
from freehold.route.router.contract import RentedModels
from freehold.route.router.gateway import BreakerLimits, GatewayModel
from freehold.route.router.routing import Breakers, has_addresses, has_images, has_sounds


class TargetCalls:
    """Calls of our engines' models and of rented ones."""

    def __init__(self, engines: ModelDirectory, rented: RentedModels | None) -> None:
        self.engines, self.rented = engines, rented

    def rents(self) -> RentedModels:
        """Return the rented models, which a file with remote targets comes with."""
        assert self.rented is not None, "a remote target without a way to reach it"
        return self.rented

    async def start(
        self,
        target: GatewayModel,
        cleared: Cleared[Job],
        warnings: list[str],
        *,
        first_token_s: float,
        timeout_s: float,
        keep_alive: float | None = None,
    ) -> tuple[Stream, Piece]:
        """Return an answer and its first piece; `warnings` is appended to."""
        cleared.check(target.place)
        if target.remote is not None:
            rented = await self.rents().start(
                cleared, target.remote, first_token_s=first_token_s, timeout_s=timeout_s
            )
            return rented, await first_of(rented)
        try:
            async with asyncio.timeout(first_token_s):
                owned = await self._owned(target, cleared, warnings, timeout_s, keep_alive)
                return owned, await first_of(owned)
        except TimeoutError:
            raise UpstreamFault("timeout", f"{target.name} sent nothing for {first_token_s:.3g} s") from None

    async def _owned(
        self,
        target: GatewayModel,
        cleared: Cleared[Job],
        warnings: list[str],
        timeout_s: float,
        keep_alive: float | None,
    ) -> Stream:
        served = await self.engines.use(target.local, keep_alive)
        job = fitted(cleared.work, served.info, warnings)
        if has_images(job) and not served.info.can_see:
            raise UnsupportedModel(f"{target.local} sees no pictures")
        if has_sounds(job) and not served.info.can_listen:
            raise UnsupportedModel(f"{target.local} hears no sounds")
        if has_addresses(job):
            raise UnsupportedModel(f"{target.local} fetches no pictures from addresses")
        return await served.start(replace(job, timeout_s=timeout_s), keep_alive)


async def first_of(stream: Stream) -> Piece:
    """Return a stream's first piece; a stream without one is closed."""
    try:
        return await anext(stream)
    except StopAsyncIteration:
        await stream.aclose()
        raise UpstreamFault("broken", "the answer ended before its first token") from None
    except BaseException:
        await stream.aclose()
        raise


def fitted(job: Job, info: ModelInfo, warnings: list[str]) -> Job:
    """Return the job without the thinking that a model of a route does not know; a door knew none of them."""
    if info.thinking == "none" and (job.think is not None or job.effort or job.think_tokens is not None):
        if job.think is not False:
            warnings.append(f"thinking was left out: {info.name} does not think before it answers")
        return replace(job, think=None, think_tokens=None, effort=None)
    if job.think is False and info.thinking == "always":
        warnings.append(f"thinking could not be disabled: {info.name} always thinks before it answers")
        return replace(job, think=None)
    return job


# --- why an attempt failed, at a provider or an engine, and what is tried next ----------------------
# Our own engines' errors get the causes of a provider's, so that a full queue or a lost engine falls over
# like a fault of a provider.

# error of an engine -> cause; the first class that it is an instance of counts
_ENGINE: tuple[tuple[type[FreeholdError], Cause], ...] = (
    (errors.ContextOverflow, "context"),
    (errors.Overloaded, "rate"),
    (errors.DeadlineExceeded, "timeout"),
    (errors.UsageError, "request"),
    (errors.UnsupportedModel, "request"),
    (errors.BadPrompt, "request"),
    (errors.BadTemplate, "request"),
    (errors.UpstreamFailed, "broken"),
)
# The same target is asked again after these; after others never.
RETRIED: frozenset[Cause] = frozenset({"server", "connect", "broken", "rate"})
BREAKS_AT_ONCE: frozenset[Cause] = frozenset({"auth"})  # the next request would fail as well
SAYS_NOTHING: frozenset[Cause] = frozenset({"request", "context"})  # of a target's health
# The prompt was taken before these, so it may be charged though no answer came.
CHARGED: frozenset[Cause] = frozenset({"timeout", "broken", "invalid"})
# What a provider's wire, or the request's labels, raise before anything is sent to it.
NEVER_SENT = (errors.PolicyRefused, errors.UsageError, errors.UnsupportedModel)
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 2.0  # before the same target is asked again, where it names no time


def cause_of(error: FreeholdError) -> Cause:
    """Return the cause of any failure of an attempt; what has no other is the target's own: server."""
    if isinstance(error, UpstreamFault):
        return error.cause
    causes: list[Cause] = [cause for kind, cause in _ENGINE if isinstance(error, kind)]
    return causes[0] if causes else "server"


def judge(
    breakers: Breakers, target: GatewayModel, cause: Cause, limits: BreakerLimits, *, blameless: bool
) -> None:
    """Count a failed attempt in its target's health; `blameless`: it says nothing of the target, whatever its cause."""
    if blameless or cause in SAYS_NOTHING or (target.remote is None and cause == "rate"):
        breakers.dropped(target.name)
    else:
        breakers.failed(target.name, limits, at_once=cause in BREAKS_AT_ONCE)


def wait_before_retry(error: FreeholdError, tries: int) -> float:
    """Return the seconds before the same target is asked again: those it asked for, or a growing pause."""
    requested_s = error.retry_after_s if isinstance(error, UpstreamFault) else None
    if isinstance(error, errors.Overloaded):
        requested_s = error.wait_s
    return requested_s if requested_s is not None else min(FIRST_WAIT_S * 2 ** (tries - 1), MOST_WAIT_S)
