"""POST /v1/rerank, /v2/rerank, /rerank (Cohere's and Jina's shape) and /v1/score, /score (vLLM's).

A score is the cosine of two texts' embeddings, by whatever model is named: between -1 and 1, comparable within one
model. Knows these wires; the engine makes the vectors.
Path: Gate -> rerank or score -> ModelHandle.embed -> cosines -> body
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import priority
from freehold.server.core.problems import Refused
from freehold.server.core.vectors import check_count, cut_warnings
from freehold.server.openai.embeddings import Embedding
from freehold.server.openai.fields.unknown import unknown_fields
from freehold.serving import MAX_TEXTS, EmbedJob, Vectors


class Document(Struct, kw_only=True):
    """A document as an object, which Cohere allows."""

    text: str


class RerankRequest(Embedding, kw_only=True):
    """POST /v1/rerank, /v2/rerank, /rerank: documents in order of how near they are to a query."""

    query: Annotated[str, Meta(description="What is looked for.")]
    documents: Annotated[
        list[str | Document],
        Meta(description=f"1 to {MAX_TEXTS - 1:,} texts, or objects with `text`."),
    ]
    top_n: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Return this many of the nearest. Default: all.")
    ] = None
    return_documents: Annotated[
        bool | None, Meta(description="Give the documents' texts too. Default true, but for /v2/rerank.")
    ] = None


class ScoreRequest(Embedding, kw_only=True):
    """POST /v1/score, /score: how near texts are to each other, one to one or one to many."""

    text_1: Annotated[str | list[str], Meta(description="A text, or as many as text_2 has.")]
    text_2: Annotated[str | list[str], Meta(description=f"A text, or up to {MAX_TEXTS - 1:,}.")]


async def rerank(call: HttpCall) -> None:
    """Order documents."""
    request, raw = await call.struct(RerankRequest)
    warnings = unknown_fields(raw, RerankRequest)
    check_count("documents", [*request.documents, ""] if request.documents else [])
    texts = [d if isinstance(d, str) else d.text for d in request.documents]
    shown = request.return_documents
    if shown is None:
        shown = call.route != "/v2/rerank"

    async def work() -> None:
        vectors = await _vectors(call, request, [request.query, *texts])
        rows = range(1, len(texts) + 1)
        scores = await call.apart(cosines, vectors, [0] * len(texts), rows, size=len(vectors.data))
        order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: request.top_n]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if shown:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        total = sum(vectors.tokens)
        await call.answer(
            {
                "id": "rerank-" + call.request_id.decode(),
                "model": request.model,
                "results": results,
                "usage": {"prompt_tokens": total, "total_tokens": total},
                "meta": {"warnings": [*warnings, *cut_warnings(vectors)]},
            }
        )

    await call.while_here(work())


async def score(call: HttpCall) -> None:
    """Score pairs of texts."""
    request, raw = await call.struct(ScoreRequest)
    warnings = unknown_fields(raw, ScoreRequest)
    first, second = _texts(request.text_1), _texts(request.text_2)
    if len(first) not in (1, len(second)):
        raise Refused(
            400,
            f"text_1 has {len(first)} texts and text_2 {len(second)}; expected one, or as many",
            param="text_1",
        )
    check_count("text_1 and text_2", [*first, *second] if first and second else [])

    async def work() -> None:
        vectors = await _vectors(call, request, [*first, *second])
        left = range(len(first)) if len(first) == len(second) else [0] * len(second)
        rows = range(len(first), len(first) + len(second))
        scores = await call.apart(cosines, vectors, left, rows, size=len(vectors.data))
        total = sum(vectors.tokens)
        await call.answer(
            {
                "id": "score-" + call.request_id.decode(),
                "object": "list",
                "created": int(time.time()),
                "model": request.model,
                "data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)],
                "usage": {"prompt_tokens": total, "total_tokens": total},
                "freehold": {"warnings": [*warnings, *cut_warnings(vectors)]},
            }
        )

    await call.while_here(work())


async def _vectors(call: HttpCall, request: Embedding, texts: list[str]) -> Vectors:
    call.work.model = request.model
    served = await call.models.use(request.model)
    job = EmbedJob(
        tuple(texts),
        request.pooling,
        bool(request.truncate),
        tenant=call.tenant,
        client=call.caller,
        priority=priority(request.priority),
    )
    vectors = await served.embed(job, seconds(request.keep_alive))
    call.work.prompt_tokens = sum(vectors.tokens)
    return vectors


def cosines(vectors: Vectors, left: Any, right: Any) -> list[float]:
    """Return the products of unit vectors, numbered by `left` and `right`."""
    rows = np.frombuffer(vectors.data, "<f4").reshape(-1, vectors.width).astype(np.float64)
    products = (rows[list(left)] * rows[list(right)]).sum(axis=1)
    return [round(float(p), 7) for p in np.clip(products, -1.0, 1.0)]  # a float32's digits


def _texts(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
