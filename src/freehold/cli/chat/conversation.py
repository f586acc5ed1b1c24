"""A conversation: turns, answers as they stream, the session kept on disk, what fills the context.

Sees a model through the ChatModel protocol only; knows no command and no terminal.
Path: chat.Chat.handle -> Conversation.ask -> ChatModel.stream -> renderer; Sessions.save after each turn
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from freehold.cli.chat.answer import AnswerSettings, StreamedAnswer, stop
from freehold.cli.chat.loops import ADVICE, LoopGuard
from freehold.cli.chat.markdown import Renderer
from freehold.cli.chat.sessions import ChatSession, Sessions
from freehold.errors import UsageError
from freehold.types import ChatModel, Message, Usage


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the loaded model for the status line."""

    quantization: str = ""
    context: int = 0


class Conversation:
    """A chat with one model: its turns, its session on disk, and the settings of the answers to come.

    `say` receives notes for the user; `renderer` makes what writes one answer.
    """

    def __init__(
        self,
        model: ChatModel,
        sessions: Sessions,
        renderer: Callable[[], Renderer],
        say: Callable[[str], None],
        *,
        answers: AnswerSettings | None = None,
        facts: ModelFacts | None = None,
        system: str = "",
        session: ChatSession | None = None,
        guard: bool = True,
    ) -> None:
        self._guard = guard
        self._files: list[tuple[str, str]] = []  # name and text, for the next message
        self.model, self._sessions, self._renderer, self._say = model, sessions, renderer, say
        self.answers, self.facts = answers or AnswerSettings(), facts or ModelFacts()
        self.messages: list[Message] = [Message("system", system)] if system else []
        self.session = session or ChatSession(sessions.new_name(), model.name)
        if session is not None:
            self._take(session, system)
        self._used, self._speed = 0, 0.0
        self.usages: list[Usage] = []  # of all answers so far

    def status(self) -> str:
        """Return the status line: model, quantisation, context used and total, speed."""
        parts = [self.model.name, self.facts.quantization, f"{self._used:,}/{self.facts.context:,} tokens"]
        if self._speed:
            parts.append(f"{self._speed:.1f} tok/s")
        return " " + "  ".join(p for p in parts if p) + " "

    def ask(self, message: Message) -> None:
        """Answer a message and save both; the message is removed again if there is no answer."""
        self.messages.append(message)
        try:
            answer = self._answer()
        except BaseException:
            self.messages.pop()
            raise
        if not answer.text and answer.stopped:
            self.messages.pop()
            self._say("stopped before the answer began; the message was removed")
            return
        self.messages.append(Message("assistant", answer.text, answer.thinking))
        self._save()

    def _answer(self) -> StreamedAnswer:
        answer = StreamedAnswer(guard=LoopGuard() if self._guard else None)
        renderer = self._renderer()
        stream = self.model.stream(self.messages, **self.answers.stream_options())
        try:
            for chunk in stream:
                if chunk.dropped_messages:
                    self._say(f"context full: the {chunk.dropped_messages} oldest messages were dropped")
                if answer.shown(chunk, renderer):
                    break
        except KeyboardInterrupt:
            answer.stopped = True
        finally:
            stop(stream)
            renderer.finish()
        self._account(answer)
        return answer

    def _account(self, answer: StreamedAnswer) -> None:
        if answer.usage is not None:
            self._used = answer.usage.prompt_tokens + answer.usage.completion_tokens
            self.usages += [] if answer.stopped else [answer.usage]
        self._speed = answer.tokens_per_second
        if answer.looped:
            self._say(f"(stopped: the answer repeats itself; {ADVICE})")
        elif answer.stopped and answer.text:
            self._say("(stopped)")
        elif answer.cut:
            self._say("(cut: the token limit was reached)")

    def _save(self) -> None:
        self.session = replace(self.session, messages=tuple(self.messages))
        self._sessions.save(self.session)

    def _take(self, session: ChatSession, system: str = "") -> None:
        self.session, self.messages = session, list(session.messages)
        if system:
            self._set_system(system)

    def _with_files(self, text: str) -> str:
        parts = [f"File {name}:\n```\n{content.rstrip()}\n```\n\n" for name, content in self._files]
        return "".join([*parts, text])

    def resumed(self, show: Callable[[Message], None], last: int = 2) -> None:
        """Show the last messages of a continued session, and count its tokens."""
        said = [m for m in self.messages if m.role != "system"]
        if not said:
            return
        left_out = len(said) - len(said[-last:])
        earlier = f"; the last {last} of {len(said)} messages:" if left_out else ":"
        self._say(f"{self.session.name}, with {self.session.model}{earlier}")
        for message in said[-last:]:
            show(message)
        self._measure()

    def _measure(self) -> None:
        """Count the tokens of the chat."""
        if self.messages:
            self._used = self.model.count_tokens(self.messages)

    def _set_system(self, text: str) -> None:
        rest = [m for m in self.messages if m.role != "system"]
        self.messages = ([Message("system", text)] if text else []) + rest

    def _ask_again(self, place: int, message: Message) -> None:
        """Replace an earlier message and its answer; if that fails or is stopped, both stay."""
        kept, self.messages = self.messages, self.messages[:place]
        try:
            self.ask(message)
        finally:
            if len(self.messages) == place:
                self.messages = kept

    def _last_user(self) -> int:
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                return i
        raise UsageError("there is no message yet")

    def _turns(self) -> int:
        return sum(m.role == "user" for m in self.messages)
