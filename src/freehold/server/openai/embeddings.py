"""POST /v1/embeddings: texts or token ids in, vectors out, as numbers or as base64 of float32.

Knows OpenAI's shapes; the engine makes the vectors, whatever kind of model it has.
Path: Gate -> embeddings -> ModelHandle.embed -> body
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import Name, Rank, TokenId, priority
from freehold.server.core.problems import Refused
from freehold.server.core.vectors import MAX_DIMENSIONS, as_numbers, check_count, cut_warnings, json_size
from freehold.server.openai.fields.unknown import unknown_fields
from freehold.serving import MAX_TEXTS, EmbedJob, Vectors

Tokens = Annotated[list[TokenId], Meta(min_length=1)]
Texts = tuple[str | tuple[int, ...], ...]
Pooling = Literal["mean", "last", "cls"]


class Embedding(Struct, kw_only=True):
    """Fields of everything that is made of embeddings."""

    model: Annotated[Name, Meta(description="The model's name; any model makes embeddings.")]
    pooling: Annotated[
        Pooling | None,
        Meta(description="How a text's tokens become one vector. Default: the model's own way; else `last`."),
    ] = None
    truncate: Annotated[
        bool | None,
        Meta(
            description="Cut texts longer than the context, and say so in `warnings`. Default: refuse them."
        ),
    ] = None
    priority: Rank = None
    keep_alive: Annotated[
        float | str | None, Meta(description="How long the model stays in memory afterwards.")
    ] = None
    user: Annotated[
        Annotated[str, Meta(max_length=512)] | None, Meta(description="Accepted and not used.")
    ] = None


class EmbeddingRequest(Embedding, kw_only=True):
    """POST /v1/embeddings: texts to turn into vectors of unit length."""

    input: Annotated[
        str | list[str | TokenId | Tokens],
        Meta(description=f"A text, token ids, or a list of up to {MAX_TEXTS:,} of either."),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="Numbers (default), or base64 of little-endian float32."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None,
        Meta(description="Keep this many numbers, at unit length again; for models trained for it."),
    ] = None


async def embeddings(call: HttpCall) -> None:
    """Turn texts into vectors."""
    request, raw = await call.struct(EmbeddingRequest)
    warnings = unknown_fields(raw, EmbeddingRequest)
    texts = await call.apart(listed, request.input)

    async def work() -> None:
        call.work.model = request.model
        served = await call.models.use(request.model)
        job = EmbedJob(
            texts,
            request.pooling,
            bool(request.truncate),
            request.dimensions,
            call.tenant,
            priority(request.priority),
            client=call.caller,
        )
        vectors = await served.embed(job, seconds(request.keep_alive))
        call.work.prompt_tokens = sum(vectors.tokens)
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


def _body(model: str, rows: Sequence[object], vectors: Vectors, warnings: list[str]) -> dict[str, Any]:
    total = sum(vectors.tokens)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "freehold": {"dimensions": vectors.width, "warnings": warnings},
    }
