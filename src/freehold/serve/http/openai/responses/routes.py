"""POST /v1/responses, how a response looks, and what is kept of it: read, list what was asked, delete.

Knows the order: earlier items, own items, job, answer, keep. Knows no field's meaning and no item's events.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.base.serving import Begin, ModelHandle
from freehold.base.types import Chunk
from freehold.serve.http.core.answering import COMMENT, CONTENT_TYPE, Answering, Choice
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Pictures, seconds
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.longjson import in_pieces
from freehold.serve.http.core.problems import Problem, Refused
from freehold.serve.http.core.receipt import Tally, context
from freehold.serve.http.openai.fields.chat import unknown_fields
from freehold.serve.http.openai.fields.generating import format_field
from freehold.serve.http.openai.responses.builtin import BuiltInTools
from freehold.serve.http.openai.responses.fields import (
    IN_THE_OPEN,
    ResponseRequest,
    echo,
    refuse_unsupported,
    response_job,
    summarized,
    wanted,
)
from freehold.serve.http.openai.responses.filesearch import FileSearch
from freehold.serve.http.openai.responses.output import Event, McpTools, Output
from freehold.serve.http.openai.responses.store import Extent, Keeping, Responses, StoredItem, StoredResponse
from freehold.serve.http.openai.shape import page, query

_INSTEAD = "send the items that the answer needs, without previous_response_id"
_PREFIXES = {
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "code_interpreter_call": "ci",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
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
    """Answer a list of items (Responses API)."""
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
    search, items = await FileSearch.opened(
        call, request.tools or (), request.tool_choice, request.include or (), request.model, items
    )
    warnings += search.notes
    mcp.first += search.first
    pictures, known = Pictures(), max(len(items) - chat.own, 0)
    built_in = await BuiltInTools.opened(
        call, request.tools or (), request.include or (), request.max_tool_calls, items
    )
    warnings += built_in.warnings
    try:
        served = (*mcp.offered, *built_in.offered)
        job, offered = await call.apart(
            response_job, request, items, known, tenant, warnings, pictures, served
        )
        job = search.with_passages(await call.apart(mcp.with_pictures, job))
        output = Output(
            custom=offered.custom,
            summarize=summarized(request),
            mcp=mcp,
            annotate=search.annotations,
            built_in=built_in.items,
        )
        shape = ResponseShape(
            echo(request, raw),
            output,
            Keeping(store, tenant, chat.stored, before) if request.store is not False else None,
        )
        answering = Answering(
            call,
            shape,
            [job],
            keep_alive=seconds(request.keep_alive),
            warnings=warnings,
            fit=mcp.fit(call),
            pictures=pictures,
            rounds=built_in if built_in.runs else None,
        )
        await (answering.stream if request.stream else answering.whole)(request.model)
    finally:
        built_in.close()


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
    """Return a stored response."""
    if query(call).get("stream") == "true":
        raise Refused(400, "a stored response is given whole; leave stream out", param="stream")
    await call.answer(_store(call).get(call.tenant, _id(call)).response)


async def delete(call: HttpCall) -> None:
    """Delete a stored response; later requests cannot continue from it."""
    _store(call).delete(call.tenant, _id(call))
    await call.answer({"id": _id(call), "object": "response", "deleted": True})


async def cancel(call: HttpCall) -> None:
    """Not supported: a response ends when its client disconnects, and none runs in the background."""
    _store(call).get(call.tenant, _id(call))
    message = "only a response in the background can be cancelled, and this one is finished"
    raise Refused(400, message, code="not_in_background")


async def input_items(call: HttpCall) -> None:
    """List the input items of a stored response, including those of earlier responses."""
    store, params = _store(call), query(call)
    kept = store.get(call.tenant, _id(call))
    earlier = (item for each in store.chat(call.tenant, kept.previous) for item in each.items)
    items = [*earlier, *kept.input]
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
    mcp = any(isinstance(item, dict) and str(item.get("type")).startswith("mcp_") for item in items)
    return ChatSoFar(items, len(own), stored, mentioned, mcp)


def _stored_items(
    references: dict[int, str], named: Callable[[Iterable[str]], dict[str, StoredItem]], limits: ServerLimits
) -> dict[str, StoredItem]:
    """Return by their ids the items that are named; 400 where one is gone, or together they hold too much."""
    items = named(references.values())
    for i, id in references.items():
        if id not in items:
            message = f"input[{i}] refers to {id[:80]!r}, which no stored response has; send the item itself"
            raise Refused(400, message, param=f"input[{i}].id", code="item_not_found")
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


def _store(call: HttpCall) -> Responses:
    store = call.server.part(Responses)
    assert store is not None  # every server keeps responses
    return store


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]


# --- how a response looks: an object with items, or numbered events that end with exactly one that says how

encode = msgspec.json.encode
# How an answer ended -> why its response is incomplete; a refusal is whole, and an item of it says so.
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseShape:
    """Implements AnswerShape for one answer. `echo`: the fields of the request that its answer repeats."""

    content_type = CONTENT_TYPE

    def __init__(self, echo: dict[str, Any], output: Output, keeping: Keeping | None) -> None:
        self._echo, self._output, self._keeping = echo, output, keeping
        self._begin: Begin | None = None
        self._reason = ""
        self._number = 0  # of the next event

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._tally = tally
        head = {"id": f"resp_{answer_id}", "object": "response", "created_at": int(time.time())}
        self._base = {**head, "model": model, **self._echo}

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        """Name the model that answers."""
        self._base["model"] = begin.model or self._base["model"]

    def opened(self, choice: int, begin: Begin) -> bytes:
        """Note what the engine took in; whatever event comes first brings the opening ones with it."""
        self._begin = begin
        return b""

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        return self._events(self._output.add(chunk))

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        self._reason = reason
        return self._events(map(in_pieces, self._output.finish(whole=reason not in _CUT)))

    def closing(self) -> bytes:
        response = in_pieces(self._ended())
        return self._events([{"type": f"response.{response['status']}", "response": response}])

    def keep(self) -> None:
        if self._keeping is not None:
            self._keeping.put()

    def failed(self, trouble: Problem) -> bytes:
        self._output.cut()
        error = {"code": _code(trouble), "message": trouble.message, "param": trouble.param}
        response = self._response("failed", error={**error, "type": trouble.kind, **trouble.extra})
        return self._events([{"type": "response.failed", "response": response}])

    def beat(self) -> bytes:
        return COMMENT

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        (choice,) = choices
        self._begin, self._reason = choice.begin, choice.reason or ""
        for chunk in choice.chunks:
            for _ in self._output.add(chunk):
                pass
        for _ in self._output.finish(whole=self._reason not in _CUT):
            pass
        return in_pieces(self._ended())

    def _ended(self) -> dict[str, Any]:
        """Return the finished response, prepared to be kept if that was asked for."""
        cut = _CUT.get(self._reason)
        why = {"incomplete_details": {"reason": cut}} if cut else {}
        times = {} if cut else {"completed_at": int(time.time())}
        if any("encrypted_content" in item for item in self._output.items):
            self._tally.retract(IN_THE_OPEN)
        more = {**why, **times, "usage": self._usage(), "freehold": self._tally.receipt()}
        response = self._response("incomplete" if cut else "completed", **more)
        labels = self._begin.labels if self._begin is not None else ()
        lost = self._keeping.prepare(response, labels, self._output.kept) if self._keeping else ""
        if lost:
            response["store"] = False
            response["freehold"]["warnings"] = [*response["freehold"]["warnings"], lost]
        return response

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        used = self._begin.sampling if self._begin else None
        return {
            **self._base,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "temperature": used and used.temperature,
            "top_p": used and used.top_p,
            "output": self._output.items,
            "usage": None,
            **more,
        }

    def _usage(self) -> dict[str, Any]:
        read, completion = self._tally.prompt_tokens, self._tally.completion_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {
                "cached_tokens": self._tally.cached_tokens,
                "cache_write_tokens": self._tally.written_tokens + self._tally.written_hour_tokens,
            },
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": self._tally.thought_tokens},
            "total_tokens": read + completion,
        }

    def _events(self, events: Iterable[Event]) -> bytes:
        """Number and write events; before the first one, those that open a response."""
        listed = list(events)
        if not listed:
            return b""
        return b"".join(self._event(each) for each in [*self._opening(), *listed])

    def _opening(self) -> list[Event]:
        if self._number:
            return []
        response = {**self._response("in_progress"), "output": []}
        if self._begin is not None:
            response["freehold"] = {"context": context(self._begin)}
        return [
            {"type": "response.created", "response": response},
            {"type": "response.in_progress", "response": response},
        ]

    def _event(self, event: Event) -> bytes:
        data = encode({"type": event["type"], "sequence_number": self._number, **event})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


def _code(trouble: Problem) -> str:
    """Return the code by which clients tell what to do: wait, shorten the chat, or give up."""
    if trouble.status == 429:
        return "rate_limit_exceeded"
    if trouble.status >= 500:
        return "server_error"
    own = ("context_length_exceeded", "insufficient_quota", "policy_refused")
    return trouble.code if trouble.code in own else "invalid_prompt"
