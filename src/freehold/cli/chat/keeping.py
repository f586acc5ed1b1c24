"""Writes a terminal chat to its file as it happens: the message when it is sent, the answer each second, its end.

A disk that fails is reported once and tried again with the next line; the chat continues in memory meanwhile. A chat
that another program deleted is saved again, whole, under a new name. Knows the file; knows no model.
Path: Conversation.ask -> ChatKeeper.begin -> grow -> end
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from freehold.chats.types import ChatChange, ChatFinish, ChatSettings
from freehold.chats.writer import ChatWriter
from freehold.cli.chat.answer import StreamedAnswer
from freehold.cli.chat.sessions import (
    ChatSession,
    ServerOf,
    Sessions,
    asked_tools,
    check_name,
    unknown_server,
)
from freehold.errors import CapacityExceeded, ChatNotFound, FreeholdError, StoreError
from freehold.types import Message

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
                    calls=asked_tools(m, self._server_of),
                    call=m.tool_call_id,
                ).id
            parent = turn.id

    def _system(self) -> str:
        """Return the system prompt as it is in the file."""
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
