"""What a run knows of tools: those it may offer, the question before a call, and what came of it.

    tools = RunTools(servers, owner, names, ask=questions.ask, report=publish)
    job = replace(job, tools=await tools.offered())
    outcome = await tools.use(call)          # asks, calls, cuts; raises for nothing that a tool does
    message = outcome.message()              # which answers the call

Knows no server and no protocol. Path: runs and verbs -> ToolUse -> RunTools in tools/mcp/use.py
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from freehold.types import Message, Tool, ToolCall

MAX_MESSAGE = (
    4 << 20
)  # bytes of one message of a server: it is parsed beside the streams of all users, in some 20 ms
ToolVerdict = Literal["deny", "once", "chat", "always"]
VERDICTS: tuple[ToolVerdict, ...] = ("deny", "once", "chat", "always")
ToolState = Literal["running", "done", "denied", "failed"]


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """A call that waits for approval. All texts are the model's and the server's: hostile."""

    call: str  # id of the call
    server: str  # as the configuration names it
    tool: str  # as its server names it
    arguments: str  # the text of a JSON object, whole
    description: str  # what the tool says of itself
    annotations: Mapping[str, Any]  # likewise: readOnlyHint and its like
    digest: str  # of what a standing permission would be for
    before: str = ""  # what was approved earlier under this name, as JSON, where it is no longer the same
    after: str = ""  # and what it is now
    until: float = 0.0  # seconds since 1970; no answer by then is a denial

    def event(self) -> dict[str, Any]:
        """Return it as the console's `ask` event has it."""
        said = {
            "call": self.call,
            "server": self.server,
            "tool": self.tool,
            "arguments": self.arguments,
            "claims": {"description": self.description, "annotations": dict(self.annotations)},
            "until": self.until,
        }
        return said | ({"changed": {"before": self.before, "after": self.after}} if self.before else {})


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What the user said to a question. `word`: to the model, with a denial."""

    verdict: ToolVerdict
    word: str = ""
    arguments: str | None = None  # edited: used in place of the model's


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a call is or was: an event of a run, and at its end the message that answers the call."""

    call: str
    server: str
    tool: str
    arguments: str  # as they were used
    state: ToolState
    text: str = ""  # for the model
    name: str = field(default="", kw_only=True)  # of the tool, as the model called it

    def message(self) -> Message:
        """Return the turn that answers the call."""
        failed = self.state in ("failed", "denied")
        return Message("tool", self.text, tool_call_id=self.call, name=self.name, failed=failed)

    def event(self) -> dict[str, Any]:
        """Return it as the console's `tool` event has it."""
        said = {
            "call": self.call,
            "server": self.server,
            "tool": self.tool,
            "arguments": self.arguments,
            "state": self.state,
        }
        return said if self.state == "running" else {**said, "result": self.text}


AskUser = Callable[[ToolQuestion], Awaitable[ToolAnswer]]
Report = Callable[[ToolOutcome], None]  # called when a call begins to run, and when it has ended


class ToolUse(Protocol):
    """The tools of one run. Not for two tasks at a time."""

    async def offered(self) -> tuple[Tool, ...]:
        """Return the tools for the model, under names that clash with none. Raises UsageError."""
        ...

    async def use(self, call: ToolCall) -> ToolOutcome:
        """Ask where no permission stands, call, and return what came of it. A cancelled call ends its server."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each server or tool that was left out."""
        ...
