"""POST /api/embed and the older /api/embeddings: texts in, vectors of unit length out.

Knows Ollama's shapes; the engine makes the vectors. A text longer than the context is refused unless `truncate` is
true, and then named in a warning. Path: Gate -> embed, embeddings -> ModelHandle.embed
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import Name
from freehold.server.core.vectors import MAX_DIMENSIONS, as_numbers, check_count, cut_warnings, json_size
from freehold.server.ollama.fields import Options, unknown_fields
from freehold.server.ollama.generating import let_go, worded
from freehold.server.ollama.shape import ns
from freehold.serving import EmbedJob, Vectors
from freehold.store import parameters

KeepAlive = Annotated[
    float | str | None,
    Meta(description="How long the model stays in memory afterwards; 0 without a text: let go of it now."),
]


class EmbedRequest(Struct, kw_only=True):
    """POST /api/embed: texts to turn into vectors of unit length; without input the model is loaded."""

    model: Annotated[Name, Meta(description="The model's name; any model makes embeddings.")]
    input: Annotated[str | list[str] | None, Meta(description="A text, or a list of them.")] = None
    truncate: Annotated[
        bool | None,
        Meta(description="true: cut what is longer than the context, and say so. Otherwise refuse it."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None,
        Meta(description="Keep this many numbers, at unit length again; for models trained for it."),
    ] = None
    options: Annotated[
        Options | None, Meta(description="Checked, and named in warnings: none changes a vector.")
    ] = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(Struct, kw_only=True):
    """POST /api/embeddings: one text to turn into a vector, as older clients ask."""

    model: Annotated[Name, Meta(description="The model's name; any model makes embeddings.")]
    prompt: Annotated[str | None, Meta(description="The text.")] = None
    truncate: Annotated[bool | None, Meta(description="As in /api/embed.")] = None
    options: Annotated[Options | None, Meta(description="As in /api/embed.")] = None
    keep_alive: KeepAlive = None


async def embed(call: HttpCall) -> None:
    """Turn texts into vectors; without input load the model, or with keep_alive 0 let go of it."""
    request, raw = await call.struct(EmbedRequest)
    texts = [request.input] if request.input and isinstance(request.input, str) else request.input or []
    if texts:
        check_count("input", texts)
    warnings = [*unknown_fields(raw, EmbedRequest), *_idle(request.options)]
    job = EmbedJob(
        tuple(texts), None, bool(request.truncate), request.dimensions, call.tenant, client=call.caller
    )

    async def work() -> None:
        load_s, vectors = await _vectors(call, request, job)
        durations = {"total_duration": ns(_passed_s(call)), "load_duration": ns(load_s)}

        def body() -> bytes:
            return msgspec.json.encode(
                {
                    "model": request.model,
                    "embeddings": as_numbers(vectors) if vectors else [],
                    **durations,
                    "prompt_eval_count": sum(vectors.tokens) if vectors else 0,
                    "freehold": {"warnings": _with_cuts(warnings, vectors)},
                }
            )

        await call.answer(await call.apart(body, size=json_size(vectors) if vectors else 0))

    await worded(request.model, lambda: call.while_here(work()))


async def embeddings(call: HttpCall) -> None:
    """Turn one text into a vector; without one load the model, or with keep_alive 0 let go of it."""
    request, raw = await call.struct(EmbeddingsRequest)
    warnings = [*unknown_fields(raw, EmbeddingsRequest), *_idle(request.options)]
    texts = (request.prompt,) if request.prompt else ()
    job = EmbedJob(texts, truncate=bool(request.truncate), tenant=call.tenant, client=call.caller)

    async def work() -> None:
        _, vectors = await _vectors(call, request, job)
        row = as_numbers(vectors)[0] if vectors else []
        await call.answer({"embedding": row, "freehold": {"warnings": _with_cuts(warnings, vectors)}})

    await worded(request.model, lambda: call.while_here(work()))


async def _vectors(
    call: HttpCall, r: EmbedRequest | EmbeddingsRequest, job: EmbedJob
) -> tuple[float, Vectors | None]:
    """Return the seconds until the model was in memory, and the vectors; None where nothing was asked for."""
    kept = seconds(r.keep_alive)
    call.work.model = r.model
    if kept == 0 and not job.texts:
        await let_go(call, r.model)
        return 0.0, None
    served = await call.models.use(r.model, kept)
    load_s = _passed_s(call)
    vectors = await served.embed(job, kept) if job.texts else None
    call.work.prompt_tokens = sum(vectors.tokens) if vectors else 0
    return load_s, vectors


def _idle(options: Mapping[str, Any] | None) -> list[str]:
    """Check the options; say of each that it changes no vector."""
    options_read = parameters.read(options or {})
    known = [name for name in parameters.HONOURED if (options or {}).get(name) is not None]
    return [
        *options_read.warnings,
        *(f"option {name} was ignored: it changes no embedding" for name in known),
    ]


def _with_cuts(warnings: list[str], vectors: Vectors | None) -> list[str]:
    return [*warnings, *(cut_warnings(vectors) if vectors else ())]


def _passed_s(call: HttpCall) -> float:
    return time.monotonic() - call.started
