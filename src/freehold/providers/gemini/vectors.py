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
from freehold.providers.gemini.events import GeminiUsage, invalid
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
    import numpy as np

    try:
        came = _EMBEDDED.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise invalid("embeddings that cannot be read") from None
    widths = {len(each.values) for each in came.embeddings}
    if len(came.embeddings) != len(job.texts) or len(widths) != 1 or 0 in widths:
        raise invalid("embeddings that do not fit the texts")
    rows = np.array([each.values for each in came.embeddings], dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise invalid("an embedding that is zero or not finite")
    total = came.usage_metadata.prompt_token_count if came.usage_metadata is not None else 0
    unit = (rows / lengths).astype("<f4")
    return Vectors(unit.tobytes(), unit.shape[1], shared(total, [len(text) for text in job.texts]))


def shared(total: int, weights: list[int]) -> tuple[int, ...]:
    """Share a count out by weights; the parts add up to it."""
    whole, given, seen, parts = max(sum(weights), 1), 0, 0, []
    for weight in weights:
        seen += weight
        until = total * seen // whole
        parts.append(until - given)
        given = until
    return tuple(parts)
