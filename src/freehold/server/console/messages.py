"""What is done to one message of a chat: taken out and put back, edited, and the begin of a chat of its own.

A chat's file only grows, so a message that is taken out is left out of what is read. Knows chats; knows no model.
Path: Gate -> a handler -> ChatWriter.take_out, ChatWriter.message, ChatFolder.write
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from freehold.chats.exported import branched
from freehold.chats.folder import ChatFolder
from freehold.chats.types import ChatCard, ChatChange, SavedChat, SavedMessage
from freehold.server.console.chats import chat_id, folder_of
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused

MAX_IDS = 200  # messages that are put back at once; a model calls fewer tools in an answer


class OneMessage(Struct, kw_only=True):
    """A message of the chat."""

    message: str


class TakenOut(Struct, kw_only=True):
    """What was taken out, and its chat."""

    chat: ChatCard
    messages: list[str]


class SomeMessages(Struct, kw_only=True):
    """Messages that were taken out together."""

    messages: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=MAX_IDS)]


class EditedAnswer(Struct, kw_only=True):
    """An answer, and what it shall say."""

    message: str
    content: Annotated[str, Meta(min_length=1)]


async def take_out(call: HttpCall) -> None:
    """Take a message out, with the results of tools that it called; what followed it follows the one before it."""
    request, _ = await call.struct(OneMessage)
    await call.answer(await call.in_thread(_taken_out, folder_of(call), chat_id(call), request.message))


async def put_back(call: HttpCall) -> None:
    """Put messages back that were taken out, and show the branch of the first."""
    request, _ = await call.struct(SomeMessages)
    await call.answer(await call.in_thread(_put_back, folder_of(call), chat_id(call), request.messages))


async def edit_answer(call: HttpCall) -> None:
    """Write another version of an answer, which the user worded."""
    request, _ = await call.struct(EditedAnswer)
    await call.answer(await call.in_thread(_edited, folder_of(call), chat_id(call), request), 201)


async def fork(call: HttpCall) -> None:
    """Make a chat of the branch up to a message."""
    request, _ = await call.struct(OneMessage)
    await call.answer(await call.in_thread(_forked, folder_of(call), chat_id(call), request.message), 201)


def _taken_out(mine: ChatFolder, id: str, message: str) -> TakenOut:
    chat = mine.read(id)
    target = _message(chat, message)
    if target.role == "tool":
        raise Refused(400, "a tool's result goes with the answer that called the tool", param="message")
    calls = {each.id for each in target.calls}
    out = [target.id, *(m.id for m in chat.messages.values() if m.role == "tool" and m.call in calls)]
    if any(chat.messages[each].state == "open" for each in out):
        raise Refused(409, "this answer is being written; stop it first", param="message", code="running")
    with mine.writer(id) as writer:
        writer.take_out(out)
        if chat.leaf in out:  # then the newest message beside it
            writer.set(ChatChange(leaf=_end_below(mine.read(id))))
    return TakenOut(chat=mine.read(id).card, messages=out)


def _put_back(mine: ChatFolder, id: str, messages: list[str]) -> ChatCard:
    with mine.writer(id) as writer:
        writer.take_out(messages, back=True)
        chat = mine.read(id)
        _message(chat, messages[0])
        writer.set(ChatChange(leaf=_end_below(chat, messages[0])))
    return mine.read(id).card


def _edited(mine: ChatFolder, id: str, request: EditedAnswer) -> SavedMessage:
    original = _message(mine.read(id), request.message)
    if original.role != "assistant" or original.calls or original.state == "open":
        raise Refused(
            400,
            "only an answer that is written to its end, and calls no tool, can be edited",
            param="message",
        )
    with mine.writer(id) as writer:
        return writer.message(
            "assistant", request.content, parent=original.parent, model=original.model, edited=True
        )


def _forked(mine: ChatFolder, id: str, message: str) -> ChatCard:
    chat = mine.read(id)
    _message(chat, message)
    return mine.write("", chat.card.model, branched(chat, message))


def _message(chat: SavedChat, id: str) -> SavedMessage:
    if (message := chat.messages.get(id)) is None:
        raise Refused(404, f"the chat has no message {id[:80]!r}", param="message", code="no_message")
    return message


def _end_below(chat: SavedChat, id: str | None = None) -> str | None:
    """Return the end of the newest branch through `id`, or through the chat's leaf."""
    newest = {each.parent: each.id for each in chat.messages.values()}
    at = id or chat.leaf
    while (below := newest.get(at)) is not None:
        at = below
    return at
