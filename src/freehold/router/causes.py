"""Why an attempt failed, at a provider or an engine, and what is tried next.

Our own engines' errors get the causes of a provider's, so that a full queue or a lost engine falls over like a fault
of a provider. Knows errors and causes; knows no target.
Path: attempts.py -> cause_of -> RETRIED, CHARGED
"""

from __future__ import annotations

from freehold import errors
from freehold.errors import FreeholdError
from freehold.providers.contract import Cause, UpstreamFault

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
RETRIED: frozenset[Cause] = frozenset(
    {"server", "connect", "broken", "rate"}
)  # of the same target; others never
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


def wait_before_retry(error: FreeholdError, tries: int) -> float:
    """Return the seconds before the same target is asked again: those it asked for, or a growing pause."""
    requested_s = error.retry_after_s if isinstance(error, UpstreamFault) else None
    if isinstance(error, errors.Overloaded):
        requested_s = error.wait_s
    return requested_s if requested_s is not None else min(FIRST_WAIT_S * 2 ** (tries - 1), MOST_WAIT_S)
