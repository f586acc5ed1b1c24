"""Hints for errors over the network.

The engine's hints name options of the command line and models to fetch, which is right for the owner on the Unix
socket and of no use over the network. Knows the error tree and the requests' fields; knows no route.
Path: HttpCall.problem -> problems.problem -> hint_for
"""

from __future__ import annotations

import re

from freehold import errors
from freehold.errors import FreeholdError

_COMMAND = re.compile(r"(?<![\w-])--[a-z]|\bfreehold [a-z]|\bLLM\.|\bchmod\b")
_PULL = re.compile(r"freehold pull \S+")
# class -> what a client can do. The first matching class counts.
_WAYS: dict[type[FreeholdError], str] = {
    errors.ContextOverflow: 'shorten it, or say "overflow": "drop-oldest" in a chat; more context is the operator\'s',
    errors.ModelNotFound: "GET /v1/models lists what there is",
    errors.UnsupportedModel: "GET /v1/models lists the others",
    errors.BadTemplate: "POST /v1/completions takes plain text",
    errors.AccessDenied: "GET /v1/models lists what is here already",
    errors.BadModelFile: "GET /v1/models lists the others; this one is the operator's to repair",
    errors.FileVanished: "GET /v1/models lists the others; the operator has to bring this one's file back",
    errors.StoreError: "the operator finds the cause in the server's log",
    errors.CapacityExceeded: "ask a model that GET /v1/models shows as loaded, or ask again when others are idle",
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
