"""POST /v1/messages and /v1/messages/count_tokens: a chat in, an assistant's message or a number out.

Knows Anthropic's routes; answering.py runs the steps of a request.
Path: Gate -> messages -> job.message_job -> Answering -> MessageShape
"""

from __future__ import annotations

from dataclasses import replace

from freehold.server.anthropic.errors import STATUSES
from freehold.server.anthropic.fields import CountRequest, MessagesRequest
from freehold.server.anthropic.job import counted_job, fit, message_job, unknown_fields
from freehold.server.anthropic.shape import MessageShape
from freehold.server.core.answering import Answering
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import ESTIMATED
from freehold.server.core.pictures import Pictures
from freehold.server.core.receipt import Tally
from freehold.serving import EstimatedCount, Job


async def messages(call: HttpCall) -> None:
    """Answer a chat, as Anthropic does."""
    call.statuses = STATUSES
    request, raw = await call.struct(MessagesRequest)
    pictures, warnings = Pictures(), list[str]()

    def read() -> Job:
        warnings.extend(unknown_fields(raw, MessagesRequest))
        return message_job(request, call.tenant, warnings, pictures)

    job = await call.apart(read)
    hidden = request.thinking is not None and request.thinking.display == "omitted"
    shape = MessageShape(call.request_id, request.max_tokens, show_thinking=not hidden)
    keep_alive = seconds(request.keep_alive)
    answering = Answering(
        call, shape, [job], keep_alive=keep_alive, warnings=warnings, fit=fit, pictures=pictures
    )
    await (answering.stream if request.stream else answering.whole)(request.model)


async def count_tokens(call: HttpCall) -> None:
    """Count the tokens of a chat with its tools, also of one that is too long to be answered."""
    call.statuses = STATUSES
    request, raw = await call.struct(CountRequest)
    pictures, warnings = Pictures(), list[str]()

    def read() -> Job:
        warnings.extend(unknown_fields(raw, CountRequest))
        return counted_job(request, warnings, pictures)

    job = await call.apart(read)
    tally = Tally([job], call.started, warnings)
    call.work.model = request.model

    async def work() -> None:
        served = await call.models.use(request.model)
        pictures.check(served.info)
        tokens = await served.count(replace(fit(job, served.info, tally), client=call.caller))
        if isinstance(tokens, EstimatedCount):
            tally.warn(ESTIMATED)
        tokens = int(tokens)
        call.work.prompt_tokens = tokens
        more = {"context": {"limit": served.info.context, "used": tokens}, "warnings": tally.warnings}
        await call.answer({"input_tokens": tokens, "freehold": more})

    await call.while_here(work())
