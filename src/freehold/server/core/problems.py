"""Turns every failure into a status, a message and headers, without what clients must not see.

Knows the error tree, HTTP, and OpenAI's error format, the default where a protocol has none of its own; knows no
route. A failure with no name here is a 500 that says nothing but its
request id: paths, addresses and prompts stay in the log.
Path: a handler raises -> gate.Gate or sse.EventStream -> problem -> Wording -> bytes
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from freehold import errors
from freehold.errors import BudgetSpent, FreeholdError, Overloaded, UpstreamFailed
from freehold.server.core.hints import hint_for
from freehold.server.core.upstreams import faulted

INVALID, SERVER = "invalid_request_error", "server_error"

# class -> (status, type, code). The first class that an error is an instance of counts.
STATUS: dict[type[FreeholdError], tuple[int, str, str]] = {
    errors.ContextOverflow: (400, INVALID, "context_length_exceeded"),
    errors.ChatNotFound: (404, "not_found_error", "no_chat"),
    errors.UsageError: (400, INVALID, "invalid_value"),
    errors.BadPrompt: (400, INVALID, "invalid_prompt"),
    errors.BadTemplate: (400, INVALID, "template_refused"),
    errors.UnsupportedModel: (400, INVALID, "unsupported_model"),
    errors.BudgetSpent: (402, "insufficient_quota", "insufficient_quota"),
    errors.AccessDenied: (403, "permission_error", "access_denied"),
    errors.PolicyRefused: (403, "permission_error", "policy_refused"),
    errors.ModelNotFound: (404, "not_found_error", "model_not_found"),
    errors.SlowReader: (408, "timeout_error", "slow_reader"),
    errors.Overloaded: (429, "rate_limit_error", "overloaded"),
    errors.NonFiniteLogits: (500, SERVER, "non_finite_logits"),
    errors.StepFailed: (500, SERVER, "step_failed"),
    errors.BadModelFile: (500, SERVER, "bad_model_file"),
    errors.DamagedPack: (503, SERVER, "damaged_pack"),
    errors.FileVanished: (503, SERVER, "file_vanished"),
    errors.StoreError: (500, SERVER, "store_error"),
    errors.EngineLost: (502, SERVER, "engine_lost"),
    errors.CapacityExceeded: (503, SERVER, "capacity_exceeded"),
    errors.DownloadFailed: (503, SERVER, "download_failed"),
    errors.LedgerUnavailable: (503, SERVER, "ledger_unavailable"),
    errors.Offline: (503, SERVER, "offline"),
    errors.EngineClosed: (503, SERVER, "stopping"),
    errors.DeadlineExceeded: (504, "timeout_error", "deadline_exceeded"),
    FreeholdError: (500, SERVER, "internal_error"),
}
# A retry at once fails again; OpenAI's clients obey this header, and would retry twice without it.
_HOPELESS = (
    *("capacity_exceeded", "deadline_exceeded", "engine_lost", "bad_model_file", "non_finite_logits"),
    *("insufficient_quota", "policy_refused", "file_vanished"),
)
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?!v1/|api/)(?:[^\s/\\'\"`]+[/\\])+")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN = 1000  # characters of a message; a value in it may be as long as the request


class Refused(Exception):
    """A request that is refused before it reaches a model."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure for the client, before a protocol formats it."""

    status: int
    message: str
    kind: str  # OpenAI's `type`
    param: str | None = None
    code: str | None = None
    extra: dict[str, object] = field(default_factory=dict)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    request_id: str = ""


Wording = Callable[[Problem], bytes]  # a protocol's error body, as JSON


def problem(e: BaseException, *, owner: bool = False) -> Problem:
    """Describe `e`; to the owner with hints for the command line."""
    if isinstance(e, Refused):
        kind = SERVER if e.status >= 500 else _KINDS.get(e.status, INVALID)
        return Problem(e.status, _cut(e.message), kind, e.param, e.code, headers=list(e.headers))
    if isinstance(e, FreeholdError):
        return _named(e, hint_for(e, owner=owner))
    if isinstance(e, OSError) and e.errno in _FULL:
        message = "the server's disk is full; ask again when its owner has made room"
        return Problem(507, message, SERVER, code="disk_full")
    if isinstance(e, OSError) and e.errno == errno.EFBIG:  # of this process (ulimit -f), or of the disk
        message = "the server's system lets no file become that long; send less, or ask its owner"
        return Problem(507, message, SERVER, code="disk_full")
    return Problem(500, "the server failed at this request; its log says why", SERVER, code="internal_error")


def forget_frames(e: BaseException) -> None:
    """Drop the frames that an exception and those behind it came through.

    Objects in them often hold the exception, as a stream holds the one that it failed with: such a circle would keep
    the request's body until the garbage collector finds it.
    """
    waiting: list[BaseException] = [e]
    while waiting:
        each = waiting.pop()
        waiting += [behind for behind in (each.__cause__, each.__context__) if behind is not None]
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        each.__traceback__ = each.__cause__ = each.__context__ = None


def _named(e: FreeholdError, hint: str) -> Problem:
    if isinstance(e, UpstreamFailed):
        return _upstream(e, hint)
    status, kind, code = next(s for c, s in STATUS.items() if isinstance(e, c))
    message = without_paths(f"{e.message}; {hint}" if hint else e.message)
    headers = [(b"x-should-retry", b"false")] if code in _HOPELESS else []
    if code == "stopping":
        headers.append((b"retry-after", b"1"))
    # Our own client raises the same error again from these two.
    extra: dict[str, object] = {"name": type(e).__name__, "hint": without_paths(hint)}
    if isinstance(e, Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, round(e.wait_s + 0.5))))
        extra["expected_wait_s"] = round(e.wait_s, 3)
    if isinstance(e, BudgetSpent) and e.renews_s > 0:
        headers.append((b"retry-after", b"%d" % -(-e.renews_s // 1)))
        extra["renews_s"] = round(e.renews_s, 3)
    if isinstance(e, BudgetSpent) and e.limit:
        amounts = {"limit": e.limit, "spent": e.spent, "reserved": e.reserved, "asked": e.asked}
        extra["nano_dollars"] = amounts
    param = "model" if code == "model_not_found" else None
    return Problem(status, _cut(message), kind, param, code, extra, headers)


def _upstream(e: UpstreamFailed, hint: str) -> Problem:
    """Describe a provider's failure. Keys in its words were taken out by its wire."""
    answer = faulted(e)
    message = without_paths(f"{answer.message}; {hint}" if hint else answer.message)
    extra: dict[str, object] = {"name": type(e).__name__, "hint": without_paths(hint)}
    return Problem(answer.status, _cut(message), answer.kind, None, answer.code, extra, list(answer.headers))


def without_paths(message: str) -> str:
    """Cut the folders off every path in `message`, which clients must not see."""
    return _PATH.sub("", message)


def _cut(message: str) -> str:
    return message if len(message) <= _SHOWN else message[:_SHOWN] + "..."


def openai_error(p: Problem) -> bytes:
    """Word a problem as OpenAI does."""
    error = {"message": p.message, "type": p.kind, "param": p.param, "code": p.code, **p.extra}
    return msgspec.json.encode({"error": error})
