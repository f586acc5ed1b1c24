"""What a chat is in memory: its messages as a tree, its settings, its card in a list.

The file's format is in docs/design/console.md. Knows no file and no model.
Path: server/console/routes.py -> SavedChat
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from freehold.chats.tools import ToolState
from freehold.types import Overflow

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
    images: tuple[str, ...] = ()  # data URLs
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

    def branch(self, leaf: str | None = None) -> list[SavedMessage]:
        """Return the messages from the root to `leaf`, or to the chat's own."""
        out: list[SavedMessage] = []
        at = leaf or self.leaf
        while at is not None:
            out.append(self.messages[at])
            at = self.messages[at].parent
        return out[::-1]
