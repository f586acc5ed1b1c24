"""The routes of Ollama's protocol: those that answer, and those that look at the store or change it.

Knows every handler of this folder.
"""

from __future__ import annotations

from starlette.routing import Route

from freehold.serve.http.core.call import route
from freehold.serve.http.core.fields import WireReply
from freehold.serve.http.ollama import generating, models, store
from freehold.serve.http.ollama.fields import GenerateRequest, OllamaChatRequest
from freehold.serve.http.ollama.shape import version

_LINES = ("application/x-ndjson", "application/json")


def routes() -> list[Route]:
    """Return what any server answers."""
    return [
        route("POST", "/api/chat", generating.chat, OllamaChatRequest, answer=_LINES),
        route("POST", "/api/generate", generating.generate, GenerateRequest, answer=_LINES),
        route("POST", "/api/embed", generating.embed, generating.EmbedRequest),
        route("POST", "/api/embeddings", generating.embeddings, generating.EmbeddingsRequest),
        route("GET", "/api/tags", models.tags, audience="any", reply=Tags),
        route("GET", "/api/ps", models.ps, audience="any", reply=RunningList),
        route("GET", "/api/version", version, audience="any", reply=OllamaVersion),
    ]


def store_routes() -> list[Route]:
    """Return what a server with a store answers besides."""
    return [
        route("POST", "/api/show", models.show, models.ShowRequest),
        route("POST", "/api/pull", store.pull, store.PullRequest, audience="admin", answer=_LINES),
        route("POST", "/api/push", store.push, audience="admin"),
        route("POST", "/api/create", store.create, store.CreateRequest, audience="admin", answer=_LINES),
        route("POST", "/api/copy", store.copy, store.CopyRequest, audience="admin"),
        route("DELETE", "/api/delete", store.delete, store.DeleteRequest, audience="admin"),
        route("HEAD", "/api/blobs/{digest}", store.has, audience="admin"),
        route("POST", "/api/blobs/{digest}", store.send, audience="admin", status=[200, 201]),
    ]


# --- what whole answers of Ollama's protocol look like, for the OpenAPI document --------------------


class Details(WireReply):
    """What Ollama's clients show of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int | None = None
    embedding_length: int | None = None


class Tag(WireReply):
    """A model in the store."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]


class Tags(WireReply):
    """What /api/tags answers; `freehold`, where it is there, has `warnings` about models that are being checked."""

    models: list[Tag]
    freehold: dict[str, list[str]] | None = None


class LoadedModelReply(WireReply):
    """A model in memory."""

    name: str
    model: str
    size: int
    size_vram: int
    digest: str
    details: Details
    expires_at: str
    context_length: int


class RunningList(WireReply):
    """What /api/ps answers."""

    models: list[LoadedModelReply]


class OllamaVersion(WireReply):
    """The version of Ollama's API that is spoken, and Freehold's own."""

    version: str
    freehold: str
