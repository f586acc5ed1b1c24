"""A conversation: turns, answers as they stream, the session kept on disk, what fills the context.

Sees a model through the ChatModel protocol only; knows no command and no terminal.
Path: chat.Chat.handle -> Conversation.ask -> ChatModel.stream -> renderer; ChatKeeper as it happens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freehold.cli.chat.answer import ADVICE, AnswerSettings, LoopGuard, StreamedAnswer, Waiting, stop
from freehold.cli.chat.markdown import Renderer
from freehold.cli.chat.sessions import ChatKeeper, ChatSession, ChatTurn, Sessions, with_file
from freehold.errors import FreeholdError, UsageError
from freehold.types import ChatModel, Message, Usage

if TYPE_CHECKING:
    from freehold.cli.chat.tools import TerminalTools


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the loaded model for the status line."""

    quantization: str = ""
    context: int = 0


class Conversation:
    """A chat with one model: its turns, its session on disk, and the settings of the answers to come.

    `say` receives notes for the user; `renderer` makes what writes one answer; `tools` are what the model calls.
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
        tools: TerminalTools | None = None,
    ) -> None:
        self._guard = guard
        self._files: list[tuple[str, str]] = []  # name and text, for the next message
        self.model, self._sessions, self._renderer, self._say = model, sessions, renderer, say
        self.answers, self.facts = answers or AnswerSettings(), facts or ModelFacts()
        self._system, self._turns = system, list[ChatTurn]()
        self._keeper = ChatKeeper(sessions, ChatSession(model=model.name), say)
        self._streamed = StreamedAnswer()  # the answer that comes now
        if tools is not None:
            tools.heard = self._heard
            self._keeper = ChatKeeper(sessions, self._keeper.session, say, tools.server_of)
        if session is not None:
            self._take(session, system)
        self._used, self._speed = 0, 0.0
        self.usages: list[Usage] = []  # of all answers so far

    @property
    def messages(self) -> list[Message]:
        """The messages so far, as a model reads them."""
        begin = [Message("system", self._system)] if self._system else []
        return [*begin, *(turn.message for turn in self._turns)]

    @property
    def session(self) -> ChatSession:
        """The chat on disk; without an id before there is one."""
        return self._keeper.session

    def close(self) -> None:
        """Close the chat's file."""
        self._keeper.close()

    def status(self) -> str:
        """Return the status line: model, quantisation, context used and total, speed."""
        parts = [self.model.name, self.facts.quantization, f"{self._used:,}/{self.facts.context:,} tokens"]
        if self._speed:
            parts.append(f"{self._speed:.1f} tok/s")
        return " " + "  ".join(p for p in parts if p) + " "

    def ask(self, message: Message) -> None:
        """Answer a message; without an answer it is taken back, and stays in the file as a branch of its own."""
        roles = [turn.message.role for turn in self._turns]
        start = len(roles) - (roles[-1:] == ["user"])  # a question without an answer makes way
        self._ask_at(start, ChatTurn(message))

    def _ask_at(self, place: int, turn: ChatTurn) -> None:
        """Answer a message in the place of what follows the first `place`; if that fails or is stopped, all stays."""
        kept, self._turns = self._turns, [*self._turns[:place], turn]
        answer = None
        try:
            answer = self._answer()
        finally:
            if answer is None:
                self._turns = kept
                self._keeper.show(kept, self._system)
        if answer:
            self._turns.append(answer)
        else:
            self._say("stopped before the answer began; the message was removed")

    def _answer(self) -> ChatTurn | None:
        """Answer the last message; None where it was stopped before the answer began."""
        answer = self._streamed = StreamedAnswer(guard=LoopGuard() if self._guard else None)
        self._keeper.begin(self._turns, self._system)
        try:
            self._stream(answer)
        except BaseException as e:
            error = e if isinstance(e, FreeholdError) else None
            self._keeper.end(_content(answer), "failed", error)
            raise
        self._account(answer)
        finish = "length" if answer.cut else "stop"
        id = self._keeper.end(_content(answer), "stopped" if answer.stopped or answer.looped else finish)
        return None if answer.stopped and not answer.text else ChatTurn(_content(answer), id)

    def _heard(self, turn: Message) -> None:
        """Take in an answer that called tools, or the result of a call; the answer continues after the last one."""
        if turn.role == "assistant":
            self._turns.append(ChatTurn(turn, self._keeper.end(turn, "tool_calls")))
            self._streamed.text = self._streamed.thinking = ""
            return
        self._turns.append(ChatTurn(turn))
        back = next(i for i, t in enumerate(reversed(self._turns)) if t.message.role == "assistant")
        if back == len(self._turns[-1 - back].message.tool_calls):
            self._keeper.begin(self._turns, self._system)
        else:
            self._keeper.add(self._turns, self._system)

    def _stream(self, answer: StreamedAnswer) -> None:
        """Show the answer as it comes, and save it; Ctrl-C stops it."""
        renderer = self._renderer()
        with Waiting() as waiting:
            options = self.answers.stream_options()
            stream = self.model.stream(self.messages, **options, on_prefill=waiting)
            try:
                for chunk in stream:
                    if chunk.dropped_messages:
                        waiting.over()
                        self._say(f"context full: the {chunk.dropped_messages} oldest messages were dropped")
                    if answer.shown(chunk, renderer, waiting):
                        break
                    self._keeper.grow(answer)
            except KeyboardInterrupt:
                answer.stopped = True
            finally:
                stop(stream)
                renderer.finish()

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

    def _take(self, session: ChatSession, system: str = "") -> None:
        """Continue a saved chat; `system` wins over its own."""
        messages = [m for m in session.messages if m.role != "system"]
        ids = [*session.ids, *[""] * (len(messages) - len(session.ids))]
        self._turns = [ChatTurn(m, id) for m, id in zip(messages, ids, strict=True)]
        own = "".join(m.content for m in session.messages if m.role == "system")
        self._system = system or own
        self._keeper.use(session)

    def _with_files(self, text: str) -> str:
        return "".join([*(with_file(name, content) for name, content in self._files), text])

    def resumed(self, show: Callable[[Message], None], last: int = 2) -> None:
        """Show the last messages of a continued session, and count its tokens."""
        messages = [turn.message for turn in self._turns]
        if not messages:
            return
        left_out = len(messages) - len(messages[-last:])
        earlier = f"; the last {last} of {len(messages)} messages:" if left_out else ":"
        self._say(f"{self.session.name}, with {self.session.model}{earlier}")
        for message in messages[-last:]:
            show(message)
        self._measure()

    def _measure(self) -> None:
        """Count the tokens of the chat."""
        if self.messages:
            self._used = self.model.count_tokens(self.messages)

    def _last_user(self) -> int:
        """Return the place of the user's last message among the turns."""
        for i in range(len(self._turns) - 1, -1, -1):
            if self._turns[i].message.role == "user":
                return i
        raise UsageError("there is no message yet")

    def _asked(self) -> int:
        """Count the user's messages."""
        return sum(turn.message.role == "user" for turn in self._turns)


def _content(answer: StreamedAnswer) -> Message:
    return Message("assistant", answer.text, answer.thinking)
