"""POST /api/chat, /api/generate, /api/embed and /api/embeddings: a model is loaded, unloaded, or answers.

Their handlers call the steps of a request in order, and word errors for this protocol.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.base.errors import ModelNotFound, Overloaded
from freehold.base.serving import EmbedJob, Job, Vectors, tokenizer_of
from freehold.run.store import parameters
from freehold.serve.http.core.answering import Answering
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import (
    MAX_DIMENSIONS,
    Name,
    Pictures,
    as_numbers,
    check_count,
    cut_warnings,
    doc,
    json_size,
    seconds,
)
from freehold.serve.http.ollama.fields import (
    GenerateRequest,
    OllamaChatRequest,
    OllamaGenerating,
    Options,
    chat_job,
    is_empty,
    text_job,
    unknown_fields,
)
from freehold.serve.http.ollama.shape import (
    OllamaChatShape,
    OllamaShape,
    OllamaTextShape,
    loaded,
    ns,
    refusal,
)


async def answer(
    call: HttpCall, r: OllamaGenerating, job: Job, shape: OllamaShape, warnings: list[str], pictures: Pictures
) -> None:
    """Answer a job, in lines unless `stream` is false."""
    keep_alive = seconds(r.keep_alive)
    answering = Answering(call, shape, [job], keep_alive=keep_alive, warnings=warnings, pictures=pictures)
    run = answering.whole if r.stream is False else answering.stream
    await worded(r.model, lambda: run(r.model))


async def load_only(call: HttpCall, r: OllamaGenerating, fields: dict[str, Any]) -> None:
    """Load the model, or with keep_alive 0 let go of it once it is idle."""
    kept = seconds(r.keep_alive)
    call.work.model = r.model

    async def work() -> None:
        if kept == 0:
            await let_go(call, r.model)
        else:
            await call.models.use(r.model, kept)
        reason = "unload" if kept == 0 else "load"
        await call.answer(loaded(r.model, reason, call.started, fields))

    await worded(r.model, lambda: call.while_here(work()))


async def worded(model: str, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work`; say of an unknown model and of a full queue what this protocol's clients look for."""
    try:
        await work()
    except (ModelNotFound, Overloaded) as e:
        raise refusal(e, model) from e


async def let_go(call: HttpCall, model: str) -> None:
    """Unload an idle model at once; a busy one leaves when its answers have ended. One that is not loaded is gone.

    Raises Refused (403) for a client's key: the model is there for the others too.
    """
    call.server.guard.check_unload(call.key, owner=call.owner)
    name = await call.models.name_of(model)
    models = call.server.models
    info = next((each for each in models.loaded() if each.name == name), None)
    if info is None:
        return
    if info.in_flight:
        await models.use(model, 0)
    else:
        await models.unload(name)


# --- POST /api/generate: a prompt in, its answer or continuation out, a line of JSON a piece --------
# An earlier answer's `context` is ids: the new turn is rendered and put after them.


async def generate(call: HttpCall) -> None:
    """Answer a prompt; without a prompt, load the model, or unload it with keep_alive 0."""
    request, raw = await call.struct(GenerateRequest)
    pictures = Pictures()
    ollama_job = await call.apart(text_job, request, raw, call.tenant, pictures)
    if is_empty(request):
        await load_only(call, request, {"response": ""})
        return
    job = ollama_job.job
    if request.context:
        job = await _behind(call, request, job)
    ids = not (request.raw or request.suffix or request.images)
    if request.images:
        ollama_job.warnings.append("the answer has no context: token ids do not hold pictures")
    shape = OllamaTextShape(logprobs=job.logprobs is not None, context=ollama_job.context, ids=ids)
    await answer(call, request, job, shape, ollama_job.warnings, pictures)


async def _behind(call: HttpCall, r: GenerateRequest, job: Job) -> Job:
    """Return the job whose prompt is the context's ids and then its messages' own."""
    turn: list[int] = []

    async def work() -> None:
        served = await call.models.use(r.model)
        turn.extend(await tokenizer_of(served).render(job.messages or (), job.think, client=call.caller))

    await worded(r.model, lambda: call.while_here(work()))
    context = r.context or []
    again = bool(context and turn and context[0] == turn[0])  # the token that begins a text occurs once
    return replace(
        job, messages=None, prompt=(*context, *turn[again:]), think=None, effort=None, overflow="error"
    )


# --- POST /api/chat: a chat in, an assistant's message out, a line of JSON a piece ------------------


async def chat(call: HttpCall) -> None:
    """Answer a chat; without messages, load the model, or unload it with keep_alive 0."""
    request, raw = await call.struct(OllamaChatRequest)
    pictures = Pictures()
    ollama_job = await call.apart(chat_job, request, raw, call.tenant, pictures)
    if is_empty(request):
        await load_only(call, request, {"message": {"role": "assistant", "content": ""}})
        return
    shape = OllamaChatShape(logprobs=ollama_job.job.logprobs is not None, context=ollama_job.context)
    await answer(call, request, ollama_job.job, shape, ollama_job.warnings, pictures)


# --- POST /api/embed and the older /api/embeddings: texts in, vectors of unit length out ------------
# A text longer than the context is refused unless `truncate` is true, and then named in a warning.

KeepAlive = Annotated[
    float | str | None,
    doc("How long the model stays in memory afterwards; 0 without a text: let go of it now."),
]


class EmbedRequest(Struct, kw_only=True):
    """POST /api/embed: texts to turn into vectors of unit length; without input the model is loaded."""

    model: Annotated[Name, doc("The model's name; any model can compute embeddings.")]
    input: Annotated[str | list[str] | None, doc("A text, or a list of them.")] = None
    truncate: Annotated[
        bool | None,
        doc("true: cut what is longer than the context, and say so. Otherwise refuse it."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None,
        doc("Keep this many dimensions, normalised again; for models trained for it."),
    ] = None
    options: Annotated[Options | None, doc("Checked, and named in warnings: none changes a vector.")] = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(Struct, kw_only=True):
    """POST /api/embeddings: one text to turn into a vector, as older clients ask."""

    model: Annotated[Name, doc("The model's name; any model can compute embeddings.")]
    prompt: Annotated[str | None, doc("The text.")] = None
    truncate: Annotated[bool | None, doc("As in /api/embed.")] = None
    options: Annotated[Options | None, doc("As in /api/embed.")] = None
    keep_alive: KeepAlive = None


async def embed(call: HttpCall) -> None:
    """Turn texts into vectors; without input, load the model, or unload it with keep_alive 0."""
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
    """Turn one text into a vector; without a text, load the model, or unload it with keep_alive 0."""
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
