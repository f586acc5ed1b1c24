"""Shared handler of /api/chat and /api/generate: loads a model, unloads it, or answers; words errors for this protocol.

Calls the steps of a request in order; knows no field of either route.
Path: chat, generate -> answer -> Answering -> OllamaShape
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from freehold.errors import ModelNotFound, Overloaded
from freehold.server.core.answering import Answering
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.pictures import Pictures
from freehold.server.ollama.fields import OllamaGenerating
from freehold.server.ollama.shape import OllamaShape, loaded
from freehold.server.ollama.wording import refusal
from freehold.serving import Job


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
