"""What whole answers of Ollama's protocol look like, for the OpenAPI document.

Knows fields and types; handlers build plain objects and do not know this file.
Path: ollama/routes.py -> openapi.document
"""

from __future__ import annotations

from freehold.server.core.reply import WireReply


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
