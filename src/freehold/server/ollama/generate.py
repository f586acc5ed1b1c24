"""POST /api/generate: a prompt in, its answer or continuation out, a line of JSON a piece.

Knows the route; fields.py reads, shape.py writes. An earlier answer's `context` is ids: the new turn is rendered
and put after them. Path: Gate -> generate -> fields.text_job -> generating.answer
"""

from __future__ import annotations

from dataclasses import replace

from freehold.server.core.call import HttpCall
from freehold.server.core.pictures import Pictures
from freehold.server.ollama.fields import GenerateRequest, is_empty, text_job
from freehold.server.ollama.generating import answer, load_only, worded
from freehold.server.ollama.shape import OllamaTextShape
from freehold.serving import Job, tokenizer_of


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
