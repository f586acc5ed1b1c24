"""POST /v1/responses, and what is kept of its answers: read, list what was asked, delete.

Knows the order: earlier items, own items, job, answer, keep. Knows no field's meaning and no event.
Path: Gate -> create -> response_job -> Answering -> ResponseShape; retrieve and its like -> Responses
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.server.core.answering import Answering
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.limits import ServerLimits
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
from freehold.server.openai.responses.store import Extent, Keeping, Responses, StoredItem, StoredResponse
from freehold.server.openai.responses.tools import McpTools, wanted

_INSTEAD = "send the items that the answer needs, without previous_response_id"
_PREFIXES = {
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "mcp_approval_response": "mcprs",
}


@dataclass(frozen=True, slots=True)
class ChatSoFar:
    """What a request asks, with the chat before it."""

    items: list[Any]  # all of the chat
    own: int  # how many of them, at the end, are the request's
    stored: tuple[StoredItem, ...]  # its own as they are kept; none where they are not
    named: tuple[str, ...]  # ids of its items: of stored ones that it refers to, and of those that it repeats
    mcp: bool  # whether one of them is of MCP's


async def create(call: HttpCall) -> None:
    """Answer items with items."""
    request, raw = await call.struct(ResponseRequest)
    refuse_unsupported(request, raw)
    warnings = unknown_fields(raw, ResponseRequest)
    store, tenant, before = _store(call), call.tenant, request.previous_response_id
    history, limits = store.chat(tenant, before), call.server.limits
    extent = sum((kept.extent for kept in history), Extent())
    extent.check(limits, "the chat so far has", _INSTEAD, "previous_response_id", "chat_too_long")
    call.hold(extent.weight)
    chat = await call.apart(_read, request, history, lambda ids: store.named(tenant, ids), limits)
    call.inherited = store.labels(tenant, before, chat.named)
    call.fields = {"format": format_field(request) or "text.format", "tools": "tools"}
    mcp, items = await _used(call, request.tools or (), chat)
    pictures, known = Pictures(), max(len(items) - chat.own, 0)
    job, offered = await call.apart(
        response_job, request, items, known, tenant, warnings, pictures, mcp.offered
    )

    shape = ResponseShape(
        echo(request, raw),
        Output(custom=offered.custom, summarize=summarized(request), mcp=mcp),
        Keeping(store, tenant, chat.stored, before) if request.store is not False else None,
    )
    keep_alive = seconds(request.keep_alive)
    answering = Answering(call, shape, [job], keep_alive=keep_alive, warnings=warnings, pictures=pictures)
    await (answering.stream if request.stream else answering.whole)(request.model)


async def _used(call: HttpCall, tools: Sequence[Any], chat: ChatSoFar) -> tuple[McpTools, list[Any]]:
    """Start the servers that a request names and run what it approves, for as long as its client is there."""
    if not (chat.mcp or wanted(tools)):
        return McpTools(None, {}), chat.items
    done: list[tuple[McpTools, list[Any]]] = []

    async def use() -> None:
        mcp = await McpTools.opened(call, tools)
        try:
            done.append((mcp, await mcp.read(chat.items)))
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
    store, params = _store(call), query(call)
    kept = store.get(call.tenant, _id(call))
    earlier = (item for each in store.chat(call.tenant, kept.previous) for item in each.items)
    items = [*earlier, *kept.asked]
    if params.get("order", "desc") != "asc":
        items.reverse()
    await call.answer(page(items, params, lambda item: msgspec.Raw(item.data)))


def _read(
    request: ResponseRequest,
    history: Sequence[StoredResponse],
    named: Callable[[Iterable[str]], dict[str, StoredItem]],
    limits: ServerLimits,
) -> ChatSoFar:
    """Return the chat's items, stored ones parsed and references replaced by what they name."""
    input = request.input
    if isinstance(input, str):
        input = [{"type": "message", "role": "user", "content": input}]
    references = _references(input)
    found_items = _stored_items(references, named, limits)
    parsed = {id: item.parsed() for id, item in found_items.items()}
    own = [parsed[references[i]] if i in references else item for i, item in enumerate(input)]
    items = [item.parsed() for kept in history for item in kept.items] + own
    stored: tuple[StoredItem, ...] = ()
    if request.store is not False:
        stored = tuple(
            found_items[references[i]] if i in references else _stored(own[i]) for i in range(len(own))
        )
    ids = (item["id"] for item in input if isinstance(item, dict) and isinstance(item.get("id"), str))
    mentioned = tuple(dict.fromkeys((*found_items, *ids)))
    return ChatSoFar(items, len(own), stored, mentioned, any(_is_mcp(item) for item in items))


def _stored_items(
    references: dict[int, str],
    named: Callable[[Iterable[str]], dict[str, StoredItem]],
    limits: ServerLimits,
) -> dict[str, StoredItem]:
    """Return by their ids the items that are named; 400 where one is gone, or together they hold too much."""
    items = named(references.values())
    for i, id in references.items():
        if id not in items:
            raise Refused(
                400,
                f"input[{i}] refers to {id[:80]!r}, which no stored response has; send the item itself",
                param=f"input[{i}].id",
                code="item_not_found",
            )
    extent = Extent.of([items[id] for id in references.values()])  # each time that one is named
    extent.check(limits, "the items that input refers to have", "refer to fewer", "input", None)
    return items


def _stored(item: Any) -> StoredItem:
    """Return an item of the request as it is kept, with an id."""
    if not isinstance(item, dict):  # it will be refused
        item = {"content": item}
    return StoredItem.of(item if isinstance(item.get("id"), str) else {**item, "id": _new_id(item)})


def _references(input: list[Any]) -> dict[int, str]:
    """Return the ids of the items that are named, by their place."""
    return {i: str(item.get("id")) for i, item in enumerate(input) if _is_reference(item)}


def _is_reference(item: Any) -> bool:
    """Tell whether an item names another; OpenAI lets it leave its type out."""
    return isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})


def _new_id(item: dict[str, Any]) -> str:
    kind = str(item.get("type", "message"))  # of an item that is only kept, it may be anything
    return f"{_PREFIXES.get(kind, 'msg')}_{secrets.token_hex(12)}"


def _is_mcp(item: Any) -> bool:
    """Tell whether an item is for tools.py to read."""
    return isinstance(item, dict) and str(item.get("type")).startswith("mcp_")


def _store(call: HttpCall) -> Responses:
    store = call.server.part(Responses)
    assert store is not None  # every server keeps responses
    return store


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]
