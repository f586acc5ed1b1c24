"""The terminal chat: turns, slash commands, answers as they stream, the session kept on disk.

Sees a model through the ChatModel protocol only. What the user types comes from terminal.LineReader;
what the model writes goes through a markdown renderer.
Path: run.talk -> Chat.run -> Chat.handle -> ChatModel.stream -> renderer; Sessions.save after each turn
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from freehold.cli.chat import clipboard
from freehold.cli.chat.loops import ADVICE, LoopGuard
from freehold.cli.chat.markdown import DataRenderer, PlainRenderer, StreamRenderer
from freehold.cli.chat.prompt import read_text_file
from freehold.cli.chat.sessions import Session, Sessions
from freehold.cli.options import OTHER, SAMPLING, parse_setting
from freehold.config import nearest
from freehold.errors import FreeholdError, UsageError
from freehold.types import (
    ChatModel,
    Chunk,
    FinishReason,
    Format,
    Message,
    Overflow,
    SamplingParams,
    TokenLogprob,
    Usage,
)

Renderer = StreamRenderer | PlainRenderer | DataRenderer


@dataclass(frozen=True, slots=True)
class Facts:
    """What the status line says about the loaded model."""

    quantization: str = ""
    context: int = 0


@dataclass(slots=True)
class Asking:
    """How answers are asked for; `/set` and `/think` change it."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    overflow: Overflow = "error"
    format: Format | None = None

    def stream_options(self) -> dict[str, Any]:
        """Return the keywords of ChatModel.stream."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True)
class Answer:
    """An answer while it arrives."""

    text: str = ""
    thinking: str = ""
    usage: Usage | None = None
    stopped: bool = False  # by Ctrl-C
    cut: bool = False  # max_tokens or the context ended it
    dropped: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: int = 0
    first: float = 0.0
    last: float = 0.0
    guard: LoopGuard | None = None
    looped: bool = False  # it repeats itself, and the guard ended it

    def add(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        if self.guard is not None:
            self.looped = self.guard.add(chunk.thinking + chunk.text)
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.pieces += len(chunk.token_ids)
        self.text += chunk.text
        self.thinking += chunk.thinking
        self.usage = chunk.usage or self.usage
        self.dropped += chunk.dropped_messages
        self.logprobs += chunk.logprobs
        self.cut = self.cut or chunk.finish_reason == "length"

    def shown(self, chunk: Chunk, renderer: Renderer) -> bool:
        """Take a chunk in and show it; return whether the answer has become a loop and is to end."""
        self.add(chunk)
        renderer.think(chunk.thinking)
        renderer.feed(chunk.text)
        return self.looped

    @property
    def finish_reason(self) -> FinishReason:
        """Say how it ended."""
        return "cancelled" if self.stopped or self.looped else "length" if self.cut else "stop"

    @property
    def tokens_per_second(self) -> float:
        """Speed by the engine's clock, or by ours for an answer that was stopped."""
        if self.usage is not None:
            return self.usage.decode_tok_s
        return (self.pieces - 1) / (self.last - self.first) if self.last > self.first else 0.0


def stop(stream: Iterator[Chunk]) -> None:
    """End a stream that is left early: closing it stops the model within one step."""
    if isinstance(stream, Generator):
        stream.close()


class Chat:
    """A conversation. `say` gets notes for the user, `renderer` makes one per answer.

    `switch`: opens the model of a name instead of the present one, and closes that.
    """

    def __init__(
        self,
        model: ChatModel,
        sessions: Sessions,
        renderer: Callable[[], Renderer],
        say: Callable[[str], None],
        *,
        asking: Asking | None = None,
        facts: Facts | None = None,
        system: str = "",
        session: Session | None = None,
        guard: bool = True,
        switch: Callable[[str], tuple[ChatModel, Facts]] | None = None,
    ) -> None:
        self._guard, self._switch = guard, switch
        self._files: list[tuple[str, str]] = []  # name and text, for the next message
        self.model, self._sessions, self._renderer, self._say = model, sessions, renderer, say
        self.asking, self.facts = asking or Asking(), facts or Facts()
        self.messages: list[Message] = [Message("system", system)] if system else []
        self.session = session or Session(sessions.new_name(), model.name)
        if session is not None:
            self._take(session, system)
        self._used, self._speed = 0, 0.0
        self.usages: list[Usage] = []  # of all answers so far

    def run(self, read: Callable[[], str]) -> None:
        """Read and answer until the user leaves; Ctrl-C while typing only empties the line."""
        while True:
            try:
                text = read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("Ctrl-D or /bye leaves")
                continue
            if not self.handle(text):
                return

    def handle(self, text: str) -> bool:
        """Answer a message or obey a command; False when the user leaves. Errors end the turn only."""
        try:
            if text.lstrip().startswith("/"):
                return self._obey(text.strip())
            if text.strip():
                self._ask(Message("user", self._with_files(text)))
                self._files = []
        except FreeholdError as e:
            self._say(f"error: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""))
        return True

    def status(self) -> str:
        """Return the status line: model, quantisation, context used and total, speed."""
        parts = [self.model.name, self.facts.quantization, f"{self._used:,}/{self.facts.context:,} tokens"]
        if self._speed:
            parts.append(f"{self._speed:.1f} tok/s")
        return " " + "  ".join(p for p in parts if p) + " "

    def _ask(self, message: Message) -> None:
        self.messages.append(message)
        try:
            answer = self._answer()
        except BaseException:
            self.messages.pop()
            raise
        if not answer.text and answer.stopped:
            self.messages.pop()
            self._say("stopped before an answer; your message is taken back")
            return
        self.messages.append(Message("assistant", answer.text, answer.thinking))
        self._save()

    def _answer(self) -> Answer:
        answer = Answer(guard=LoopGuard() if self._guard else None)
        renderer = self._renderer()
        stream = self.model.stream(self.messages, **self.asking.stream_options())
        try:
            for chunk in stream:
                if chunk.dropped_messages:
                    self._say(f"context full: the {chunk.dropped_messages} oldest messages were left out")
                if answer.shown(chunk, renderer):
                    break
        except KeyboardInterrupt:
            answer.stopped = True
        finally:
            stop(stream)
            renderer.finish()
        self._account(answer)
        return answer

    def _account(self, answer: Answer) -> None:
        if answer.usage is not None:
            self._used = answer.usage.prompt_tokens + answer.usage.completion_tokens
            self.usages += [] if answer.stopped else [answer.usage]
        self._speed = answer.tokens_per_second
        if answer.looped:
            self._say(f"(stopped: the answer repeats itself; {ADVICE})")
        elif answer.stopped and answer.text:
            self._say("(stopped)")
        elif answer.cut:
            self._say("(cut: the limit of tokens is reached)")

    def _save(self) -> None:
        self.session = replace(self.session, messages=tuple(self.messages))
        self._sessions.save(self.session)

    def _take(self, session: Session, system: str = "") -> None:
        self.session, self.messages = session, list(session.messages)
        if system:
            self._set_system(system)

    def _with_files(self, text: str) -> str:
        parts = [f"File {name}:\n```\n{content.rstrip()}\n```\n\n" for name, content in self._files]
        return "".join([*parts, text])

    def resumed(self, show: Callable[[Message], None], last: int = 2) -> None:
        """Show the last messages of a session that goes on, and count what it takes of the context."""
        said = [m for m in self.messages if m.role != "system"]
        if not said:
            return
        left_out = len(said) - len(said[-last:])
        earlier = f"; the last {last} of {len(said)} messages:" if left_out else ":"
        self._say(f"{self.session.name}, held with {self.session.model}{earlier}")
        for message in said[-last:]:
            show(message)
        self._measure()

    def _measure(self) -> None:
        """Count the tokens of the chat, where the model can."""
        count = getattr(self.model, "count_tokens", None)
        if count is not None and self.messages:
            self._used = count(self.messages)

    def _set_system(self, text: str) -> None:
        rest = [m for m in self.messages if m.role != "system"]
        self.messages = ([Message("system", text)] if text else []) + rest

    def _obey(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        command = COMMANDS.get(word[1:])
        if command is None:
            near = nearest(word[1:], list(COMMANDS))
            raise UsageError(
                f"no command is called {word}", f"did you mean /{near}?" if near else "/help lists them"
            )
        return command.act(self, rest.strip()) is not False

    def set_option(self, text: str) -> None:
        """Change a setting, or list them all."""
        name, _, value = text.partition(" ")
        if not name:
            for knob in (*SAMPLING, *OTHER):
                self._say(f"{knob.name:<20}{self._value(knob.field)}")
            return
        knob, parsed = parse_setting(name, value.strip())
        if knob in SAMPLING:
            self.asking.sampling = replace(self.asking.sampling, **{knob.field: parsed})
        else:
            setattr(self.asking, knob.field, (parsed,) if knob.field == "stop" else parsed)
        self._say(f"{knob.name} = {parsed}")

    def _value(self, field: str) -> str:
        value = (
            getattr(self.asking, field)
            if hasattr(self.asking, field)
            else getattr(self.asking.sampling, field)
        )
        return "-" if value in (None, ()) else str(value)

    def system(self, text: str) -> None:
        """Set or show the system prompt."""
        if text:
            self._set_system(text)
        said = next((m.content for m in self.messages if m.role == "system"), "(none)")
        self._say(f"system: {said}")

    def clear(self, _: str) -> None:
        """Start over, keeping the system prompt; the old session stays on disk."""
        self.messages = [m for m in self.messages if m.role == "system"]
        self.session = Session(self._sessions.new_name(), self.model.name)
        self._used = 0
        self._say("cleared")

    def retry(self, _: str) -> None:
        """Ask the last message again."""
        last = self._last_user()
        self._ask_again(last, self.messages[last])

    def _ask_again(self, place: int, message: Message) -> None:
        """Ask a message in the place of an earlier one; if that fails or is stopped, the earlier answer stays."""
        kept, self.messages = self.messages, self.messages[:place]
        try:
            self._ask(message)
        finally:
            if len(self.messages) == place:
                self.messages = kept

    def undo(self, _: str) -> None:
        """Take back the last message and its answer."""
        last = self._last_user()
        self.messages = self.messages[:last]
        self._save()
        self._say("taken back" + (f"; {self._turns()} left" if self._turns() else "; the chat is empty"))

    def _last_user(self) -> int:
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                return i
        raise UsageError("there is no message yet")

    def _turns(self) -> int:
        return sum(m.role == "user" for m in self.messages)

    def save(self, name: str) -> None:
        """Give the session a name of your own."""
        if name and name != self.session.name:
            self.session = self._sessions.rename(replace(self.session, messages=tuple(self.messages)), name)
        else:
            self._save()
        self._say(f"saved as {self.session.name}; freehold run --session {self.session.name} goes on with it")

    def load(self, name: str) -> None:
        """Go on with a saved session, or list them."""
        if not name:
            for saved in self._sessions.recent():
                self._say(f"{saved.name:<20}{saved.title}")
            return
        session = self._sessions.load(name)
        self._take(session)
        note = "" if session.model == self.model.name else f" (it was held with {session.model})"
        self._say(f"loaded {session.name}: {self._turns()} messages of yours{note}")
        self._measure()

    def switch(self, name: str) -> None:
        """Go on with another model, or say which this one is."""
        if not name or self._switch is None:
            self._say(f"model: {self.model.name} {self.facts.quantization}".rstrip())
            return
        self.model, self.facts = self._switch(name)
        self.session = replace(self.session, model=self.model.name)
        self.usages, self._speed = [], 0.0
        self._measure()
        self._say(f"model: {self.model.name} {self.facts.quantization}".rstrip())

    def file(self, path: str) -> None:
        """Put a text file before your next message, or list those that are."""
        if path:
            found = Path(path).expanduser()
            self._files.append((found.name, read_text_file(found)))
        for name, content in self._files:
            self._say(f"{name}: {len(content):,} characters go before your next message")
        if not self._files:
            self._say("no file; /file PATH puts one before your next message")

    def copy(self, _: str) -> None:
        """Copy the last answer to the clipboard."""
        answers = [m.content for m in self.messages if m.role == "assistant"]
        if not answers:
            raise UsageError("there is no answer yet")
        self._say(f"copied {len(answers[-1]):,} characters {clipboard.copy(answers[-1])}")

    def edit(self, _: str) -> None:
        """Change your last message in $EDITOR and ask again, or write one there."""
        users = [i for i, m in enumerate(self.messages) if m.role == "user"]
        place = users[-1] if users else len(self.messages)
        before = self.messages[place].content if users else ""
        text = clipboard.edited(before)
        if text is None or not text.strip() or text == before:
            self._say("nothing was changed")
        else:
            self._ask_again(place, Message("user", text))

    def ctx(self, _: str) -> None:
        """Say how full the context is."""
        self._say(
            f"{self._used:,} of {self.facts.context:,} tokens, {len(self.messages)} messages; when full: "
            f"{self.asking.overflow} (/set overflow drop-oldest leaves out the oldest)"
        )

    def think(self, text: str) -> None:
        """Switch reasoning on, off, or leave it to the model (auto)."""
        choices = {"on": True, "off": False, "auto": None}
        if text not in choices:
            raise UsageError(f"/think {text!r} is not on, off or auto")
        check = getattr(self.model, "check_think", None)
        if check is not None:
            check(choices[text])
        self.asking.think = choices[text]
        self._say(f"think = {text}")

    def help(self, _: str) -> None:
        """Show this list."""
        for name, command in COMMANDS.items():
            summary = (command.act.__doc__ or "").splitlines()[0]
            self._say(f"{'/' + name + ' ' + command.usage:<22}{summary}")
        self._say(
            'Alt-Enter or Ctrl-J: new line; """ opens and closes a block\n'
            "Ctrl-C stops an answer; Ctrl-D leaves"
        )

    def bye(self, _: str) -> bool:
        """Leave."""
        return False


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: its action's first doc line is its help."""

    act: Callable[[Chat, str], bool | None]
    usage: str = ""


COMMANDS = {
    "model": Command(Chat.switch, "[NAME]"),
    "file": Command(Chat.file, "[PATH]"),
    "copy": Command(Chat.copy),
    "edit": Command(Chat.edit),
    "set": Command(Chat.set_option, "[NAME VALUE]"),
    "system": Command(Chat.system, "[TEXT]"),
    "think": Command(Chat.think, "on|off|auto"),
    "clear": Command(Chat.clear),
    "retry": Command(Chat.retry),
    "undo": Command(Chat.undo),
    "save": Command(Chat.save, "[NAME]"),
    "load": Command(Chat.load, "[NAME]"),
    "ctx": Command(Chat.ctx),
    "help": Command(Chat.help),
    "bye": Command(Chat.bye),
}
