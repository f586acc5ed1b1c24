"""The routes of runs: start, follow, cancel, approve a tool, compute again, compare two answers.

Every chat and every run is looked up under the caller's folder. Knows requests and JSON; knows no model.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import parse_qs

from msgspec import Meta, Struct

from freehold.base.errors import EngineClosed
from freehold.base.types import Message
from freehold.serve.chats.exported import MAX_MESSAGES
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import (
    AttachedFile,
    ChatSettings,
    SavedChat,
    SavedMessage,
    ToolAnswer,
    ToolRunner,
    ToolVerdict,
)
from freehold.serve.http.console.chats import chat_id, folder_of
from freehold.serve.http.console.login import NothingAsked
from freehold.serve.http.console.runs.again import AgainRun, bits_of, compared, identity_of, plan_again
from freehold.serve.http.console.runs.chatrun import ChatRun
from freehold.serve.http.console.runs.jobs import RunPlan
from freehold.serve.http.console.runs.run import ConsoleRun, Runs
from freehold.serve.http.core.answering import EventStream
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import MAX_PICTURES
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.tools import run_tools, tool_user

MAX_FILES = 64  # of one message
FOR_A_RUN = 200  # messages that one run may add: its answers, and the results of their calls
CHECK_S = 0.25  # while nothing happens, a stream looks so often whether its key or session has ended
LAST_S = 0.15  # for the last events of a run that was cut, before the connection is


class SentMessage(Struct, kw_only=True):
    """What the user says. `images`: references of pictures that were stored in the chat before, or data URLs."""

    content: str
    files: Annotated[tuple[AttachedFile, ...], Meta(max_length=MAX_FILES)] = ()
    images: Annotated[tuple[str, ...], Meta(max_length=MAX_PICTURES)] = ()


class StartRun(Struct, kw_only=True):
    """A message and its place; or a message of the user's to answer once more, or an answer to continue."""

    parent: str | None = None
    message: SentMessage | None = None
    extend: str | None = None  # an answer that was cut off or stopped: a version of it is made that continues
    model: str | None = None
    settings: ChatSettings | None = None


class ComputeAgain(Struct, kw_only=True):
    """An answer that is to be computed again."""

    message: str


class ApproveCall(Struct, kw_only=True):
    """The user's answer to an `ask` event."""

    call: str
    verdict: ToolVerdict
    word: Annotated[str, Meta(max_length=4096)] = ""
    arguments: str | None = None
    digest: str | None = None  # of the tool as the question described it; the answer holds for no other


async def start(call: HttpCall) -> None:
    """Answer a message in a chat; the answer is completed even if the client disconnects."""
    request, _ = await call.struct(StartRun)
    folder, id = folder_of(call), chat_id(call)
    _runs(call).admit(call.caller)
    chat = await call.in_thread(folder.read, id)
    begun = _begun(chat, request.extend) if request.extend is not None else None
    model = request.model or (begun and begun.model) or chat.card.model
    if not model:
        raise Refused(400, "neither the request nor the chat names a model", param="model")
    await call.models.name_of(model)
    settings = request.settings or chat.settings
    if len(chat.messages) > MAX_MESSAGES - FOR_A_RUN:
        most = MAX_MESSAGES - FOR_A_RUN
        raise Refused(
            400,
            f"this chat has {len(chat.messages):,} messages; the limit is {most:,}: start a new chat",
            code="chat_too_long",
        )
    parent, message = (begun.parent or "", None) if begun else _asked_message(chat, request)
    plan = await call.in_thread(RunPlan.of, chat, parent, model, settings, folder.pictures(id))
    plan.extends = begun and Message("assistant", begun.content, begun.thinking)
    tools = _tools(call, id, settings.tools)
    with _runs(call).place(call.caller):  # others may have come meanwhile
        user, answer, writer = await call.in_thread(_written, folder, id, message, parent, model, plan)
        identity = asyncio.create_task(identity_of(call.models, model))
        run = ChatRun(call, folder, id, plan, writer, answer, tools, identity)
        _runs(call).start(run)
    await call.answer({"run": run.id, "user": user, "answer": answer}, 201)


def _begun(chat: SavedChat, id: str) -> SavedMessage:
    """Return the answer to continue. Raises Refused for one that is whole, empty, or calls tools."""
    answer = _answer(chat, id, "extend")
    if answer.state not in ("stopped", "length", "lost", "failed") or answer.parent is None or answer.calls:
        message = "only an answer that was cut off or stopped, and calls no tool, can be continued"
        raise Refused(400, message, param="extend")
    if not (answer.content or answer.thinking):
        raise Refused(400, "the answer is empty: ask for another one", param="extend")
    return answer


def _asked_message(chat: SavedChat, request: StartRun) -> tuple[str, SavedMessage | None]:
    """Return the message to answer, and the user's new one if it is that; it is put into `chat`."""
    if request.parent is not None and request.parent not in chat.messages:
        why = f"the chat has no message {request.parent[:80]!r}"
        raise Refused(404, why, param="parent", code="no_message")
    if request.message is not None:
        sent = request.message
        message = SavedMessage(
            id=secrets.token_hex(8),  # the chat may have any other
            parent=request.parent,
            role="user",
            content=sent.content,
            files=sent.files,
            images=sent.images,
        )
        chat.messages[message.id] = message
        return message.id, message
    if request.parent is None or chat.messages[request.parent].role not in ("user", "tool"):
        why = "without a message, parent has to be a message of the user's to answer"
        raise Refused(400, why, param="parent")
    return request.parent, None


def _written(
    folder: ChatFolder, chat: str, message: SavedMessage | None, parent: str, model: str, plan: RunPlan
) -> tuple[SavedMessage | None, SavedMessage, Any]:
    """Write the user's message and the beginning of the answer; nothing is left open where that fails."""
    writer = folder.writer(chat)
    try:
        user = None
        if message is not None:
            user = writer.message(
                "user",
                message.content,
                parent=message.parent,
                files=message.files,
                images=message.images,
                id=message.id,
            )
        begun = {"content": plan.extends.content, "thinking": plan.extends.thinking} if plan.extends else {}
        answer = writer.open_answer(parent=user.id if user else parent, model=model, **begun)
        return user, answer, writer
    except BaseException:
        writer.close()
        raise


async def events(call: HttpCall) -> None:
    """Stream the events of a run, from the beginning or after an event; a slow client does not delay the run."""
    log, at = _run(call).events, _after(call)
    if at > log.last:  # of another run
        at = 0

    async def follow(stream: EventStream) -> None:
        nonlocal at
        while not log.over or log.last > at:
            if not call.admitted(used=log.last > at):
                return
            data, at = log.after(at), log.last
            if data:
                await stream.send(data)
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await log.beyond(at)

    async with EventStream(call) as stream:
        try:
            await call.while_here(follow(stream))
        except EngineClosed:  # the server stops, and has cut the run too: its last events tell how it ended
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await follow(stream)
        await stream.send(b"", more=False)


async def cancel(call: HttpCall) -> None:
    """Stop a run; the chat keeps the partial answer."""
    await call.struct(NothingAsked)
    _run(call).cancel()
    await call.answer({})


async def approve(call: HttpCall) -> None:
    """Allow or deny a tool's call."""
    request, _ = await call.struct(ApproveCall)
    run = _run(call)
    if not isinstance(run, ChatRun):
        raise Refused(404, "this run asks about no tool", code="no_call")
    # Without keys all local clients share the chats, and tools are the owner's.
    if tool_user(call) != run.tenant:
        raise Refused(403, "another caller's run asks about this tool", code="not_permitted")
    answer = ToolAnswer(verdict=request.verdict, word=request.word, arguments=request.arguments)
    run.approve(request.call, answer, request.digest)
    await call.answer({})


async def again(call: HttpCall) -> None:
    """Generate an answer again and compare it, token by token."""
    request, _ = await call.struct(ComputeAgain)
    folder, id = folder_of(call), chat_id(call)
    _runs(call).admit(call.caller)
    chat = await call.in_thread(folder.read, id)
    message = _answer(chat, request.message, "message")
    kept = await call.in_thread(bits_of, message)
    names = (message.receipt or {})["bits"]["settings"].get("tools") or ()
    plan = await call.in_thread(plan_again, chat, message, kept, folder.pictures(id))
    run = AgainRun(call, folder, chat, message, kept, plan, _tools(call, id, names))
    await call.models.name_of(run.model)
    _runs(call).admit(call.caller)  # others may have come meanwhile
    _runs(call).start(run)
    await call.answer({"run": run.id}, 201)


async def difference(call: HttpCall) -> None:
    """Compare two answers of a chat: whether they are equal, the first token that differs, and both speeds."""
    params = parse_qs(call.scope["query_string"].decode("latin-1"))
    chat = await call.in_thread(folder_of(call).read, chat_id(call))
    a, b = (_answer(chat, params.get(name, [""])[0], name) for name in ("a", "b"))
    await call.answer(await call.in_thread(_difference, a, b))


def _difference(a: SavedMessage, b: SavedMessage) -> dict[str, Any]:
    one, other = bits_of(a), bits_of(b)
    receipts = [a.receipt or {}, b.receipt or {}]
    kinds = [(r["bits"]["model"], r["bits"]["digest"]) for r in receipts]
    texts = [a.thinking + a.content, b.thinking + b.content]
    comparison = compared(one, texts[0], other, texts[1], ids=kinds[0] == kinds[1])
    speeds = [receipt.get("tok_s") for receipt in receipts]
    return {**comparison, "tokens": [len(one.ids), len(other.ids)], "tok_s": speeds}


def _answer(chat: SavedChat, id: str, param: str) -> SavedMessage:
    message = chat.messages.get(id)
    if message is None or message.role != "assistant":
        raise Refused(404, f"the chat has no answer {id[:80]!r}", param=param, code="no_message")
    return message


def _tools(call: HttpCall, chat: str, names: Sequence[str]) -> ToolRunner | None:
    """Return the tools of the servers `names`, which stay for the chat's next run; None for no names."""
    return run_tools(call, chat, names, keep=True) if names else None


def _after(call: HttpCall) -> int:
    """Return the number of the last event that the reader has: by the query, or as a browser repeats it."""
    value = parse_qs(call.scope["query_string"].decode("latin-1")).get("after", [""])[0]
    value = value or call.headers.get(b"last-event-id", b"0").decode("latin-1")
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise Refused(400, f"after is {value[:40]!r}; expected the number of an event", param="after")
    return int(value)


def _runs(call: HttpCall) -> Runs:
    return call.part(Runs, 404, "this server keeps no chats", "no_route")


def _run(call: HttpCall) -> ConsoleRun:
    return _runs(call).get(call.scope["path_params"]["run"], folder_of(call))
