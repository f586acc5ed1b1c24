"""POST /v1/embeddings: texts or token ids in, vectors out, as numbers or as base64; and what is scored by vectors.

Knows OpenAI's, Cohere's and vLLM's shapes; the engine makes the vectors, whatever kind of model it has.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from freehold.base.serving import MAX_TEXTS, EmbedJob, Vectors
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import (
    MAX_DIMENSIONS,
    Name,
    Rank,
    TokenId,
    as_numbers,
    check_count,
    cut_warnings,
    doc,
    json_size,
    priority,
    seconds,
)
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.fields.chat import unknown_fields

Tokens = Annotated[list[TokenId], Meta(min_length=1)]
Texts = tuple[str | tuple[int, ...], ...]
Pooling = Literal["mean", "last", "cls"]


class Embedding(Struct, kw_only=True):
    """Fields of everything that is made of embeddings."""

    model: Annotated[Name, doc("The model's name; any model can compute embeddings.")]
    pooling: Annotated[
        Pooling | None,
        doc(
            "How the vectors of a text's tokens are combined. Default: the model's own pooling, otherwise `last`."
        ),
    ] = None
    truncate: Annotated[
        bool | None,
        Meta(
            description="Truncate texts that are longer than the context, with a warning. Default: reject them."
        ),
    ] = None
    priority: Rank = None
    keep_alive: Annotated[float | str | None, doc("How long the model stays in memory afterwards.")] = None
    user: Annotated[Annotated[str, Meta(max_length=512)] | None, doc("Accepted, but not used.")] = None


class EmbeddingRequest(Embedding, kw_only=True):
    """POST /v1/embeddings: texts to turn into vectors of unit length."""

    input: Annotated[
        str | list[str | TokenId | Tokens],
        doc(f"A text, token ids, or a list of up to {MAX_TEXTS:,} of either."),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        doc("Numbers (default), or base64 of little-endian float32."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None,
        doc("Keep this many dimensions, normalised again; for models trained for it."),
    ] = None


async def embed(call: HttpCall) -> None:
    """Turn texts into vectors."""
    request, raw = await call.struct(EmbeddingRequest)
    warnings = unknown_fields(raw, EmbeddingRequest)
    texts = await call.apart(listed, request.input)

    async def work() -> None:
        vectors = await _vectors(call, request, texts, request.dimensions)
        show = in_base64 if request.encoding_format == "base64" else as_numbers
        all_warnings = [*warnings, *cut_warnings(vectors)]

        def body() -> bytes:
            return msgspec.json.encode(_body(request.model, show(vectors), vectors, all_warnings))

        await call.answer(await call.apart(body, size=json_size(vectors)))

    await call.while_here(work())


def listed(input: str | list[Any]) -> Texts:
    """Return the texts of an `input`: one, or many, as text or as ids; 400 for none, for too many and for a mixture."""
    parts: list[Any] = [input] if isinstance(input, str) else input
    if not parts or not isinstance(parts[0], int):
        check_count("input", parts)
    numbers = sum(isinstance(part, int) for part in parts)
    if numbers not in (0, len(parts)):
        raise Refused(400, "input mixes token ids with texts", param="input")
    texts = [parts] if numbers else parts
    return tuple(text if isinstance(text, str) else tuple(text) for text in texts)


def in_base64(vectors: Vectors) -> list[str]:
    """Return each vector's bytes in base64."""
    size = 4 * vectors.width
    rows = range(0, len(vectors.data), size)
    return [base64.b64encode(vectors.data[at : at + size]).decode("ascii") for at in rows]


def _usage(vectors: Vectors) -> dict[str, int]:
    total = sum(vectors.tokens)
    return {"prompt_tokens": total, "total_tokens": total}


def _body(model: str, rows: Sequence[object], vectors: Vectors, warnings: list[str]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": model,
        "usage": _usage(vectors),
        "freehold": {"dimensions": vectors.width, "warnings": warnings},
    }


# --- POST /v1/rerank, /v2/rerank, /rerank (Cohere's and Jina's shape) and /v1/score, /score (vLLM's)
# A score is the cosine of two texts' embeddings, by whatever model is named: between -1 and 1, comparable within one
# model.


class Document(Struct, kw_only=True):
    """A document as an object, which Cohere allows."""

    text: str


class RerankRequest(Embedding, kw_only=True):
    """POST /v1/rerank, /v2/rerank, /rerank: documents to sort by their similarity to a query."""

    query: Annotated[str, doc("The query.")]
    documents: Annotated[list[str | Document], doc(f"1 to {MAX_TEXTS - 1:,} texts, or objects with `text`.")]
    top_n: Annotated[
        Annotated[int, Meta(ge=1)] | None, doc("Return this many of the nearest. Default: all.")
    ] = None
    return_documents: Annotated[
        bool | None, doc("Also return the texts of the documents. Default true, except for /v2/rerank.")
    ] = None


class ScoreRequest(Embedding, kw_only=True):
    """POST /v1/score, /score: the similarity of texts, one to one or one to many."""

    text_1: Annotated[str | list[str], doc("A text, or a list as long as text_2.")]
    text_2: Annotated[str | list[str], doc(f"A text, or up to {MAX_TEXTS - 1:,}.")]


async def rerank(call: HttpCall) -> None:
    """Sort documents by their similarity to a query."""
    request, raw = await call.struct(RerankRequest)
    warnings = unknown_fields(raw, RerankRequest)
    check_count("documents", [*request.documents, ""] if request.documents else [])
    texts = [d if isinstance(d, str) else d.text for d in request.documents]
    shown = request.return_documents
    if shown is None:
        shown = call.route != "/v2/rerank"

    async def work() -> None:
        vectors = await _vectors(call, request, (request.query, *texts))
        rows = range(1, len(texts) + 1)
        scores = await call.apart(cosines, vectors, [0] * len(texts), rows, size=len(vectors.data))
        order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: request.top_n]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if shown:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        head = {"id": "rerank-" + call.request_id.decode(), "model": request.model, "results": results}
        meta = {"warnings": [*warnings, *cut_warnings(vectors)]}
        await call.answer({**head, "usage": _usage(vectors), "meta": meta})

    await call.while_here(work())


async def score(call: HttpCall) -> None:
    """Score pairs of texts."""
    request, raw = await call.struct(ScoreRequest)
    warnings = unknown_fields(raw, ScoreRequest)
    first, second = _texts(request.text_1), _texts(request.text_2)
    if len(first) not in (1, len(second)):
        message = f"text_1 has {len(first)} texts and text_2 {len(second)}; expected one, or as many"
        raise Refused(400, message, param="text_1")
    check_count("text_1 and text_2", [*first, *second] if first and second else [])

    async def work() -> None:
        vectors = await _vectors(call, request, (*first, *second))
        left = range(len(first)) if len(first) == len(second) else [0] * len(second)
        rows = range(len(first), len(first) + len(second))
        scores = await call.apart(cosines, vectors, left, rows, size=len(vectors.data))
        head = {"id": "score-" + call.request_id.decode(), "object": "list", "created": int(time.time())}
        data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)]
        more = {"warnings": [*warnings, *cut_warnings(vectors)]}
        body = {"model": request.model, "data": data, "usage": _usage(vectors), "freehold": more}
        await call.answer({**head, **body})

    await call.while_here(work())


async def _vectors(
    call: HttpCall, request: Embedding, texts: Texts, dimensions: int | None = None
) -> Vectors:
    call.work.model = request.model
    served = await call.models.use(request.model)
    job = EmbedJob(
        texts,
        request.pooling,
        bool(request.truncate),
        dimensions,
        call.tenant,
        priority(request.priority),
        client=call.caller,
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
