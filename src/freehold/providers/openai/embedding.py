"""Embeddings on OpenAI's wire: texts to a request, base64 or numbers to unit vectors.

Knows no chat. Path: OpenAIWire.embed -> embed_body; OpenAIWire.vectors -> read_vectors
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from freehold.errors import UnsupportedModel
from freehold.providers.contract import RemoteModel
from freehold.providers.demands import texts_of
from freehold.providers.openai.events import decoded, invalid
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
    width = len(vectors[0])
    if not width or any(len(v) != width for v in vectors):
        raise invalid("embeddings of several widths")
    table = np.stack(vectors).astype(np.float64)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise invalid("an embedding that is zero or not finite")
    return Vectors(
        (table / lengths).astype("<f4").tobytes(), width, shared(rows.usage.prompt_tokens, job.texts)
    )


def _vector(sent: str | list[float]) -> np.ndarray:
    if isinstance(sent, list):
        return np.array(sent, dtype=np.float32)
    try:
        return np.frombuffer(b64decode(sent, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        raise invalid("an embedding that is not base64 of float32") from None


def shared(total: int, texts: Sequence[str | tuple[int, ...]]) -> tuple[int, ...]:
    """Share the tokens of all texts out by their lengths; the parts sum to the total."""
    if total < 0:
        raise invalid("token counts below 0")
    lengths = [len(text) + 1 for text in texts]
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    cuts = [math.floor(total * bound / bounds[-1]) for bound in bounds]
    return tuple(after - before for before, after in pairwise(cuts))
