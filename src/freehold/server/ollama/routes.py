"""The routes of Ollama's protocol: those that answer, and those that look at the store or change it.

Knows every handler of this folder. Path: app.make_app -> routes, store_routes
"""

from __future__ import annotations

from starlette.routing import Route

from freehold.server.core.call import route
from freehold.server.ollama.blobs import has, send
from freehold.server.ollama.create import CreateRequest, create
from freehold.server.ollama.embed import EmbeddingsRequest, EmbedRequest, embed, embeddings
from freehold.server.ollama.fields import GenerateRequest, OllamaChatRequest
from freehold.server.ollama.generating import chat, generate
from freehold.server.ollama.manage import CopyRequest, DeleteRequest, copy, delete
from freehold.server.ollama.models import ShowRequest, ps, show, tags
from freehold.server.ollama.pull import PullRequest, pull, push
from freehold.server.ollama.replies import OllamaVersion, RunningList, Tags
from freehold.server.ollama.wording import greeting, is_ours, ollama_error, version

_LINES = ("application/x-ndjson", "application/json")


def routes() -> list[Route]:
    """Return what any server answers."""
    return [
        route("POST", "/api/chat", chat, OllamaChatRequest, answer=_LINES),
        route("POST", "/api/generate", generate, GenerateRequest, answer=_LINES),
        route("POST", "/api/embed", embed, EmbedRequest),
        route("POST", "/api/embeddings", embeddings, EmbeddingsRequest),
        route("GET", "/api/tags", tags, audience="any", reply=Tags),
        route("GET", "/api/ps", ps, audience="any", reply=RunningList),
        route("GET", "/api/version", version, audience="any", reply=OllamaVersion),
    ]


def store_routes() -> list[Route]:
    """Return what a server with a store answers besides."""
    return [
        route("POST", "/api/show", show, ShowRequest),
        route("POST", "/api/pull", pull, PullRequest, audience="admin", answer=_LINES),
        route("POST", "/api/push", push, audience="admin"),
        route("POST", "/api/create", create, CreateRequest, audience="admin", answer=_LINES),
        route("POST", "/api/copy", copy, CopyRequest, audience="admin"),
        route("DELETE", "/api/delete", delete, DeleteRequest, audience="admin"),
        route("HEAD", "/api/blobs/{digest}", has, audience="admin"),
        route("POST", "/api/blobs/{digest}", send, audience="admin", status=[200, 201]),
    ]


__all__ = ["greeting", "is_ours", "ollama_error", "routes", "store_routes"]
