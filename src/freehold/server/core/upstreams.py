"""Failures of rented models for clients: a status and a code by cause, and the provider's words, cleaned.

The one file of the server that knows providers. A cause that the caller can mend keeps its own status; the key, the
connection and the provider's failures are the gateway's, and have a status above 500.
Path: problems.problem -> faulted -> UpstreamAnswer
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.errors import UpstreamFailed
from freehold.providers.contract import Cause, UpstreamFault
from freehold.providers.signatures import STAMP

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


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """What a client is answered. `headers`: retry-after, and whether to retry at all."""

    status: int
    kind: str
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...]


def faulted(e: UpstreamFailed) -> UpstreamAnswer:
    """Describe a failure of a provider."""
    if not isinstance(e, UpstreamFault):
        status, kind, code, again = _BY_CAUSE["server"]
        return UpstreamAnswer(status, kind, code, printable(e.message), ())
    status, kind, code, again = _BY_CAUSE[e.cause]
    message = f"{_OURS}: {e.message}" if e.cause == "auth" else e.message
    headers = [] if again else [(b"x-should-retry", b"false")]
    if again and e.retry_after_s is not None:
        wait = min(max(e.retry_after_s, 0.0), LONGEST_S)
        headers.append((b"retry-after", b"%d" % -(-wait // 1)))
    return UpstreamAnswer(status, kind, code, printable(message), tuple(headers))


def is_stamped(opaque: str) -> bool:
    """Tell whether a provider's opaque block came through this gateway, which can give it back."""
    return opaque.startswith(STAMP)


def printable(text: str) -> str:
    """Return a stranger's text without what would colour a terminal or break a line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
