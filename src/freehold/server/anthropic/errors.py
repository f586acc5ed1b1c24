"""Words errors as Anthropic does, and recognises the requests of its protocol.

Knows problems and headers; knows no route's fields. Errors that come before any route is found are worded here too.
Path: Gate -> speaks; HttpCall.refuse or MessageShape.failed -> anthropic_error -> bytes
"""

from __future__ import annotations

import re

import msgspec

from freehold.server.core.auth import Headers
from freehold.server.core.problems import INVALID, Problem

VERSION = b"anthropic-version"  # the header that every client of Anthropic's sends
# A server that is full or on its way out: Anthropic's clients know that as 529.
STATUSES = {503: 529}
_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Clients find the two numbers in Anthropic's own sentence, and shorten the chat by them.
_TOO_LONG = re.compile(r"prompt has ([\d,]+) tokens; .* with a context of ([\d,]+)", re.S)


def speaks(path: str, headers: Headers) -> bool:
    """Return whether a request is in Anthropic's protocol."""
    return VERSION in headers or path.startswith("/v1/messages")


def anthropic_error(p: Problem) -> bytes:
    """Word a problem as Anthropic does; what it has no place for is in `freehold`."""
    kind = _KINDS.get(p.status, INVALID if p.status < 500 else "api_error")
    more = {"code": p.code, "param": p.param, **p.extra}
    error = {"type": kind, "message": _message(p)}
    body = {"type": "error", "error": error, "request_id": p.request_id or None, "freehold": more}
    return msgspec.json.encode(body)


def _message(p: Problem) -> str:
    if p.code != "context_length_exceeded":
        return p.message
    match = _TOO_LONG.search(p.message)
    numbers = f"{match[1]} tokens > {match[2]} maximum; ".replace(",", "") if match else ""
    return f"prompt is too long: {numbers}{p.message}"
