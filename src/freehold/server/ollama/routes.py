"""The routes of Ollama's protocol: those that answer, and those that look at the store or change it.

Knows every handler of this folder. Path: app.make_app -> routes, store_routes
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.routing import BaseRoute, Route

from freehold.server.call import Call, Endpoint
from freehold.server.ollama.blobs import has, send
from freehold.server.ollama.chat import chat
from freehold.server.ollama.create import create
from freehold.server.ollama.generate import generate
from freehold.server.ollama.manage import copy, delete
from freehold.server.ollama.models import ps, show, tags
from freehold.server.ollama.pull import pull, push
from freehold.server.ollama.wording import greeting, is_ours, ollama_error, version


def routes() -> list[BaseRoute]:
    """Return what any server answers."""
    return [
        _route("GET", "/", greeting),
        _route("POST", "/api/chat", chat),
        _route("POST", "/api/generate", generate),
        _route("GET", "/api/tags", tags),
        _route("GET", "/api/ps", ps),
        _route("GET", "/api/version", version),
    ]


def store_routes() -> list[BaseRoute]:
    """Return what a server with a store answers besides."""
    return [
        _route("POST", "/api/show", show),
        _route("POST", "/api/pull", pull),
        _route("POST", "/api/push", push),
        _route("POST", "/api/create", create),
        _route("POST", "/api/copy", copy),
        _route("DELETE", "/api/delete", delete),
        _route("HEAD", "/api/blobs/{digest}", has),
        _route("POST", "/api/blobs/{digest}", send),
    ]


def _route(method: str, path: str, handle: Callable[[Call], Awaitable[None]]) -> Route:
    return Route(path, Endpoint(path, handle), methods=[method])


__all__ = ["is_ours", "ollama_error", "routes", "store_routes"]
