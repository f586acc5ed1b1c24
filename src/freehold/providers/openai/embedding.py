"""Embeddings on OpenAI's wire: texts to a request, base64 or numbers to unit vectors.

Knows no chat. Path: OpenAIWire.embed -> embed_body; OpenAIWire.vectors -> read_vectors
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

import msgspec
import numpy as np

from freehold.errors import UnsupportedModel
from freehold.providers.contract import RemoteModel
from freehold.providers.demands import texts_of
from freehold.providers.faults import decoded, invalid
from freehold.providers.vectors import unit_vectors
from freehold.serving import EmbedJob, Vectors


class _VectorRow(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _EmbedCounts(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _VectorRows(msgspec.Struct):
    data: list[_VectorRow]
    usage: _EmbedCounts = _EmbedCounts()


_ROWS = msgspec.json.Decoder(_VectorRows)


def embed_body(model: RemoteModel, job: EmbedJob, *, packed: bool = True) -> dict[str, Any]:
    """Write a request. Raises UnsupportedModel for what no provider's embeddings can do."""
    if not model.abilities.embeddings:
        raise UnsupportedModel(f"{model.model} at {model.provider.name} makes no embeddings")
    if job.pooling is not None or job.adapter:
        raise UnsupportedModel(
            f"{model.model} at {model.provider.name} has no pooling to choose, and no adapters"
        )
    body: dict[str, Any] = {"model": model.model, "input": texts_of(job)}
    if job.dimensions is not None:
        body["dimensions"] = job.dimensions
    if packed:
        body["encoding_format"] = "base64"
    return body


def read_vectors(body: bytes, job: EmbedJob) -> Vectors:
    """Read one vector a text, at unit length. Raises UpstreamFault for anything else."""
    rows = decoded(_ROWS, body, "embeddings that cannot be read")
    if sorted(row.index for row in rows.data) != [*range(len(job.texts))]:
        raise invalid(f"{len(rows.data)} embeddings for {len(job.texts)} texts")
    vectors = [_vector(row.embedding) for row in sorted(rows.data, key=lambda row: row.index)]
    return unit_vectors(vectors, rows.usage.prompt_tokens, job)


def _vector(sent: str | list[float]) -> np.ndarray:
    if isinstance(sent, list):
        return np.array(sent, dtype=np.float32)
    try:
        return np.frombuffer(b64decode(sent, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        raise invalid("an embedding that is not base64 of float32") from None
