"""Saved chats as the terminal names them: by a name that was given, or by the time they began.

The files are those of the page (freehold.serve.chats); a session is the branch of a chat that is shown. Knows no model
and no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freehold.base.config import nearest
from freehold.base.errors import CapacityExceeded, ChatNotFound, FreeholdError, StoreError, UsageError
from freehold.base.types import Image, Message, ToolCall
from freehold.cli.chat.answer import StreamedAnswer
from freehold.cli.chat.pictures import images_of, with_images
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.pictures import ChatPictures
from freehold.serve.chats.types import (
    AskedTool,
    ChatCard,
    ChatChange,
    ChatFinish,
    ChatSettings,
    SavedChat,
    SavedMessage,
)
from freehold.serve.chats.writer import ChatWriter
from freehold.serve.tools.pictures import left_out, tool_message

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
                        images=[image.as_url for image in images_of(message)],
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
        matches = self.folder.search(text, limit)
        return [SessionMatch(_listed(each.chat), each.role, each.excerpt) for each in matches]

    def _session(self, chat: SavedChat) -> ChatSession:
        system = chat.settings.system
        branch = _answered(chat.branch())
        messages = ([Message("system", system)] if system else []) + as_messages(
            branch, self.folder.pictures(chat.card.id)
        )
        return replace(_listed(chat.card), messages=tuple(messages), ids=tuple(m.id for m in branch))


def as_messages(branch: Sequence[SavedMessage], pictures: ChatPictures) -> list[Message]:
    """Return a branch as a model reads it: pictures and files before the text that came with them."""
    tools = {call.id: call.name for message in branch for call in message.calls}
    return [_message(message, tools, pictures) for message in branch]


def _message(message: SavedMessage, tools: dict[str, str], pictures: ChatPictures) -> Message:
    if message.role == "tool":
        return _result(message, tools.get(message.call, ""), pictures)
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.calls)
    files = [with_file(file.name, file.text) for file in message.files]
    text = "".join([*files, message.content])
    if message.images:
        return with_images([Image.at(pictures.url(name)) for name in message.images], text)
    return Message(message.role, text, message.thinking, calls)


def _result(message: SavedMessage, name: str, pictures: ChatPictures) -> Message:
    """Return a tool's result; a picture of it that is lost stops no chat."""
    images: list[Image] = []
    for reference in message.images:
        with suppress(FreeholdError):
            images.append(Image.at(pictures.url(reference)))
    lost = len(message.images) - len(images)
    text = message.content + (left_out(lost, "lost") if lost else "")
    return tool_message(text, message.call, name, images, failed=message.outcome in ("denied", "failed"))


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


# --- writes a terminal chat to its file as it happens -----------------------------------------------
# The message when it is sent, the answer each second, its end.
# A disk that fails is reported once and tried again with the next line; the chat continues in memory
# meanwhile. A chat that another program deleted is saved again, whole, under a new name.

EACH_S = 1.0  # between two lines of a growing answer


@dataclass(slots=True)
class ChatTurn:
    """A message of the branch that the chat continues. `id`: once it is in the file."""

    message: Message
    id: str = ""


@dataclass(slots=True)
class _Growing:
    """An answer whose end is not in the file yet."""

    id: str
    text: int = 0  # characters that are in the file
    thinking: int = 0
    at: float = 0.0
    last: tuple[Message, ChatFinish, dict[str, Any] | None] | None = None  # an end that the disk refused


class ChatKeeper:
    """The file of a chat. `session` says which one; `say` receives what the user must know.

    `server_of`: of the tools that its answers call.
    """

    def __init__(
        self,
        sessions: Sessions,
        session: ChatSession,
        say: Callable[[str], None],
        server_of: ServerOf = unknown_server,
    ) -> None:
        self.session, self._sessions, self._say, self._server_of = session, sessions, say, server_of
        self._writer: ChatWriter | None = None
        self._growing: list[_Growing] = []
        self._told = False

    def begin(self, turns: Sequence[ChatTurn], system: str) -> None:
        """Save these turns, the last of which is a question, and begin its answer."""
        self._tried(lambda: self._begin(turns, system), turns)

    def grow(self, answer: StreamedAnswer) -> None:
        """Save what an answer grew by, at most each second."""
        growing = self._open()
        if growing is None or time.monotonic() - growing.at < EACH_S:
            return
        growing.at = time.monotonic()
        text, thinking = answer.text, answer.thinking

        def work() -> None:
            assert self._writer is not None
            self._writer.more(growing.id, text=text[growing.text :], thinking=thinking[growing.thinking :])
            growing.text, growing.thinking = len(text), len(thinking)

        self._tried(work)

    def end(self, message: Message, finish: ChatFinish, error: FreeholdError | None = None) -> str:
        """Save the end of the answer; return its id, or "" where it did not begin in the file."""
        growing = self._open()
        if growing is None:
            return ""
        problem = {"message": error.message, "hint": error.hint} if error else None
        growing.last = message, finish, problem
        self._tried(self._settle)
        return growing.id

    def add(self, turns: Sequence[ChatTurn], system: str) -> None:
        """Save turns that are not saved yet, such as the result of a call."""
        self._tried(lambda: self._bring(turns, system), turns)

    def show(self, turns: Sequence[ChatTurn], system: str) -> None:
        """Save turns that are not saved yet, and make their end the branch that is shown."""

        def work() -> None:
            self._bring(turns, system)
            assert self._writer is not None
            self._writer.set(ChatChange(leaf=turns[-1].id if turns else None))

        if turns or self.session.id:
            self._tried(work, turns)

    def rename(self, name: str, turns: Sequence[ChatTurn], system: str) -> None:
        """Give the chat a name; it stays in the file that it is in. Raises FreeholdErrors."""
        check_name(name)
        self._bring(turns, system)
        assert self._writer is not None
        self._writer.set(ChatChange(title=name))
        self.session = replace(self.session, name=name)

    def now_with(self, model: str) -> None:
        """Answer with another model from now on."""
        self.session = replace(self.session, model=model)

    def use(self, session: ChatSession) -> None:
        """Hold another chat from now on."""
        self.close()
        self.session = session

    def close(self) -> None:
        """Close the file, once more trying what a disk refused."""
        if self._growing:
            self._tried(self._settle)
        self._growing.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> _Growing | None:
        return self._growing[-1] if self._growing and self._growing[-1].last is None else None

    def _begin(self, turns: Sequence[ChatTurn], system: str) -> None:
        self._bring(turns, system)
        assert self._writer is not None
        saved = self._writer.open_answer(parent=turns[-1].id, model=self.session.model)
        self._growing.append(_Growing(saved.id, at=time.monotonic()))

    def _bring(self, turns: Sequence[ChatTurn], system: str) -> None:
        """Make the file if there is none, and append what is not in it."""
        if self._writer is None:
            if not self.session.id:
                settings = ChatSettings(system=system) if system else None
                card = self._sessions.folder.create(
                    id=self.session.name, model=self.session.model, settings=settings
                )
                self.session = replace(self.session, id=card.id, name=card.id, messages=_system(system))
            self._writer = self._sessions.folder.writer(self.session.id)
        self._settle()
        if system != self._system():
            settings = self._sessions.folder.read(self.session.id).settings
            settings.system = system
            self._writer.set(ChatChange(settings=settings))
            self.session = replace(self.session, messages=_system(system))
        parent = None
        for turn in turns:
            if not turn.id:
                model = self.session.model if turn.message.role == "assistant" else ""
                m = turn.message
                turn.id = self._writer.message(
                    m.role,
                    m.content,
                    parent=parent,
                    thinking=m.thinking,
                    model=model,
                    images=[image.as_url for image in images_of(m)],
                    calls=asked_tools(m, self._server_of),
                    call=m.tool_call_id,
                ).id
            parent = turn.id

    def _system(self) -> str:
        return "".join(m.content for m in self.session.messages if m.role == "system")

    def _settle(self) -> None:
        """Write the ends that are not in the file yet."""
        for growing in [g for g in self._growing if g.last is not None]:
            assert self._writer is not None and growing.last is not None
            message, finish, error = growing.last
            self._writer.end(
                growing.id,
                finish,
                text=message.content[growing.text :],
                thinking=message.thinking[growing.thinking :],
                calls=asked_tools(message, self._server_of),
                error=error,
            )
            self._growing.remove(growing)

    def _tried(self, work: Callable[[], None], turns: Sequence[ChatTurn] = ()) -> None:
        """Do `work`; say so where the disk refuses it."""
        try:
            try:
                work()
            except ChatNotFound:
                self._anew(turns)
                if turns:
                    work()
            self._told = False
        except (StoreError, CapacityExceeded) as e:
            if not self._told:
                self._say(
                    f"not saved: {e.message}; the chat continues and is saved with the next message that can be"
                )
            self._told = True

    def _anew(self, turns: Sequence[ChatTurn]) -> None:
        """Forget a file that was deleted, so that all of the chat goes to a new one."""
        gone = self.session.name
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._growing.clear()
        self.session = ChatSession(model=self.session.model)
        for turn in turns:
            turn.id = ""
        with suppress(FreeholdError):
            self._say(f"{gone} was deleted by another program; the chat is saved again as a new one")


def _system(text: str) -> tuple[Message, ...]:
    return (Message("system", text),) if text else ()
