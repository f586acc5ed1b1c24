"""Embeddings of Gemini: batchEmbedContents out, unit vectors in.

The answer counts no tokens for each text; where it has a sum, it is shared out by length. Knows no chat.
Path: GeminiWire.embed -> embedding_request; GeminiWire.vectors -> read_vectors
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.errors import UnsupportedModel
from freehold.providers.contract import RemoteModel
from freehold.providers.demands import texts_of
from freehold.providers.faults import decoded
from freehold.providers.gemini.events import GeminiUsage
from freehold.providers.vectors import unit_vectors
from freehold.serving import EmbedJob, Vectors

MAX_BATCH = 100  # texts of one request


class _Values(msgspec.Struct):
    values: list[float]


class _Embedded(msgspec.Struct, rename="camel"):
    embeddings: list[_Values]
    usage_metadata: GeminiUsage | None = None


_EMBEDDED = msgspec.json.Decoder(_Embedded)


def embedding_request(model: RemoteModel, job: EmbedJob, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the body and its warnings. Raises UsageError or UnsupportedModel."""
    texts = texts_of(job)
    lacks = "" if model.abilities.embeddings else "makes no embeddings"
    lacks = lacks or ("pools its tokens itself" if job.pooling else "")
    lacks = lacks or (
        f"embeds at most {MAX_BATCH} texts a request, not {len(texts):,}" if len(texts) > MAX_BATCH else ""
    )
    if lacks:
        raise UnsupportedModel(f"{model.model} at {model.provider.name} {lacks}")
    size = {"outputDimensionality": job.dimensions} if job.dimensions else {}
    requests = [{"model": name, "content": {"parts": [{"text": text}]}, **size} for text in texts]
    cut = () if job.truncate else (f"{model.model} cuts a text that is too long, and does not say so",)
    return {"requests": requests}, cut


def read_vectors(body: bytes, job: EmbedJob) -> Vectors:
    """Return the vectors at unit length, which the provider's shortened ones have not."""
    came = decoded(_EMBEDDED, body, "embeddings that cannot be read")
    total = came.usage_metadata.prompt_token_count if came.usage_metadata is not None else 0
    return unit_vectors([each.values for each in came.embeddings], total, job)
