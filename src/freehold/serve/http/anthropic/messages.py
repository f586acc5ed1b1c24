"""Anthropic's routes: POST /v1/messages and /v1/messages/count_tokens, and GET /v1/models for its clients.

A chat in, an assistant's message or a number out; answering.py runs the steps of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from freehold.base.serving import EstimatedCount, Job, LoadedInfo, ModelInfo, StoredModel
from freehold.serve.http.anthropic.fields import CountRequest, MessagesRequest
from freehold.serve.http.anthropic.job import counted_job, fit, message_job, unknown_fields
from freehold.serve.http.anthropic.shape import STATUSES, MessageShape
from freehold.serve.http.core.answering import Answering
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import ESTIMATED, Pictures, seconds
from freehold.serve.http.core.listing import answer_one, listed
from freehold.serve.http.core.media import checked
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.receipt import Tally


async def messages(call: HttpCall) -> None:
    """Answer a chat, in Anthropic's format."""
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
    """Count the tokens of a chat with its tools, even if it is longer than the context."""
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
        (fetched,) = await checked(call, pictures, served.info, [job])
        tokens = await served.count(replace(fit(fetched, served.info, tally), client=call.caller))
        await call.in_turn()  # an engine counts many at once
        if isinstance(tokens, EstimatedCount):
            tally.warn(ESTIMATED)
        tokens = int(tokens)
        call.work.prompt_tokens = tokens
        more = {"context": {"limit": served.info.context, "used": tokens}, "warnings": tally.warnings}
        await call.answer({"input_tokens": tokens, "freehold": more})

    await call.while_here(work())


# --- GET /v1/models and /v1/models/{id} for clients of Anthropic's, which a header distinguishes ----

PAGE, MAX_PAGE = 20, 1000  # models of an answer


async def models(call: HttpCall) -> None:
    """List the models, a page at a time: `limit`, `after_id`, `before_id`."""
    params = dict(parse_qsl(call.scope["query_string"].decode("latin-1")))
    page, more = _page(await listed(call, _model), params)
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    await call.answer({"data": page, "has_more": more, "first_id": first, "last_id": last})


async def model(call: HttpCall) -> None:
    """Describe one; its id may hold `/` and `:`."""
    await answer_one(call, _model)


def _page(all_: Sequence[dict[str, Any]], params: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of models, and whether there are more in its direction."""
    limit = params.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise Refused(400, f"limit is {limit[:20]!r}; expected 1 to {MAX_PAGE:,}", param="limit")
    ids, size = [each["id"] for each in all_], int(limit)
    if "after_id" in params:
        rest = all_[_place(ids, params["after_id"], "after_id") + 1 :]
        return list(rest[:size]), len(rest) > size
    if "before_id" in params:
        rest = all_[: _place(ids, params["before_id"], "before_id")]
        return list(rest[-size:]), len(rest) > size
    return list(all_[:size]), len(all_) > size


def _place(ids: Sequence[str], id: str, name: str) -> int:
    if id not in ids:
        raise Refused(400, f"{name} is {id[:60]!r}, which is not a model here", param=name)
    return ids.index(id)


def _model(name: str, held: StoredModel | None, loaded: Mapping[str, LoadedInfo]) -> dict[str, Any]:
    created = datetime.fromtimestamp(held.modified if held else 0, UTC)
    info = loaded.get(held.parent or name if held else name)
    context = info.info.context if info else None
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "lifecycle": "active",
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": context,  # known once it is in memory
        "max_tokens": context,
        "capabilities": _capabilities(info.info) if info else None,
    }


def _capabilities(info: ModelInfo) -> dict[str, Any]:
    """Return what a model in memory can do, with every key that Anthropic's clients read."""

    def able(supported: bool, **more: Any) -> dict[str, Any]:
        return {"supported": supported, **more}

    thinks = info.thinking != "none"
    levels = {level: able(level in info.efforts) for level in ("low", "medium", "high", "xhigh", "max")}
    types = {"adaptive": thinks, "enabled": thinks, "disabled": True, "between_tools": False}
    return {
        "batch": able(False),
        "citations": able(False),
        "code_execution": able(False),
        "context_management": able(False),
        "effort": able(bool(info.efforts), **levels),
        "image_input": able(info.can_see),
        "pdf_input": able(False),
        "server_tools": able(False, code_execution=able(False), web_search=able(False)),
        "structured_outputs": able(info.can_chat),
        "thinking": able(thinks, types={name: able(has) for name, has in types.items()}),
    }
