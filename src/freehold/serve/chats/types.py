"""What a chat is in memory: its messages as a tree, its settings, its card in a list.

The file's format is in docs/design/console.md. Knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import UNSET, Struct, UnsetType, field

from freehold.base.types import Overflow, Tool, ToolCall

Role = Literal["system", "user", "assistant", "tool"]
ChatFinish = Literal["stop", "length", "tool_calls", "stopped", "failed", "lost"]
ChatState = Literal["whole", "open", "stopped", "length", "failed", "lost"]


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
