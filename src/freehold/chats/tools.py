"""What an answer's tools are asked and say: the contract between a loop of answers and calls, and what runs tools.

A loop (a run of the page, `freehold run`) offers `ToolRunner.offer()` to the model, and calls `use` for each call of
its answer, with a desk through which the runner asks for approval and shows each call. Knows no protocol of tools.
Path: server/console/runs/chatrun.py -> ToolRunner.use -> ToolDesk.ask, ToolDesk.say -> ToolResult
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from freehold.types import Tool, ToolCall

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
