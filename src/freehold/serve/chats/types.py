"""What a chat is in memory, and its file as bytes: its messages as a tree, its settings, its card in a list.

A file has one JSON object a line, appended; what each line means is in docs/design/console.md. Reading is lenient where
that loses nothing: a torn last line is left out, a line that is damaged is skipped and counted, what hung on it hangs
on the message before. Knows no file, no lock, no clock and no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from freehold.base.types import Overflow, Tool, ToolCall
from freehold.serve.chats.pictures import is_reference

Role = Literal["system", "user", "assistant", "tool"]
ChatFinish = Literal["stop", "length", "tool_calls", "stopped", "failed", "lost"]
ChatState = Literal["whole", "open", "stopped", "length", "failed", "lost"]
Verdict = Literal["", "good", "poor"]


class AttachedFile(Struct, frozen=True, kw_only=True):
    """A text that came with a message."""

    name: str
    text: str


class AskedTool(Struct, frozen=True, kw_only=True):
    """A tool that an answer calls. `arguments`: JSON, as the model wrote it."""

    id: str
    server: str
    name: str
    arguments: str


class SavedMessage(Struct, kw_only=True):
    """One message of a chat's tree."""

    id: str
    parent: str | None
    role: Role
    content: str = ""
    thinking: str = ""
    at: float = 0.0  # seconds since 1970; 0: not known
    model: str = ""
    files: tuple[AttachedFile, ...] = ()
    images: tuple[str, ...] = ()  # references of its chat's pictures; data URLs in files of earlier versions
    calls: tuple[AskedTool, ...] = ()
    call: str = ""  # of a tool's message: the call that it answers,
    outcome: ToolState | None = None  # and how that ended; None: not known
    state: ChatState = "whole"
    receipt: dict[str, Any] | None = None
    error: dict[str, Any] | None = None  # of a failed answer: message and hint
    edited: bool = False  # of an answer: the user wrote it, in place of the model's
    verdict: Verdict = ""  # of an answer: the user's thumb, up or down


class ChatSettings(Struct, kw_only=True, omit_defaults=True):
    """What a chat's next answers are made with, beside its model."""

    system: str = ""
    think: bool | None = None
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of SamplingParams that were given
    tools: list[str] = field(default_factory=list)  # servers of `[mcp]`
    overflow: Overflow = "drop-oldest"  # where the context is full; "error": the answer fails


class ChatChange(Struct, kw_only=True, omit_defaults=True):
    """What is changed of a chat beside its messages; what is left out stays."""

    title: str | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    leaf: str | UnsetType | None = UNSET  # None: an empty branch, before every message
    model: str | UnsetType = UNSET
    settings: ChatSettings | UnsetType = UNSET


class ChatCard(Struct, kw_only=True):
    """A chat as a list shows it."""

    id: str
    title: str  # as it was set, or the first line that the user wrote
    model: str
    created: str  # ISO 8601
    updated: float  # seconds since 1970: its newest message, whatever was renamed since
    pinned: bool
    messages: int
    running: bool = False  # an answer is being written
    named: bool = False  # its title was set


class ChatMatch(Struct, kw_only=True):
    """A message that contains the text searched for; `excerpt` is the text around it."""

    chat: ChatCard
    message: str
    role: Role
    excerpt: str


class SavedChat(Struct, kw_only=True):
    """A whole chat. `messages` in the order in which they were written, so a parent comes before its children."""

    card: ChatCard
    settings: ChatSettings
    leaf: str | None  # the end of the branch that is shown
    messages: dict[str, SavedMessage]
    skipped: int = 0  # lines that could not be read
    pictures: set[str] = field(default_factory=set)  # named by any line, of messages that were taken out too

    def branch(self, leaf: str | None = None) -> list[SavedMessage]:
        """Return the messages from the root to `leaf`, or to the chat's own."""
        out: list[SavedMessage] = []
        at = leaf or self.leaf
        while at is not None:
            out.append(self.messages[at])
            at = self.messages[at].parent
        return out[::-1]


# --- what an answer's tools are asked and say -------------------------------------------------------
# The contract between a loop of answers and calls, and what runs tools.
# A loop (a run of the page, `freehold run`) offers `ToolRunner.offer()` to the model, and calls `use` for
# each call of its answer, with a desk through which the runner asks for approval and shows each call.

ToolVerdict = Literal["deny", "once", "chat", "always"]
ToolState = Literal["running", "done", "denied", "failed"]
ASK_S = 600.0  # without an answer in so long a tool is denied
MAX_ROUNDS = 16  # of calls in one answer; a model that repeats a call whose result it has would not end


class ToolQuestion(Struct, kw_only=True, omit_defaults=True):
    """A call that needs approval: the data of an `ask` event."""

    call: str  # id of the ToolCall
    server: str
    tool: str
    arguments: str  # all of them, as JSON
    claims: dict[str, Any] = field(default_factory=dict)  # what the tool says of itself, unchecked
    changed: dict[str, Any] | None = None  # {"before", "after"} since it was allowed
    digest: str = ""  # of the tool as it is now: what a standing permission would be for


class ToolAnswer(Struct, kw_only=True, frozen=True):
    """The user's answer to a question."""

    verdict: ToolVerdict
    word: str = ""  # to the model, with "deny"
    arguments: str | None = None  # as the user edited them; None: as asked


class ToolStep(Struct, kw_only=True, omit_defaults=True):
    """The state of a call: the data of a `tool` event."""

    call: str
    server: str
    tool: str
    arguments: str
    state: ToolState
    result: str | None = None


class ToolResult(Struct, kw_only=True, frozen=True):
    """What a call gives the model."""

    content: str
    images: tuple[str, ...] = ()  # data URLs
    server: str = ""
    state: ToolState = "done"

    @property
    def failed(self) -> bool:
        """Whether there is no result of the tool: it failed, was denied or is unknown."""
        return self.state != "done"


class ToolDesk(Protocol):
    """The user, as a runner of tools sees them."""

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        """Show the question and wait for its answer; ASK_S without one is "deny"."""
        ...

    def say(self, step: ToolStep) -> None:
        """Show the state of a call."""
        ...


class ToolRunner(Protocol):
    """The tools of one chat's servers, for one run."""

    async def offer(self) -> Sequence[Tool]:
        """Return the tools that the model may call; raises FreeholdErrors that name the server at fault."""
        ...

    def server_of(self, name: str) -> str:
        """Return the server of an offered tool; "" for a name that was not offered."""
        ...

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        """Run a call once it is allowed. What fails, is denied or is unknown is a result too; cancelled, it stops."""
        ...

    async def aclose(self) -> None:
        """Release the servers that the run used."""
        ...


# --- lines of its file -----------------------------------------------------------------------------

MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
VERSION = 2  # 1 had neither ids nor branches, and was rewritten whole after each turn
TITLE_CHARS = 60
_STATES: dict[ChatFinish, ChatState] = {"stop": "whole", "tool_calls": "whole"}  # the others are called alike


class ChatLine(Struct, kw_only=True, omit_defaults=True):
    """Any line. Exactly one of `chat`, `role`, `more`, `end`, `judged`, `gone` and `set` says which.

    Others are ignored.
    """

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
    verdict: Verdict = ""

    judged: str | None = None  # an answer that gets this verdict

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
        elif line.judged is not None:
            self._judge(line.judged, line.verdict)
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
            verdict=line.verdict,
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

    def _judge(self, id: str, verdict: Verdict) -> None:
        message = self._messages.get(id)
        if message is None or message.role != "assistant":
            self._skipped += 1
            return
        message.verdict = verdict

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
