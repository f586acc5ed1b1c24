"""POST /api/chat and POST /api/generate: their shared handler loads a model, unloads it, or answers.

It calls the steps of a request in order, and words errors for this protocol.
Path: chat, generate -> answer -> Answering -> OllamaShape
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from freehold.errors import ModelNotFound, Overloaded
from freehold.server.core.answering import Answering
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.pictures import Pictures
from freehold.server.ollama.fields import (
    GenerateRequest,
    OllamaChatRequest,
    OllamaGenerating,
    chat_job,
    is_empty,
    text_job,
)
from freehold.server.ollama.shape import OllamaChatShape, OllamaShape, OllamaTextShape, loaded
from freehold.server.ollama.wording import refusal
from freehold.serving import Job, tokenizer_of


async def answer(
    call: HttpCall,
    r: OllamaGenerating,
    job: Job,
    shape: OllamaShape,
    warnings: list[str],
    pictures: Pictures,
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
    """Answer a prompt; without one load the model, or unload it with keep_alive 0."""
    request, raw = await call.struct(GenerateRequest)
    pictures = Pictures()
    ollama_job = await call.apart(text_job, request, raw, call.tenant, pictures)
    if is_empty(request):
        await load_only(call, request, {"response": ""})
        return
    job = ollama_job.job
    if request.context:
        job = await _behind(call, request, job)
    ids = not (request.raw or request.suffix)
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
    """Answer a chat; without messages load the model, or unload it with keep_alive 0."""
    request, raw = await call.struct(OllamaChatRequest)
    pictures = Pictures()
    ollama_job = await call.apart(chat_job, request, raw, call.tenant, pictures)
    if is_empty(request):
        await load_only(call, request, {"message": {"role": "assistant", "content": ""}})
        return
    shape = OllamaChatShape(logprobs=ollama_job.job.logprobs is not None, context=ollama_job.context)
    await answer(call, request, ollama_job.job, shape, ollama_job.warnings, pictures)
