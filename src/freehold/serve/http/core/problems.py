"""Turns every failure into a status, a message and headers, without what clients must not see.

Knows the error tree, HTTP, and OpenAI's error format, the default where a protocol has none of its own; knows no
route. A failure with no name here is a 500 that says nothing but its
request id: paths, addresses and prompts stay in the log.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from freehold.base import errors
from freehold.base.errors import BudgetSpent, FreeholdError, Overloaded, UpstreamFailed
from freehold.route.providers.contract import Cause, UpstreamFault
from freehold.route.providers.signatures import STAMP

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
        message = "the server's disk is full; try again when its owner has freed space"
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


def without_paths(message: str) -> str:
    """Cut the folders off every path in `message`, which clients must not see."""
    return _PATH.sub("", message)


def _cut(message: str) -> str:
    return message if len(message) <= _SHOWN else message[:_SHOWN] + "..."


def openai_error(p: Problem) -> bytes:
    """Word a problem as OpenAI does."""
    error = {"message": p.message, "type": p.kind, "param": p.param, "code": p.code, **p.extra}
    return msgspec.json.encode({"error": error})


# --- hints for errors over the network --------------------------------------------------------------
# The engine's hints name options of the command line and models to fetch, which is right for the owner on the
# Unix socket and of no use over the network.

_COMMAND = re.compile(r"(?<![\w-])--[a-z]|\bfreehold [a-z]|\bLLM\.|\bchmod\b")
_PULL = re.compile(r"freehold pull \S+")
# class -> what a client can do. The first matching class counts.
_WAYS: dict[type[FreeholdError], str] = {
    errors.ContextOverflow: 'shorten it, or say "overflow": "drop-oldest" in a chat; more context is the operator\'s',
    errors.ModelNotFound: "GET /v1/models lists what there is",
    errors.UnsupportedModel: "GET /v1/models lists the others",
    errors.BadTemplate: "POST /v1/completions takes plain text",
    errors.AccessDenied: "GET /v1/models lists what is already downloaded",
    errors.BadModelFile: "GET /v1/models lists the others; this one is the operator's to repair",
    errors.FileVanished: "GET /v1/models lists the others; the operator has to bring this one's file back",
    errors.StoreError: "the operator finds the cause in the server's log",
    errors.CapacityExceeded: "ask a model that GET /v1/models shows as loaded, or try again when others are idle",
    errors.EngineLost: "the operator finds the cause in the server's log",
}


def hint_for(e: FreeholdError, *, owner: bool) -> str:
    """Return the error's own hint for the owner, or if a client can follow it; otherwise one for clients, or ""."""
    # These hints name models of the catalogue, or of the store beyond the key's scope.
    names = isinstance(e, errors.ModelNotFound) and e.hint.startswith(("did you mean", "its adapters"))
    if owner or not (names or _COMMAND.search(e.hint)):
        return e.hint
    if isinstance(e, errors.ModelNotFound) and _PULL.fullmatch(e.hint):  # the name is the request's own
        return f"{e.hint} on the server's machine fetches it; {_WAYS[errors.ModelNotFound]}"
    return next((way for kind, way in _WAYS.items() if isinstance(e, kind)), "")


# --- failures of rented models: a status and a code by cause, and the provider's words, cleaned -----
# The one file of the server that knows providers. A cause that the caller can mend keeps its own status; the key, the
# connection and the provider's failures are the gateway's, and have a status above 500.

LONGEST_S = 86400  # of a retry-after that is passed on
# cause -> (status, OpenAI's type, code, whether asking again may help)
_BY_CAUSE: dict[Cause, tuple[int, str, str, bool]] = {
    "request": (400, "invalid_request_error", "upstream_refused", False),
    "context": (400, "invalid_request_error", "context_length_exceeded", False),
    "rate": (429, "rate_limit_error", "upstream_rate_limited", True),
    "auth": (502, "server_error", "upstream_auth", False),
    "redirect": (502, "server_error", "upstream_redirect", False),
    "timeout": (504, "timeout_error", "upstream_timeout", True),
    "server": (502, "server_error", "upstream_failed", True),
    "connect": (502, "server_error", "upstream_unreachable", True),
    "broken": (502, "server_error", "upstream_broken", True),
    "invalid": (502, "server_error", "upstream_invalid", True),
    "resting": (503, "server_error", "upstream_unavailable", True),
}
_OURS = "the provider refused the gateway's own key, which its operator has to mend"


def _upstream(e: UpstreamFailed, hint: str) -> Problem:
    """Describe a provider's failure. Keys in its words were taken out by its wire."""
    cause, wait_s = (e.cause, e.retry_after_s) if isinstance(e, UpstreamFault) else ("server", None)
    status, kind, code, again = _BY_CAUSE[cause]
    headers = [] if again else [(b"x-should-retry", b"false")]
    if again and wait_s is not None:
        headers.append((b"retry-after", b"%d" % -(-min(max(wait_s, 0.0), LONGEST_S) // 1)))
    words = printable(f"{_OURS}: {e.message}" if cause == "auth" else e.message)
    message = without_paths(f"{words}; {hint}" if hint else words)
    extra: dict[str, object] = {"name": type(e).__name__, "hint": without_paths(hint)}
    return Problem(status, _cut(message), kind, None, code, extra, headers)


def is_stamped(opaque: str) -> bool:
    """Tell whether a provider's opaque block came through this gateway, which can give it back."""
    return opaque.startswith(STAMP)


def printable(text: str) -> str:
    """Return a stranger's text without what would colour a terminal or break a line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
