"""The routes of chats and their messages: list, search, read, change, delete with undo, export, import.

Every chat is looked up in the folder of the caller's key, so that another's id is answered as one that never was.
Knows folders and JSON; knows no model and no run.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta, Struct

from freehold.base.errors import ChatNotFound, UsageError
from freehold.serve.chats.exported import (
    MAX_EXPORT_BYTES,
    branched,
    check_title,
    exported,
    markdown,
    pictures_of,
    taken,
)
from freehold.serve.chats.folder import UNDO_S, ChatFolder
from freehold.serve.chats.types import (
    ChatCard,
    ChatChange,
    ChatSettings,
    Role,
    SavedChat,
    SavedMessage,
    Verdict,
)
from freehold.serve.chats.writer import no_chat
from freehold.serve.http.console.login import NothingAsked
from freehold.serve.http.console.runs.again import without_ids
from freehold.serve.http.console.runs.run import Runs
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Name
from freehold.serve.http.core.problems import Refused

MAX_LIST, MAX_MATCHES, MAX_IDS = 500, 100, 200
MAX_QUERY = 200  # characters of a text that is searched for
MAX_MODEL = 256  # characters of a model's name
MOST_BEGUN = 1000  # words of beginnings, which are asked again within seconds
LAST = 50  # messages of a window, unless it says
PURGE_S = 10.0  # between two purges of what was deleted
# Limits of an import: it takes whatever export gives. An answer with its receipt has ten objects and sixty names.
IMPORTED = {
    "body_bytes": MAX_EXPORT_BYTES + (1 << 10),
    "body_containers": 1 << 19,
    "body_names": 1 << 22,
    "body_values": 1 << 22,
    "body_numbers": 1 << 22,
    "body_escapes": MAX_EXPORT_BYTES,
    "caller_bytes": 384 << 20,
}


class NewChat(Struct, kw_only=True):
    """A chat to begin. `once`: a word of the caller's, by which asking again begins no second chat."""

    once: Annotated[str, Meta(max_length=64)] = ""
    model: str = ""
    title: str = ""
    settings: ChatSettings | None = None


class ImportedChat(Struct, kw_only=True):
    """A chat that was exported. `system`: whether it keeps its system prompt; its tools are never kept."""

    chat: dict[str, Any]
    system: bool = True


Leaf = tuple[
    str, str | None, Role, int
]  # one message of the tree without its text: id, parent, role, characters


class ChatWindow(Struct, kw_only=True):
    """A chat as far as a page needs it at first: the shape of all, the text of the end."""

    chat: ChatCard
    settings: ChatSettings
    leaf: str | None
    tree: list[Leaf]
    messages: list[SavedMessage]
    running: list[str]  # runs of this chat
    skipped: int  # lines of its file that are damaged


class ChatShelf:
    """The folders of chats of all callers of a server."""

    def __init__(self, home: Path, most: int = 0) -> None:
        """`most`: bytes that the chats of one key may have; 0: what the disk has."""
        self.home, self._most = home, most
        self._folders: dict[str, ChatFolder] = {}
        self._begun: dict[tuple[Path, str], str] = {}  # folder and word -> the chat
        self._purging: set[tuple[Path, float]] = set()  # folders, and when each is purged in PURGE_S

    def begun(self, folder: ChatFolder, once: str) -> str:
        """Return the chat that was begun with a word; "" for none."""
        return self._begun.get((folder.path, once), "")

    def note(self, folder: ChatFolder, once: str, id: str) -> None:
        """Remember which chat was begun with a word; the oldest is forgotten."""
        self._begun[folder.path, once] = id
        if len(self._begun) > MOST_BEGUN:
            del self._begun[next(iter(self._begun))]

    def purge_later(self, folder: ChatFolder) -> None:
        """Purge a folder once what was just deleted is past its undo: in a thread, for it may hold thousands.

        What is deleted within PURGE_S goes together: a purge for each of thousands would look at all the others.
        """
        loop = asyncio.get_running_loop()
        at = (loop.time() + UNDO_S) // PURGE_S + 1
        if (folder.path, at) not in self._purging:
            self._purging.add((folder.path, at))
            loop.call_at(at * PURGE_S, self._purge, folder, at)

    def _purge(self, folder: ChatFolder, at: float) -> None:
        self._purging.discard((folder.path, at))
        asyncio.get_running_loop().run_in_executor(None, folder.purge)

    def folder(self, call: HttpCall) -> ChatFolder:
        """Return the caller's chats: those of its key, or of the local user where no key is needed.

        A server that other machines reach without a key has one folder for all of them, apart from the user's.
        """
        key = call.tenant
        if not key and not call.owner and call.server.guard.insecure:
            key = "anyone at all"  # no key can have a name with spaces
        if key not in self._folders:
            self._folders[key] = ChatFolder.of(self.home, key, self._most)
        return self._folders[key]


def folder_of(call: HttpCall) -> ChatFolder:
    """Return the caller's chats; Refused (404) where this server keeps none."""
    server = call.server
    if server.home is None:
        raise Refused(404, "this server has no folder for chats", code="no_route")
    return server.parts.setdefault(ChatShelf, ChatShelf(server.home, server.chats_per_key)).folder(call)


async def chats(call: HttpCall) -> None:
    """List chats, pinned ones first, then newest first; with `q`, search messages instead."""
    params, mine = _query(call), folder_of(call)
    if text := params.get("q", "").strip():
        if len(text) > MAX_QUERY:
            raise UsageError(f"q has {len(text):,} characters; at most {MAX_QUERY}", field="q")
        limit = _count(params, "limit", MAX_MATCHES, MAX_MATCHES)
        await call.answer({"matches": await call.in_thread(mine.search, text, limit)})
        return
    limit = _count(params, "limit", 100, MAX_LIST)
    cards, after = await call.in_thread(mine.page, limit, params.get("after", ""))
    await call.answer({"chats": cards, "next": after})


async def begin(call: HttpCall) -> None:
    """Create an empty chat."""
    request, _ = await call.struct(NewChat)
    mine, request.title = folder_of(call), check_title(request.title)
    shelf = call.server.parts[ChatShelf]
    card = await call.in_thread(_begun, mine, request, shelf.begun(mine, request.once))
    if request.once:
        shelf.note(mine, request.once, card.id)
    await call.answer(card, 201)


async def chat(call: HttpCall) -> None:
    """Return a chat: its tree, and the last messages of the current branch."""
    last = _count(_query(call), "last", LAST, MAX_IDS)
    mine, id, runs = folder_of(call), chat_id(call), call.server.part(Runs)
    running = runs.of(mine, id) if runs is not None else []
    await call.answer(await call.in_thread(_window, mine, id, last, running))


async def messages(call: HttpCall) -> None:
    """Return messages by their ids; ids that are not in this chat are ignored."""
    ids = [id for id in _query(call).get("ids", "").split(",") if id]
    if len(ids) > MAX_IDS:
        raise UsageError(f"{len(ids):,} ids were asked for; at most {MAX_IDS}", field="ids")
    await call.answer(await call.in_thread(_messages, folder_of(call), chat_id(call), ids))


async def change(call: HttpCall) -> None:
    """Rename or pin a chat, select another branch, or set its model or settings."""
    request, _ = await call.struct(ChatChange)
    if request.title is not UNSET:
        request.title = check_title(request.title)
    if request.model is not UNSET and len(request.model) > MAX_MODEL:
        raise UsageError(f"model has {len(request.model):,} characters; at most {MAX_MODEL}", field="model")
    await call.answer(await call.in_thread(_changed, folder_of(call), chat_id(call), request))


async def delete(call: HttpCall) -> None:
    """Delete a chat; it can be restored for some minutes."""
    mine = folder_of(call)
    await call.in_thread(mine.delete, chat_id(call))
    call.server.parts[ChatShelf].purge_later(mine)
    await call.answer({"undo_s": UNDO_S})


async def restore(call: HttpCall) -> None:
    """Restore a deleted chat."""
    await call.struct(NothingAsked)
    await call.answer(await call.in_thread(folder_of(call).restore, chat_id(call)))


async def export(call: HttpCall) -> None:
    """Export a chat: all of it as JSON, or the current branch as Markdown."""
    kind = _query(call).get("as", "json")
    if kind not in ("json", "md"):
        raise UsageError(f"as={kind[:20]!r} is not a form of a chat; expected json or md", field="as")
    name = (b"content-disposition", b'attachment; filename="%s.%s"' % (chat_id(call).encode(), kind.encode()))
    media = b"text/markdown; charset=utf-8" if kind == "md" else b"application/json"
    await call.answer(await call.in_thread(_file, folder_of(call), chat_id(call), kind), 200, [name], media)


async def take(call: HttpCall) -> None:
    """Import an exported chat, under a new id."""
    request, _ = await call.struct(ImportedChat, replace(call.server.limits, **IMPORTED))
    await call.answer(await call.in_thread(_taken, folder_of(call), request), 201)


def _shown(message: SavedMessage) -> SavedMessage:
    """Return a message without the token ids of its receipt."""
    message.receipt = without_ids(message.receipt)
    return message


# What reads a whole chat writes its answer in the same thread: chats that wait for another turn would fill the memory.


def _messages(mine: ChatFolder, id: str, ids: list[str]) -> bytes:
    saved = mine.read(id).messages
    messages = [_shown(saved[each]) for each in dict.fromkeys(ids) if each in saved]
    return msgspec.json.encode({"messages": messages})


def _file(mine: ChatFolder, id: str, kind: str) -> bytes:
    saved = mine.read(id)
    if kind == "md":
        return markdown(saved).encode("utf-8", "replace")
    return exported(saved, mine.pictures(id))


def _window(mine: ChatFolder, id: str, last: int, running: list[str]) -> bytes:
    saved = mine.read(id)
    window = ChatWindow(
        chat=saved.card,
        settings=saved.settings,
        leaf=saved.leaf,
        tree=[(m.id, m.parent, m.role, len(m.content)) for m in saved.messages.values()],
        messages=[_shown(message) for message in saved.branch()[-last:]] if last else [],
        running=running,
        skipped=saved.skipped,
    )
    return msgspec.json.encode(window)


def _begun(mine: ChatFolder, request: NewChat, known: str) -> ChatCard:
    """Make a chat, or give the one that is `known` what is asked for now; one that was deleted since is made anew."""
    settings = UNSET if request.settings is None else request.settings
    with suppress(ChatNotFound):
        if known:
            return _changed(
                mine, known, ChatChange(title=request.title, model=request.model, settings=settings)
            )
    return mine.create(model=request.model, title=request.title, settings=request.settings)


def _changed(mine: ChatFolder, id: str, request: ChatChange) -> ChatCard:
    if isinstance(request.leaf, str) and request.leaf not in mine.read(id).messages:
        raise UsageError(f"the leaf {request.leaf[:80]!r} is not one of this chat's messages", field="leaf")
    with mine.writer(id) as writer:
        writer.set(request)
    return mine.read(id).card


def _taken(mine: ChatFolder, request: ImportedChat) -> ChatCard:
    chat = taken(request.chat, system=request.system)
    return mine.write("", chat.model, chat.lines, chat.pictures)


def chat_id(call: HttpCall) -> str:
    """Return the id in the path; ChatNotFound for what cannot be one, as for one that is not there."""
    id = call.scope["path_params"]["chat"]
    if not ChatFolder.is_id(id):
        raise no_chat(id)
    return id


def _query(call: HttpCall) -> dict[str, str]:
    try:
        return dict(parse_qsl(call.scope["query_string"].decode("ascii"), max_num_fields=16))
    except ValueError:
        raise UsageError("the query of the address cannot be read") from None


def _count(params: dict[str, str], name: str, default: int, most: int) -> int:
    value = params.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 6 or int(value) > most:
        raise UsageError(f"{name}={value[:20]!r} is not a number up to {most}", field=name)
    return int(value)


# --- one message of a chat: taken out and put back, edited, judged, and the begin of a chat of its own
# A chat's file only grows, so a message that is taken out is left out of what is read.

MAX_RESTORED = 200  # messages that are put back at once; a model calls fewer tools in an answer


class OneMessage(Struct, kw_only=True):
    """A message of the chat."""

    message: Name


class TakenOut(Struct, kw_only=True):
    """What was taken out, and its chat."""

    chat: ChatCard
    messages: list[str]


class SomeMessages(Struct, kw_only=True):
    """Messages that were taken out together."""

    messages: Annotated[
        list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=MAX_RESTORED)
    ]


class JudgedAnswer(Struct, kw_only=True):
    """An answer, and what the user thinks of it; "" takes that back."""

    message: Name
    verdict: Verdict


class EditedAnswer(Struct, kw_only=True):
    """An answer, and what it shall say."""

    message: Name
    content: Annotated[str, Meta(min_length=1)]


async def take_out(call: HttpCall) -> None:
    """Remove a message and the results of its tool calls; the messages after it follow the one before it."""
    request, _ = await call.struct(OneMessage)
    await call.answer(await call.in_thread(_taken_out, folder_of(call), chat_id(call), request.message))


async def put_back(call: HttpCall) -> None:
    """Restore removed messages, and select the branch of the first."""
    request, _ = await call.struct(SomeMessages)
    await call.answer(await call.in_thread(_put_back, folder_of(call), chat_id(call), request.messages))


async def edit_answer(call: HttpCall) -> None:
    """Add a version of an answer that the user wrote."""
    request, _ = await call.struct(EditedAnswer)
    await call.answer(await call.in_thread(_edited, folder_of(call), chat_id(call), request), 201)


async def judge(call: HttpCall) -> None:
    """Keep what the user thinks of an answer: freehold data from-chats makes examples and pairs of it."""
    request, _ = await call.struct(JudgedAnswer)
    await call.answer(await call.in_thread(_judged, folder_of(call), chat_id(call), request))


async def fork(call: HttpCall) -> None:
    """Create a chat from the branch up to a message."""
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
        message = "only an answer that is written to its end, and calls no tool, can be edited"
        raise Refused(400, message, param="message")
    with mine.writer(id) as writer:
        return writer.message(
            "assistant", request.content, parent=original.parent, model=original.model, edited=True
        )


def _judged(mine: ChatFolder, id: str, request: JudgedAnswer) -> JudgedAnswer:
    original = _message(mine.read(id), request.message)
    if original.role != "assistant" or original.state == "open":
        raise Refused(400, "only an answer that is written to its end can be judged", param="message")
    with mine.writer(id) as writer:
        writer.judge(original.id, request.verdict)
    return request


def _forked(mine: ChatFolder, id: str, message: str) -> ChatCard:
    chat = mine.read(id)
    _message(chat, message)
    pictures = pictures_of(chat, message, mine.pictures(id))
    return mine.write("", chat.card.model, branched(chat, message), pictures)


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
