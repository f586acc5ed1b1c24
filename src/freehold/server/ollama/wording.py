"""How this protocol words errors, and the few answers that clients look at before they trust a server.

Knows the wire alone. Path: Gate -> ollama_error; app.root -> greeting; ollama/routes.py -> version
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from freehold.errors import ModelNotFound, Overloaded
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Problem, Refused, problem
from freehold.version import __version__

NDJSON = b"application/x-ndjson"
# Clients compare it with the first version that had what they need: VS Code wants 0.6.4 or later, and digits only.
COMPATIBLE = "0.18.3"
_PATHS = ("/api/", "/api")


def is_ours(path: str) -> bool:
    """Tell whether a path belongs to this protocol."""
    return path.startswith(_PATHS[0]) or path == _PATHS[1]


def ollama_error(p: Problem) -> bytes:
    """Word a problem as Ollama does: one text."""
    message = p.message.replace('"overflow": "drop-oldest"', '"truncate": true')  # its name in this protocol
    if p.code == "context_length_exceeded" and "truncate" not in message:
        message += '; in a request "truncate": true leaves out the oldest messages'
    return msgspec.json.encode({"error": message})


def as_here(trouble: Problem, model: str) -> Problem:
    """Say what this protocol's clients look for: "not found" with the name, and 503 where the queue is full."""
    if trouble.code == "model_not_found":
        return replace(trouble, message=f"model {model[:200]!r} not found: {trouble.message}")
    if trouble.status == 429:
        return replace(trouble, status=503)
    return trouble


def refusal(e: Overloaded | ModelNotFound, model: str) -> Refused:
    """Return the same as an error that the Gate answers with."""
    p = as_here(problem(e), model)
    return Refused(p.status, p.message, param=p.param, code=p.code, headers=tuple(p.headers))


async def greeting(call: HttpCall) -> None:
    """Answer the sentence that some clients look for before they use Ollama's protocol."""
    await call.answer(b"Ollama is running", kind=b"text/plain; charset=utf-8")


async def version(call: HttpCall) -> None:
    """Say which version of Ollama's protocol is spoken here."""
    await call.answer({"version": COMPATIBLE, "freehold": __version__})
