"""Saved chats as the terminal names them: by a name that was given, or by the time they began.

The files are those of the page (freehold.chats); a session is the branch of a chat that is shown. Knows no model and
no terminal. Path: run --continue/--session/--search, chat.Chat -> Sessions -> ChatFolder; ChatKeeper writes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.chats.folder import ChatFolder
from freehold.chats.types import (
    AskedTool,
    ChatCard,
    ChatChange,
    ChatMatch,
    ChatSettings,
    SavedChat,
    SavedMessage,
)
from freehold.config import nearest
from freehold.errors import ChatNotFound, UsageError
from freehold.types import Message, ToolCall

ServerOf = Callable[[str], str]  # from a tool's name, as the model sees it; "" where it is not known


def unknown_server(_: str) -> str:
    """Name no server."""
    return ""


def asked_tools(message: Message, server_of: ServerOf) -> tuple[AskedTool, ...]:
    """Return the calls of an answer as a chat keeps them."""
    return tuple(
        AskedTool(id=call.id, server=server_of(call.name), name=call.name, arguments=call.arguments)
        for call in message.tool_calls
    )


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A branch of a chat. `id` is its file's name, and empty until there is one; `name` is how the user calls it."""

    name: str = ""
    model: str = ""
    messages: tuple[Message, ...] = ()  # the system prompt first, where there is one
    ids: tuple[str, ...] = ()  # of the messages without the system prompt; those beyond are not saved yet
    id: str = ""
    title: str = ""

    def answered(self) -> ChatSession:
        """Leave out a question at the end that has no answer; it stays in the file, as a branch."""
        if not self.messages or self.messages[-1].role != "user":
            return self
        return replace(self, messages=self.messages[:-1], ids=self.ids[: len(self.ids) - 1])


@dataclass(frozen=True, slots=True)
class SessionMatch:
    """A message that contains the text searched for; `excerpt` is the text around it."""

    session: ChatSession
    role: str
    excerpt: str


class Sessions:
    """The chats of the machine's user."""

    def __init__(self, home: Path) -> None:
        self.folder = ChatFolder.of(home)

    def save(self, session: ChatSession, server_of: ServerOf = unknown_server) -> ChatSession:
        """Append what is not saved yet, and return the session as it is saved. Raises StoreError, CapacityExceeded.

        `server_of`: of the tools that its answers called.
        """
        system = "".join(m.content for m in session.messages if m.role == "system")
        if not session.id:
            settings = ChatSettings(system=system) if system else None
            card = self.folder.create(id=session.name, model=session.model, settings=settings)
            session = replace(session, id=card.id, name=card.id)
        messages = [m for m in session.messages if m.role != "system"]
        ids = list(session.ids)
        with self.folder.writer(session.id) as writer:
            settings = self.folder.read(session.id).settings
            if settings.system != system:
                settings.system = system
                writer.set(ChatChange(settings=settings))
            for message in messages[len(ids) :]:
                parent = ids[-1] if ids else None
                ids.append(
                    writer.message(
                        message.role,
                        message.content,
                        parent=parent,
                        thinking=message.thinking,
                        model=session.model if message.role == "assistant" else "",
                        calls=asked_tools(message, server_of),
                        call=message.tool_call_id,
                    ).id
                )
        return replace(session, ids=tuple(ids))

    def exists(self, name: str) -> bool:
        """Return whether a session is called exactly `name`."""
        return self.folder.exists(name) or any(_name(card) == name for card in self.folder.cards())

    def load(self, name: str) -> ChatSession:
        """Read a session by its name or an unambiguous beginning of it."""
        if self.folder.exists(name):
            return self._session(self.folder.read(name))
        cards = self.folder.cards()
        matches = [card for card in cards if _name(card) == name][:1]
        matches = matches or [
            card for card in cards if _name(card).startswith(name) or card.id.startswith(name)
        ]
        if len(matches) != 1:
            names = [_name(card) for card in matches or cards]
            near = ", ".join(names[:4]) if matches else nearest(name, names)
            hint = f"did you mean {near}?" if near else "/load in a chat lists the saved ones"
            raise ChatNotFound(f"{name!r} is not a session", hint)
        return self._session(self.folder.read(matches[0].id))

    def latest(self) -> ChatSession:
        """Return the session with the newest message; raise ChatNotFound when there is none."""
        for card in self.folder.cards():
            return self._session(self.folder.read(card.id))
        raise ChatNotFound(
            "there is no session to continue", "a chat is saved as soon as its first message is sent"
        )

    def recent(self, count: int = 20) -> list[ChatSession]:
        """Return the sessions with the newest messages, without these; unreadable files are left out."""
        return [_listed(card) for card in self.folder.cards()[:count]]

    def search(self, text: str, limit: int = 50) -> list[SessionMatch]:
        """Find messages that contain `text`, ignoring case, newest session first."""
        return [_matched(match) for match in self.folder.search(text, limit)]

    def _session(self, chat: SavedChat) -> ChatSession:
        system = chat.settings.system
        branch = _answered(chat.branch())
        messages = ([Message("system", system)] if system else []) + as_messages(branch)
        return replace(_listed(chat.card), messages=tuple(messages), ids=tuple(m.id for m in branch))


def as_messages(branch: Sequence[SavedMessage]) -> list[Message]:
    """Return a branch as a model reads it: files before the text that came with them."""
    tools = {call.id: call.name for message in branch for call in message.calls}
    return [_message(message, tools) for message in branch]


def _message(message: SavedMessage, tools: dict[str, str]) -> Message:
    if message.role == "tool":
        return Message("tool", message.content, tool_call_id=message.call, name=tools.get(message.call, ""))
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.calls)
    files = [with_file(file.name, file.text) for file in message.files]
    return Message(message.role, "".join([*files, message.content]), message.thinking, calls)


def with_file(name: str, text: str) -> str:
    """Return a file in the form that precedes a message."""
    return f"File {name}:\n```\n{text.rstrip()}\n```\n\n"


def _answered(branch: list[SavedMessage]) -> list[SavedMessage]:
    """Leave out an answer at the end that failed before its first word."""
    while branch and branch[-1].role == "assistant" and not (branch[-1].content or branch[-1].calls):
        branch = branch[:-1]
    return branch


def _name(card: ChatCard) -> str:
    """Return what the user calls a chat: the title that was set, where it can be typed, or its id."""
    return card.title if card.named and ChatFolder.is_id(card.title) else card.id


def check_name(name: str) -> str:
    """Return a name for a session; UsageError for one that could not be typed."""
    if not ChatFolder.is_id(name):
        raise UsageError(
            f"{name[:80]!r} is not a valid session name",
            "use letters, digits, '.', '_' and '-', at most 80",
        )
    return name


def _listed(card: ChatCard) -> ChatSession:
    return ChatSession(_name(card), card.model, id=card.id, title=card.title or "(empty)")


def _matched(match: ChatMatch) -> SessionMatch:
    return SessionMatch(_listed(match.chat), match.role, match.excerpt)
