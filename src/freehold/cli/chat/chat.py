"""The terminal chat: a conversation and its session on disk, and a loop over lines: messages or slash commands.

A Conversation sees its model through the ChatModel protocol and knows no command; a Chat adds the commands. What is
typed comes from terminal.LineReader.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import nearest, suggestion
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.options import FieldOption, options_of
from freehold.base.types import Audio, ChatModel, Image, Message, SamplingParams, Usage
from freehold.cli.chat.answer import ADVICE, AnswerSettings, LoopGuard, StreamedAnswer, Waiting, stop
from freehold.cli.chat.markdown import Renderer
from freehold.cli.chat.pictures import (
    UNSAVED,
    attached_of,
    check_hears,
    check_sees,
    described,
    dropped,
    tool_pictures,
    with_images,
)
from freehold.cli.chat.request import read_text_file
from freehold.cli.chat.sessions import ChatKeeper, ChatSession, ChatTurn, Sessions, check_name, with_file
from freehold.cli.helping import in_words
from freehold.cli.options import click_type, spelt

if TYPE_CHECKING:
    from freehold.cli.chat.tools import TerminalTools


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the loaded model for the status line."""

    quantization: str = ""
    context: int = 0
    can_see: bool = False
    can_listen: bool = False


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
        self._images: list[tuple[str, Image | Audio]] = []  # the same of pictures and sounds
        self.model, self._sessions, self._renderer, self._say = model, sessions, renderer, say
        self.answers, self.facts = answers or AnswerSettings(), facts or ModelFacts()
        self._system, self._turns = system, list[ChatTurn]()
        self._keeper = ChatKeeper(sessions, ChatSession(model=model.name), say)
        self._streamed = StreamedAnswer()  # the answer that comes now
        self._warned = set[str]()
        # Models that see, for a sentence to one that does not.
        self._seeing: Callable[[], Sequence[str]] = tuple
        if tools is not None:
            tools.heard, self._seeing = self._heard, tools.seeing
            self._keeper = ChatKeeper(sessions, self._keeper.session, say, tools.server_of)
        if session is not None:
            self._take(session, system)
        self._used, self._speed = 0, 0.0
        self.usages: list[Usage] = []  # of all answers so far

    @property
    def messages(self) -> list[Message]:
        """The messages so far, as a model reads them."""
        begin = [Message("system", self._system)] if self._system else []
        chat = [*begin, *(turn.message for turn in self._turns)]
        return [*tool_pictures(chat, self.facts.can_see, self._seeing)]

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

    def attach(self, name: str, image: Image | Audio) -> None:
        """Attach a picture or a sound to the next message. Raises UsageError where the model does not take it."""
        self._check(image)
        self._images.append((name, image))
        beside = f"; {UNSAVED}" if isinstance(image, Audio) else ""
        self._say(f"{described(name, image)}, attached to the next message{beside}")

    def _check(self, part: Image | Audio) -> None:
        if isinstance(part, Audio):
            check_hears(self.model.name, self.facts.can_listen)
        else:
            check_sees(self.model.name, self.facts.can_see)

    def ask(self, message: Message) -> None:
        """Answer a message; without an answer it is taken back, and stays in the file as a branch of its own."""
        for part in attached_of(message):
            self._check(part)
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
                    self._warn(chunk.warnings, waiting)
                    if answer.shown(chunk, renderer, waiting):
                        break
                    self._keeper.grow(answer)
            except KeyboardInterrupt:
                answer.stopped = True
            finally:
                stop(stream)
                renderer.finish()

    def _warn(self, warnings: tuple[str, ...], waiting: Waiting) -> None:
        """Say what is not known yet: a picture is in the prompt of every later turn too."""
        for line in (line for line in warnings if line not in self._warned):
            waiting.over()
            self._warned.add(line)
            self._say(f"note: {line}")

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


# --- the chat: a conversation with slash commands ---------------------------------------------------

# What `/set` changes, by name.
SETTINGS = {
    spelt(each): each
    for each in (
        *options_of(SamplingParams).values(),
        *(options_of(AnswerSettings)[name] for name in ("max_tokens", "overflow", "stop")),
    )
}


def parse_setting(name: str, text: str) -> tuple[FieldOption, Any]:
    """Read `/set NAME VALUE`; raise UsageError with the nearest name or the range."""
    name = name.replace("_", "-")
    if name not in SETTINGS:
        hint = suggestion(name, list(SETTINGS), f"settings: {', '.join(SETTINGS)}")
        raise UsageError(f"{name!r} is not a setting", hint)
    kind = click_type(SETTINGS[name])
    assert kind is not None  # none of them is a flag
    try:
        return SETTINGS[name], kind.convert(text, None, None)
    except click.BadParameter as e:
        problem = in_words(e.message.rstrip("."), kind) if text else "a value is missing"
        raise UsageError(f"{name}: {problem}", "/set lists the settings") from e


class Chat(Conversation):
    """A conversation with slash commands.

    `switch`: opens the model of a name instead of the present one, and closes that. `keep`: makes a model of the
    present one under a name, with a system prompt and the settings of now, and returns its name.
    """

    def __init__(
        self,
        model: ChatModel,
        sessions: Sessions,
        renderer: Callable[[], Renderer],
        say: Callable[[str], None],
        *,
        switch: Callable[[str], tuple[ChatModel, ModelFacts]] | None = None,
        keep: Callable[[str, str], str] | None = None,
        **conversation: Any,
    ) -> None:
        """Take the model and the outputs; the other keywords are those of Conversation."""
        super().__init__(model, sessions, renderer, say, **conversation)
        self._switch, self._keep = switch, keep
        self._leaving = False  # a lone "exit" was typed: a blank line leaves
        self._dropped: tuple[Path, ...] = ()  # pictures about which the user is asked

    def run(self, read: Callable[[], str]) -> None:
        """Read and answer until the user leaves; Ctrl-C at the prompt clears the line."""
        while True:
            try:
                text = read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("press Ctrl-D or type /bye to quit")
                continue
            if not self.handle(text):
                return

    def handle(self, text: str) -> bool:
        """Answer a message or run a command; False when the user leaves. Errors end only the turn."""
        asked = self._leaving
        self._leaving = text.strip().lower() in LEAVING and not asked
        if asked and not text.strip():
            return False
        if self._leaving:
            self._say(f"quit the chat? Enter quits; type {text.strip()} again to send it to the model")
            return True
        try:
            if self._asks_about(text):
                return True
            if text.lstrip().startswith("/"):
                return self._command(text.strip())
            if text.strip():
                files = "".join(with_file(name, content) for name, content in self._files)
                self.ask(with_images([image for _, image in self._images], files + text))
                self._files, self._images = [], []
        except FreeholdError as e:
            self._say(f"error: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""))
        return True

    def _asks_about(self, text: str) -> bool:
        """Ask whether pictures that were dropped are to be attached, or take the answer; False for any other line."""
        paths, self._dropped = self._dropped, ()
        if new := dropped(text):
            check_sees(self.model.name, self.facts.can_see)
            self._ask_whether(new)
            return True
        if not paths or text.lstrip().startswith("/"):
            return False
        answer = text.strip().lower()
        if answer in ("", "y", "yes"):
            for path in paths:
                self.attach(str(path), Image.open(path))
        elif answer in ("n", "no"):
            self._say("not attached")
        else:  # sent without the picture, the message would be answered for nothing
            self._ask_whether(paths)
        return True

    def _ask_whether(self, paths: tuple[Path, ...]) -> None:
        self._dropped = paths
        names = ", ".join(path.name for path in paths)
        self._say(f"attach {names} to the next message? Enter or y attaches, n does not")

    def _command(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        command = COMMANDS.get(ALIASES.get(word[1:], word[1:]))
        if command is None:
            near = nearest(word[1:], [*COMMANDS, *ALIASES])
            raise UsageError(
                f"{word} is not a command", f"did you mean /{near}?" if near else "/help lists them"
            )
        return command.act(self, rest.strip()) is not False

    def set_option(self, text: str) -> None:
        """Change a setting, or list all."""
        name, _, value = text.partition(" ")
        if not name:
            for name, each in SETTINGS.items():
                self._say(f"{name:<20}{self._value(each.field)}")
            return
        setting, parsed = parse_setting(name, value.strip())
        if setting.field in options_of(SamplingParams):
            self.answers.sampling = replace(self.answers.sampling, **{setting.field: parsed})
        else:
            setattr(self.answers, setting.field, (parsed,) if setting.field == "stop" else parsed)
        self._say(f"{spelt(setting)} = {parsed}")

    def _value(self, field: str) -> str:
        value = (
            getattr(self.answers, field)
            if hasattr(self.answers, field)
            else getattr(self.answers.sampling, field)
        )
        return "-" if value in (None, ()) else str(value)

    def system(self, text: str) -> None:
        """Set or show the system prompt."""
        self._system = text or self._system
        self._say(f"system: {self._system or '(none)'}")

    def clear(self, _: str) -> None:
        """Start a new session with the same system prompt."""
        self._turns = []
        self._keeper.use(ChatSession(model=self.model.name))
        self._used = 0
        self._say("cleared")

    def retry(self, _: str) -> None:
        """Answer the last message again; the earlier answer stays a branch."""
        last = self._last_user()
        self._ask_at(last, self._turns[last])

    def undo(self, _: str) -> None:
        """Take the last message and its answer back; the file keeps them as a branch."""
        self._turns = self._turns[: self._last_user()]
        self._keeper.show(self._turns, self._system)
        self._say("removed" + (f"; {self._asked()} left" if self._asked() else "; the chat is empty"))

    def save(self, name: str) -> None:
        """Make a model of this one, with the system prompt and settings of now."""
        if not name:
            raise UsageError(
                "/save NAME saves a model under NAME", "the chat itself is always saved; /name names it"
            )
        if self._keep is None:
            raise UsageError("no model can be made here", "freehold create NAME --from MODEL makes one")
        made = self._keep(name, self._system)
        self._say(f"created {made} (to chat: freehold run {made}; to remove: freehold rm {made})")

    def name(self, name: str) -> None:
        """Name the chat, or show its name."""
        name = name or self.session.name
        if self.session.name != name:
            check_name(name)
            if self._sessions.exists(name):
                raise UsageError(f"a session named {name} exists already", f"/load {name} continues it")
            self._keeper.rename(name, self._turns, self._system)
        else:
            self._keeper.show(self._turns, self._system)
        self._say(f"saved as {self.session.name}; freehold run --session {self.session.name} continues it")

    def load(self, name: str) -> None:
        """Continue a saved session, or list them."""
        if not name:
            for saved in self._sessions.recent():
                self._say(f"{saved.name:<20}{saved.title}")
            return
        session = self._sessions.load(name)
        self._take(session)
        note = "" if session.model == self.model.name else f" (it was with {session.model})"
        self._keeper.now_with(self.model.name)
        self._say(f"loaded {session.name}: {self._asked()} of your messages{note}")
        self._measure()

    def switch(self, name: str) -> None:
        """Switch to another model, or show the present one."""
        if not name or self._switch is None:
            self._say(f"model: {self.model.name} {self.facts.quantization}".rstrip())
            return
        self.model, self.facts = self._switch(name)
        self._keeper.now_with(self.model.name)
        self.usages, self._speed = [], 0.0
        self._measure()
        self._say(f"model: {self.model.name} {self.facts.quantization}".rstrip())

    def file(self, path: str) -> None:
        """Attach a text file to the next message, or list attached files."""
        if path:
            path_read = Path(path).expanduser()
            self._files.append((path_read.name, read_text_file(path_read)))
        for name, content in self._files:
            self._say(f"{name}: {len(content):,} characters, attached to the next message")
        if not self._files:
            self._say("no file; /file PATH attaches one to the next message")

    def image(self, path: str) -> None:
        """Attach a picture to the next message, or list attached pictures."""
        for each in (dropped(path) or (Path(path).expanduser(),)) if path else ():
            self.attach(str(each), Image.open(each))
        if not path:
            for name, image in self._images:
                self._say(f"{described(name, image)}, attached to the next message")
        if not self._images:
            self._say("no picture; /image PATH attaches one to the next message")

    def sound(self, path: str) -> None:
        """Attach a sound to the next message; a saved chat keeps its text alone."""
        if not path:
            raise UsageError("/sound needs a file", "/sound PATH, such as /sound question.wav")
        each = Path(path).expanduser()
        self.attach(str(each), Audio.open(each))

    def copy(self, _: str) -> None:
        """Copy the last answer to the clipboard."""
        answers = [m.content for m in self.messages if m.role == "assistant"]
        if not answers:
            raise UsageError("there is no answer yet")
        self._say(f"copied {len(answers[-1]):,} characters {copy(answers[-1])}")

    def edit(self, _: str) -> None:
        """Edit the last message in $EDITOR and answer it again, or write a new one."""
        users = [i for i, turn in enumerate(self._turns) if turn.message.role == "user"]
        place = users[-1] if users else len(self._turns)
        old = self._turns[place].message if users else Message("user")
        before = old.content
        text = edited(before)
        if text is None or not text.strip() or text == before:
            self._say("nothing was changed")
        else:
            self._ask_at(place, ChatTurn(with_images(attached_of(old), text)))

    def ctx(self, _: str) -> None:
        """Show how full the context is."""
        self._say(
            f"{self._used:,} of {self.facts.context:,} tokens, {len(self.messages)} messages; when full: "
            f"{self.answers.overflow} (/set overflow drop-oldest drops the oldest)"
        )

    def think(self, text: str) -> None:
        """Turn reasoning on or off, or leave it to the model (auto)."""
        choices = {"on": True, "off": False, "auto": None}
        if text not in choices:
            raise UsageError(f"/think {text!r} is not on, off or auto")
        self.model.check_think(choices[text])
        self.answers.think = choices[text]
        self._say(f"think = {text}")

    def help(self, _: str) -> None:
        """Show this list."""
        for name, command in COMMANDS.items():
            summary = (command.act.__doc__ or "").splitlines()[0]
            self._say(f"{'/' + name + ' ' + command.usage:<22}{summary}")
        self._say(
            'Alt-Enter or Ctrl-J: new line; """ opens and closes a block\n'
            "Ctrl-C stops an answer; Ctrl-D quits"
        )

    def bye(self, _: str) -> bool:
        """Leave."""
        return False


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command; the first line of its docstring is its help."""

    act: Callable[[Chat, str], bool | None]
    usage: str = ""


COMMANDS = {
    "model": Command(Chat.switch, "[NAME]"),
    "file": Command(Chat.file, "[PATH]"),
    "image": Command(Chat.image, "[PATH]"),
    "sound": Command(Chat.sound, "PATH"),
    "copy": Command(Chat.copy),
    "edit": Command(Chat.edit),
    "set": Command(Chat.set_option, "[NAME VALUE]"),
    "system": Command(Chat.system, "[TEXT]"),
    "think": Command(Chat.think, "on|off|auto"),
    "clear": Command(Chat.clear),
    "retry": Command(Chat.retry),
    "undo": Command(Chat.undo),
    "name": Command(Chat.name, "[NAME]"),
    "save": Command(Chat.save, "NAME"),
    "load": Command(Chat.load, "[NAME]"),
    "ctx": Command(Chat.ctx),
    "help": Command(Chat.help),
    "bye": Command(Chat.bye),
}
ALIASES = {"exit": "bye", "quit": "bye", "q": "bye", "?": "help"}
LEAVING = frozenset({"exit", "quit", "bye"})


# --- the clipboard and the editor, through the desktop's programs -----------------------------------
# Without a clipboard program the terminal sets it (OSC 52), which works through ssh.

# A program, and what must be set for it to work.
PROGRAMS = (
    (["pbcopy"], ""),
    (["wl-copy"], "WAYLAND_DISPLAY"),
    (["xclip", "-selection", "clipboard"], "DISPLAY"),
    (["xsel", "--clipboard", "--input"], "DISPLAY"),
    (["clip.exe"], "WSL_DISTRO_NAME"),
)
OSC52_BYTES = 74_000  # the least that terminals with this sequence take: xterm's limit
PATIENCE_S = 5.0


def copy(text: str) -> str:
    """Put text on the clipboard; return how. Raises UsageError if neither a program nor the terminal accepts it."""
    for command, needs in PROGRAMS:
        if shutil.which(command[0]) and (not needs or os.environ.get(needs)) and _fed(command, text):
            return f"by {command[0]}"
    raw = text.encode("utf-8")
    if len(raw) > OSC52_BYTES or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError(
            f"no clipboard accepts {len(raw):,} bytes here",
            "install wl-copy or xclip, or copy from the screen",
        )
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(raw).decode()}\x07")
    sys.stdout.flush()
    return "through the terminal (OSC 52)"


def _fed(command: list[str], text: str) -> bool:
    try:
        done = subprocess.run(command, input=text.encode("utf-8"), timeout=PATIENCE_S, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def edited(text: str) -> str | None:
    """Return text as edited in $VISUAL or $EDITOR; None if it was not saved."""
    try:
        changed = click.edit(text, extension=".md")
    except click.ClickException as e:
        raise UsageError(
            f"the editor failed: {e.format_message()}", "set EDITOR to one that is installed"
        ) from e
    return None if changed is None else changed.rstrip("\n")
