"""Which protocol a path belongs to, as the log and a request's origin name it.

Knows how paths begin; knows no route. Path: Endpoint -> protocol_of -> HttpCall.door; requestlog.py -> protocol_of
"""

from __future__ import annotations

from functools import lru_cache

_PROTOCOLS = (
    ("/api/", "ollama"),
    ("/v1/messages", "anthropic"),
    ("/v1/", "openai"),
    ("/console/", "console"),
)


@lru_cache(256)
def protocol_of(path: str) -> str:
    """Return the protocol's name; freehold where it is none of these."""
    return next((name for start, name in _PROTOCOLS if path.startswith(start)), "freehold")
