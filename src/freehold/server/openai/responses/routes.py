"""POST /v1/responses, and what is kept of its answers: read, list what was asked, delete.

Knows the order: earlier items, own items, job, answer, keep. Knows no field's meaning and no event.
Path: Gate -> create -> response_job -> Answering -> ResponseShape; retrieve and its like -> Responses
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.server.core.answering import Answering
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.pictures import Pictures
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.structured import format_field
from freehold.server.openai.fields.unknown import unknown_fields
from freehold.server.openai.pages import page, query
from freehold.server.openai.responses.fields import (
    ResponseRequest,
    echo,
    refuse_unsupported,
    response_job,
    summarized,
)
from freehold.server.openai.responses.output import Output
from freehold.server.openai.responses.shape import ResponseShape
from freehold.server.openai.responses.store import Responses
from freehold.server.openai.responses.tools import McpTools

MAX_REFERRED = 16 << 20  # bytes of the items that references stand for: each may name the same one again
_PREFIXES = {
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "mcp_approval_response": "mcprs",
}


async def create(call: HttpCall) -> None:
    """Answer items with items."""
    request, raw = await call.struct(ResponseRequest)
    refuse_unsupported(request, raw)
    warnings = unknown_fields(raw, ResponseRequest)
    store, tenant, before = _store(call), call.tenant, request.previous_response_id
    earlier = store.chat(tenant, before)
    call.inherited = store.labels(tenant, before, _references(request.input).values())
    own = _own(request.input, store, tenant)
    call.fields = {"format": format_field(request) or "text.format", "tools": "tools"}
    mcp, items = await _used(call, request.tools or (), [*earlier, *own])
    pictures, known = Pictures(), max(len(items) - len(own), 0)
    job, offered = response_job(request, items, known, tenant, warnings, pictures, mcp.offered)

    def keep(response: dict[str, Any], labels: tuple[str, ...]) -> str:
        return store.keep(tenant, response, _named(own), before, labels)

    shape = ResponseShape(
        echo(request, raw),
        Output(custom=offered.custom, summarize=summarized(request), mcp=mcp),
        keep if request.store is not False else None,
    )
    keep_alive = seconds(request.keep_alive)
    answering = Answering(call, shape, [job], keep_alive=keep_alive, warnings=warnings, pictures=pictures)
    await (answering.stream if request.stream else answering.whole)(request.model)


async def _used(call: HttpCall, tools: Sequence[Any], items: Sequence[Any]) -> tuple[McpTools, list[Any]]:
    """Start the servers that a request names and run what it approves, for as long as its client is there."""
    done: list[tuple[McpTools, list[Any]]] = []

    async def use() -> None:
        mcp = await McpTools.opened(call, tools)
        try:
            done.append((mcp, await mcp.read(items)))
        finally:
            await mcp.aclose()

    await call.while_here(use())
    return done[0]


async def retrieve(call: HttpCall) -> None:
    """Give a stored response again."""
    if query(call).get("stream") == "true":
        raise Refused(400, "a stored response is given whole; leave stream out", param="stream")
    await call.answer(_store(call).get(call.tenant, _id(call)).response)


async def delete(call: HttpCall) -> None:
    """Forget a stored response; a chat that continues from it ends there."""
    _store(call).delete(call.tenant, _id(call))
    await call.answer({"id": _id(call), "object": "response", "deleted": True})


async def cancel(call: HttpCall) -> None:
    """Refuse: a response ends when its client closes the connection, and none runs in the background."""
    _store(call).get(call.tenant, _id(call))
    raise Refused(
        400,
        "only a response in the background can be cancelled, and this one is finished",
        code="not_in_background",
    )


async def input_items(call: HttpCall) -> None:
    """List the items that a stored response answered, those of earlier responses included."""
    store, asked = _store(call), query(call)
    kept = store.get(call.tenant, _id(call))
    items = [_listed(item) for item in store.chat(call.tenant, kept.previous) + kept.questions()]
    if asked.get("order", "desc") != "asc":
        items.reverse()
    await call.answer(page(items, asked))


def _own(given: str | list[Any], store: Responses, tenant: str) -> list[Any]:
    """Return the request's own items, references replaced by what they name."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    ids = _references(given)
    found = store.named(tenant, ids.values())
    for i, id in ids.items():
        if id not in found:
            raise Refused(
                400,
                f"input[{i}] refers to {id[:80]!r}, which no stored response has; send the item itself",
                param=f"input[{i}].id",
                code="item_not_found",
            )
    sizes = {id: len(msgspec.json.encode(item)) for id, item in found.items()}
    if (size := sum(sizes[id] for id in ids.values())) > MAX_REFERRED:
        raise Refused(
            400,
            f"input refers to items of {size:,} bytes; expected at most {MAX_REFERRED:,}",
            param="input",
        )
    return [found[ids[i]] if i in ids else item for i, item in enumerate(given)]


def _references(given: str | list[Any]) -> dict[int, str]:
    """Return the ids of the items that are named, by their place."""
    if isinstance(given, str):
        return {}
    return {i: str(item.get("id")) for i, item in enumerate(given) if _is_reference(item)}


def _is_reference(item: Any) -> bool:
    """Tell whether an item names another; OpenAI lets it leave its type out."""
    return isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})


def _named(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give an id to each item that came without one."""
    return [item if isinstance(item.get("id"), str) else {**item, "id": _new_id(item)} for item in items]


def _new_id(item: dict[str, Any]) -> str:
    kind = str(item.get("type", "message"))  # of an item that is only kept, it may be anything
    return f"{_PREFIXES.get(kind, 'msg')}_{secrets.token_hex(12)}"


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as lists have it: a message's text in parts."""
    if item.get("type", "message") != "message":
        return item
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {"type": "message", "status": "completed", **item, "content": content}


def _store(call: HttpCall) -> Responses:
    store = call.server.part(Responses)
    assert store is not None  # every server keeps responses
    return store


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]
