"""A chat's file as bytes: one JSON object a line, appended; what each line means is in docs/design/console.md.

Reading is lenient where that loses nothing: a torn last line is left out, a line that is damaged is skipped and
counted, what hung on it hangs on the message before. Knows no file, no lock and no clock.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from freehold.serve.chats.pictures import is_reference
from freehold.serve.chats.types import (
    AskedTool,
    AttachedFile,
    ChatCard,
    ChatChange,
    ChatFinish,
    ChatSettings,
    ChatState,
    Role,
    SavedChat,
    SavedMessage,
    ToolState,
)

MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
VERSION = 2  # 1 had neither ids nor branches, and was rewritten whole after each turn
TITLE_CHARS = 60
_STATES: dict[ChatFinish, ChatState] = {"stop": "whole", "tool_calls": "whole"}  # the others are called alike


class ChatLine(Struct, kw_only=True, omit_defaults=True):
    """Any line. Exactly one of `chat`, `role`, `more`, `end`, `gone` and `set` says which; others are ignored."""

    chat: str | None = None
    created: str = ""
    version: int = 0

    id: str = ""
    parent: str | UnsetType | None = UNSET
    role: Role | None = None
    content: str = ""
    thinking: str = ""
    at: float = 0.0
    model: str = ""
    files: tuple[AttachedFile, ...] = ()
    images: tuple[str, ...] = ()
    calls: tuple[AskedTool, ...] = ()
    call: str = ""
    outcome: ToolState | None = None
    open: bool = False
    edited: bool = False

    more: str | None = None
    text: str = ""

    end: str | None = None
    finish: ChatFinish = "stop"
    receipt: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    gone: tuple[str, ...] = ()  # messages that are taken out,
    back: bool = False  # or put back

    set: ChatChange | None = None


_decoder = msgspec.json.Decoder(ChatLine)


def encoded(line: ChatLine) -> bytes:
    """Return the line with its end. Half a surrogate pair, which is not a character, becomes U+FFFD."""
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:
        plain = _repaired(msgspec.to_builtins(line))
        return msgspec.json.encode(plain) + b"\n"


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_repaired(name): _repaired(each) for name, each in value.items()}
    return [_repaired(each) for each in value] if isinstance(value, list | tuple) else value


def decoded(raw: bytes) -> ChatLine | None:
    """Return the line; None where it is damaged."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def replay(data: bytes, chat: str) -> SavedChat:
    """Return what the lines make; raise ValueError where they make no chat."""
    state = _Replay(chat)
    rows = data.split(b"\n")
    torn = rows.pop()  # empty after a whole line; what a killed writer left is whole only if it is JSON
    for raw in rows:
        if raw.strip():
            state.take(decoded(raw))
    if torn and _whole(torn):
        state.take(decoded(torn))
    return state.result()


def _whole(torn: bytes) -> bool:
    """Return whether only the line's end is missing: no part of a JSON object is one."""
    try:
        msgspec.json.decode(torn)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Replay:
    """A chat as far as its lines were read."""

    def __init__(self, chat: str) -> None:
        self._chat, self._headed = chat, False
        self._created = self._model = ""
        self._messages: dict[str, SavedMessage] = {}
        self._grown: dict[str, tuple[list[str], list[str]]] = {}  # id -> pieces of text and thinking
        self._gone: set[str] = set()
        self._pictures: set[str] = set()
        self._last: str | None = None
        self._leaf: str | None = None
        self._set: dict[str, Any] = {}
        self._system = ""
        self._skipped = 0

    def take(self, line: ChatLine | None) -> None:
        """Apply a line."""
        if line is None:
            self._skipped += 1
        elif line.role is not None:
            self._message(line, line.role)
        elif line.more is not None:
            self._more(line.more, line)
        elif line.end is not None:
            self._end(line.end, line)
        elif line.gone:
            (self._gone.difference_update if line.back else self._gone.update)(line.gone)
        elif line.set is not None:
            self._change(line.set)
        elif line.created:
            self._headed, self._created, self._model = True, line.created, line.model

    def _message(self, line: ChatLine, role: Role) -> None:
        if role == "system" and not line.id:
            self._system = line.content  # version 1 had the system prompt among the messages
            return
        id = line.id or str(len(self._messages) + 1)
        if id in self._messages or not MESSAGE_ID.fullmatch(id):  # an id is part of a lock's path
            self._skipped += 1
            return
        self._pictures.update(filter(is_reference, line.images))
        parent = self._last if line.parent is UNSET else line.parent
        if parent is not None and parent not in self._messages:  # its line is damaged
            parent = self._last
        self._messages[id] = SavedMessage(
            id=id,
            parent=parent,
            role=role,
            content=line.content,
            thinking=line.thinking,
            at=line.at,
            model=line.model,
            files=line.files,
            images=line.images,
            calls=line.calls,
            call=line.call,
            outcome=line.outcome,
            state="open" if line.open else "whole",
            edited=line.edited,
        )
        self._last = self._leaf = id
        if line.model:
            self._model = line.model

    def _more(self, id: str, line: ChatLine) -> None:
        message = self._messages.get(id)
        if message is None or message.state != "open":
            self._skipped += 1
            return
        texts, thoughts = self._grown.setdefault(id, ([], []))
        texts.append(line.text)
        thoughts.append(line.thinking)

    def _end(self, id: str, line: ChatLine) -> None:
        message = self._messages.get(id)
        if message is None or message.state != "open":
            self._skipped += 1
            return
        message.state = _STATES.get(line.finish) or line.finish  # type: ignore[assignment]
        message.receipt, message.error = line.receipt, line.error
        message.calls = line.calls or message.calls

    def _change(self, change: ChatChange) -> None:
        changes = {n: v for n in change.__struct_fields__ if (v := getattr(change, n)) is not UNSET}
        self._set |= changes
        if "model" in changes:
            self._model = changes["model"]
        if "leaf" in changes and (changes["leaf"] is None or changes["leaf"] in self._messages):
            self._leaf = changes["leaf"]

    def result(self) -> SavedChat:
        """Return the chat; raise ValueError where there is none."""
        if not self._messages and (self._skipped or not self._headed):
            raise ValueError("no line of it is a message" if self._headed else "it does not begin as a chat")
        for id, (texts, thoughts) in self._grown.items():
            message = self._messages[id]
            message.content += "".join(texts)
            message.thinking += "".join(thoughts)
        self._take_out()
        title = str(self._set.get("title") or "")
        card = ChatCard(
            id=self._chat,
            title=title or self._first_line(),
            model=self._model,
            created=self._created,
            updated=max((m.at for m in self._messages.values()), default=0.0),
            pinned=bool(self._set.get("pinned")),
            messages=len(self._messages),
            named=bool(title),
        )
        settings = self._set.get("settings") or ChatSettings(system=self._system)
        return SavedChat(
            card=card,
            settings=settings,
            leaf=self._leaf,
            messages=self._messages,
            skipped=self._skipped,
            pictures=self._pictures,
        )

    def _take_out(self) -> None:
        """Leave out what is gone; what followed it follows the message before it."""
        if not self._gone:
            return
        above: dict[str | None, str | None] = {None: None}
        for id, message in self._messages.items():  # parents come first
            message.parent = above[message.parent]
            above[id] = message.parent if id in self._gone else id
        self._leaf = above[self._leaf]
        self._messages = {id: each for id, each in self._messages.items() if id not in self._gone}

    def _first_line(self) -> str:
        for message in self._messages.values():
            if message.role == "user":
                return short(message.content)
        return ""


def short(text: str) -> str:
    """Return the first line that says something, shortened: a chat's title unless one was set."""
    line = " ".join(next((line for line in text[:4096].splitlines() if line.strip()), "").split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"
