"""A chat as a file to keep or to carry elsewhere: JSON with all of it, Markdown to read.

What is imported is checked against limits before anything is written. Knows no folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from freehold.base.errors import StoreError, UsageError
from freehold.serve.chats.pictures import ChatPictures, decoded_url, is_reference, reference_of
from freehold.serve.chats.types import (
    MESSAGE_ID,
    ChatChange,
    ChatLine,
    ChatSettings,
    Role,
    SavedChat,
    SavedMessage,
)
from freehold.serve.chats.writer import MAX_CHAT_BYTES, line_of

FORMAT = "freehold-chat"
MAX_MESSAGES = 20_000  # of a chat that is exported or imported; one of them takes 2,000 hours to read
MAX_EXPORT_BYTES = MAX_CHAT_BYTES + (64 << 10)  # as JSON: a chat's file has each message longer than this
MAX_AT = 253_402_300_800.0  # the year 10000: a page can write no later date
SPACED = 8  # times MAX_TITLE that a title with its spaces may have
MAX_TITLE = 200  # characters


class ExportedMessage(SavedMessage, kw_only=True, omit_defaults=True):
    """A message of an export, which leaves out what is empty."""


class ExportedChat(Struct, kw_only=True):
    """A chat as JSON. Messages in an order in which a parent comes before its children."""

    messages: list[ExportedMessage]
    format: str = FORMAT
    version: int = 2
    title: str = ""
    model: str = ""
    created: str = ""
    leaf: str | None = None
    settings: ChatSettings = msgspec.field(default_factory=ChatSettings)
    pictures: dict[str, str] = msgspec.field(default_factory=dict)  # by reference, each a data: URL


@dataclass(frozen=True, slots=True)
class TakenChat:
    """A chat that was exported, as it is written. `pictures`: by reference."""

    model: str
    lines: list[ChatLine]
    pictures: dict[str, bytes | Path]


def exported(chat: SavedChat, pictures: ChatPictures) -> bytes:
    """Return all of a chat as JSON, each picture once; an answer in progress as far as it came.

    Raises UsageError where `taken` would refuse it: a file that no server takes in is not given out.
    """
    if len(chat.messages) > MAX_MESSAGES:
        raise UsageError(
            f"the chat has {len(chat.messages):,} messages; at most {MAX_MESSAGES:,} can be exported as JSON",
            "export it as Markdown",
        )
    whole = _whole(chat)
    sizes = _sizes(whole, pictures)
    _check_size(sum(sizes.values()) * 4 // 3)  # before they are read: they may be gigabytes
    whole.pictures = {reference: pictures.url(reference) for reference in sizes}
    for message in whole.messages:
        message.images = tuple(each for each in message.images if each in sizes or not is_reference(each))
    data = msgspec.json.encode(whole)
    _check_size(len(data))
    return data


def _sizes(chat: ExportedChat, pictures: ChatPictures) -> dict[str, int]:
    """Return the bytes of each picture that the messages name; one that was lost is left out."""
    sizes: dict[str, int] = {}
    for message in chat.messages:
        for each in filter(is_reference, message.images):
            with suppress(StoreError):
                sizes[each] = pictures.size(each)
    return sizes


def _check_size(size: int) -> None:
    if size > MAX_EXPORT_BYTES:
        raise UsageError(
            f"the chat has {size:,} bytes with its pictures; at most {MAX_EXPORT_BYTES:,} can be exported as JSON",
            "export it as Markdown, which has no pictures",
        )


def branched(chat: SavedChat, leaf: str) -> list[ChatLine]:
    """Return the lines of a chat that has the branch up to `leaf` alone, with the settings of `chat`."""
    whole = _whole(chat)
    whole.title = whole.title if chat.card.named else ""
    kept = {message.id for message in chat.branch(leaf)}
    whole.messages, whole.leaf = [m for m in whole.messages if m.id in kept], leaf
    return list(_lines(whole))


def pictures_of(chat: SavedChat, leaf: str, pictures: ChatPictures) -> dict[str, bytes | Path]:
    """Return the files of the pictures that the branch up to `leaf` names."""
    named = (each for message in chat.branch(leaf) for each in message.images if is_reference(each))
    return {each: pictures.file(each) for each in named}


def _whole(chat: SavedChat) -> ExportedChat:
    fields = SavedMessage.__struct_fields__
    return ExportedChat(
        title=chat.card.title,
        model=chat.card.model,
        created=chat.card.created,
        leaf=chat.leaf,
        settings=chat.settings,
        messages=[ExportedMessage(**{n: getattr(m, n) for n in fields}) for m in chat.messages.values()],
    )


def markdown(chat: SavedChat) -> str:
    """Return the branch that is shown, to be read: who said what, in order."""
    names = {"user": "You", "system": "System", "tool": "Tool"}
    parts = [f"# {chat.card.title or 'Chat'}"]
    if chat.settings.system:
        parts.append(f"## System\n\n{chat.settings.system}")
    for message in chat.branch():
        name = names.get(message.role) or message.model or chat.card.model or "Answer"
        files = [f"File {file.name}:\n\n{_fenced(file.text)}" for file in message.files]
        thought = ["\n".join(f"> {line}" for line in message.thinking.splitlines())]
        seen = [f"[{len(message.images)} picture{'s' * (len(message.images) > 1)}]" if message.images else ""]
        parts_of_message = [part for part in (*seen, *files, *thought, message.content) if part]
        parts.append("\n\n".join([f"## {name}", *parts_of_message]))
    return "\n\n".join(parts) + "\n"


def _fenced(text: str) -> str:
    """Return text in a fence longer than any run of backticks in it."""
    longest = max((len(match[0]) for match in re.finditer("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def taken(raw: Any, *, system: bool) -> TakenChat:
    """Check an exported chat, and return what is written of it.

    Raises UsageError, which names what is wrong.

    A file may be a stranger's. The tools that it asks for are left out: with a standing permission its first message
    would run one. `system`: whether it keeps its system prompt and the system messages among the others.
    """
    try:
        chat = msgspec.convert(_one_by_one(raw), ExportedChat)
    except msgspec.ValidationError as e:
        raise UsageError(
            f"this is not an exported chat: {e}", "import the JSON that Export wrote", field="chat"
        ) from None
    if chat.format != FORMAT:
        raise UsageError(
            f"the format is {chat.format[:40]!r}; expected {FORMAT!r}", "import the JSON that Export wrote"
        )
    if len(chat.messages) > MAX_MESSAGES:
        raise UsageError(
            f"the chat has {len(chat.messages):,} messages; at most {MAX_MESSAGES:,} can be imported"
        )
    _check_tree(chat)
    pictures = _taken_pictures(chat)
    chat.settings.tools = []
    if not system:
        chat.settings.system = ""
        _leave_out(chat, "system")
    return TakenChat(chat.model, list(_lines(chat)), pictures)


def _taken_pictures(chat: ExportedChat) -> dict[str, bytes | Path]:
    """Return the pictures that the messages name, and have the messages name those that they brought as data: URLs."""
    pictures: dict[str, bytes | Path] = {}
    for n, message in enumerate(chat.messages):
        references = []
        for each in message.images:
            if each in pictures:
                references.append(each)
                continue
            place = f"message {n + 1}: the picture {each[:40]!r}"
            if is_reference(each) and each not in chat.pictures:
                raise UsageError(f"{place} is not in the file")
            data = decoded_url(chat.pictures[each] if is_reference(each) else each, place)
            references.append(reference_of(data))
            if is_reference(each) and references[-1] != each:
                raise UsageError(f"{place} has other bytes than its name says")
            pictures[references[-1]] = data
        message.images = tuple(references)
    return pictures


def _one_by_one(raw: Any) -> Any:
    """Convert the messages one by one, up to the first wrong one: one call for all keeps every other thread waiting."""
    if not isinstance(raw, dict) or not isinstance(messages := raw.get("messages"), list):
        return raw
    done: list[Any] = []
    with suppress(msgspec.ValidationError):
        for each in messages:
            done.append(msgspec.convert(each, ExportedMessage))
    return {**raw, "messages": done + messages[len(done) :]}


def _leave_out(chat: ExportedChat, role: Role) -> None:
    """Take the messages of a role out; what followed one follows what was before it."""
    above: dict[str | None, str | None] = {None: None}
    for message in chat.messages:
        before = above[message.parent]
        above[message.id] = before if message.role == role else message.id
        message.parent = before
    chat.messages = [message for message in chat.messages if message.role != role]
    chat.leaf = above[chat.leaf]


def check_title(title: str) -> str:
    """Return a title as it is kept: one line; UsageError where it is too long.

    Spaces count only up to a multiple of that length: a body's worth of words takes a quarter of a second to split.
    """
    line = " ".join(title.split()) if len(title) <= SPACED * MAX_TITLE else title
    if len(line) > MAX_TITLE:
        raise UsageError(
            f"the title has {len(line):,} characters; at most {MAX_TITLE}", "shorten it", field="title"
        )
    return line


def _check_tree(chat: ExportedChat) -> None:
    """Raise UsageError unless every id is new and every parent came before."""
    seen: set[str] = set()
    for n, message in enumerate(chat.messages):
        if not MESSAGE_ID.fullmatch(message.id) or message.id in seen:
            why = "occurs twice" if message.id in seen else "is not an id"
            raise UsageError(f"message {n + 1}: {message.id[:80]!r} {why}")
        if message.parent is not None and message.parent not in seen:
            raise UsageError(f"message {n + 1}: its parent {message.parent[:80]!r} does not come before it")
        if not 0 <= message.at < MAX_AT:
            raise UsageError(f"message {n + 1}: at is {message.at:g}; expected seconds since 1970")
        seen.add(message.id)
    if chat.leaf is not None and chat.leaf not in seen:
        raise UsageError(f"the leaf {chat.leaf[:80]!r} is not one of its messages")


def _lines(chat: ExportedChat) -> Iterator[ChatLine]:
    change = ChatChange(settings=chat.settings)
    if title := check_title(chat.title):
        change.title = title
    yield ChatLine(set=change)
    for message in chat.messages:
        yield line_of(message)
        if message.receipt or message.error or message.state != "whole":
            finish = {"whole": "stop", "open": "lost"}.get(message.state, message.state)
            yield ChatLine(end=message.id, finish=finish, receipt=message.receipt, error=message.error)  # type: ignore[arg-type]
    yield ChatLine(set=ChatChange(leaf=chat.leaf))
