"""The tools of one run: offered under clear names, asked about, called, cut, and counted.

A permission is compared with what the server says at that moment: its tools are listed again before each call, and
again after an answer that took a while. Knows permissions and connections; knows no model, no page and no terminal.
Path: a run or a verb -> RunTools.offered, use -> AskUser -> ToolConnection.call -> ToolOutcome
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from freehold.errors import FreeholdError
from freehold.tools.mcp.contract import AskUser, Report, ToolAnswer, ToolOutcome, ToolQuestion
from freehold.tools.mcp.permissions import Permissions
from freehold.tools.mcp.pinning import PinnedTool, offer, pinned
from freehold.tools.mcp.pool import ToolServers
from freehold.tools.mcp.results import cut
from freehold.types import Tool, ToolCall

MAX_CALLS = 16  # of one answer
ASK_S = 600.0
_ASKS = 3  # of one call, whose tool changes while the question is open
_EDITED = "[The user changed the arguments of this call to {arguments}]\n"


class RunTools:
    """Implements contract.ToolUse.

    `user`: whose servers these are, a key and a chat. `key` "": the machine's user. `chat`: for which "chat" allows.
    """

    def __init__(
        self,
        servers: ToolServers,
        names: Sequence[str],
        *,
        user: str,
        key: str,
        chat: str,
        ask: AskUser,
        report: Report = lambda _: None,
        ask_s: float = ASK_S,
    ) -> None:
        self._servers, self._names, self._user, self._chat = servers, tuple(names), user, chat
        self._ask, self._report, self._ask_s = ask, report, ask_s
        self._permissions = Permissions.of(servers.home, key)
        self._offered: dict[str, tuple[Tool, PinnedTool]] = {}
        self._notes: list[str] = []
        self._calls = 0

    async def offered(self) -> tuple[Tool, ...]:
        """Start the servers and return their tools. A server that fails is noted, and the others are offered."""
        found: list[PinnedTool] = []
        for name in self._names:
            self._servers.server(name)  # a name that nobody configured is the caller's mistake
            try:
                tools, left_out = await self._listed(name)
            except FreeholdError as e:
                self._notes.append(e.message)
            else:
                found += tools
                self._notes += left_out
        self._offered = offer(found)
        return tuple(tool for tool, _ in self._offered.values())

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each server or tool that was left out."""
        return tuple(self._notes)

    def server_of(self, name: str) -> tuple[str, str]:
        """Return the server and the tool that a model's name stands for; ("", name) for none."""
        _, tool = self._offered.get(name, (None, None))
        return (tool.server, tool.name) if tool else ("", name)

    def tools(self) -> list[PinnedTool]:
        """Return what was offered."""
        return [tool for _, tool in self._offered.values()]

    def stands(self, name: str) -> bool:
        """Return whether a tool may be called without a question, as it was when it was offered."""
        _, tool = self._offered.get(name, (None, None))
        return tool is not None and self._permissions.allows(tool, self._chat)

    async def use(self, call: ToolCall) -> ToolOutcome:
        """Ask where no permission stands, call, and return what came of it. A cancelled call ends its server."""
        server, tool = self.server_of(call.name)
        outcome = ToolOutcome(call.id, server, tool, call.arguments, "failed", name=call.name)
        try:
            outcome = await self._use(call, outcome)
        except FreeholdError as e:
            outcome = replace(outcome, state="failed", text=f"The call failed: {e.message}")
        self._report(outcome)
        return outcome

    async def _use(self, call: ToolCall, outcome: ToolOutcome) -> ToolOutcome:
        if not outcome.server:
            return replace(outcome, text=f"There is no tool called {call.name[:100]!r}.")
        if self._calls >= MAX_CALLS:
            return replace(outcome, text=f"Not called: an answer may call tools {MAX_CALLS} times.")
        if (arguments := _object(call.arguments)) is None:
            return replace(outcome, text="Not called: the arguments are not a JSON object.")
        self._calls += 1
        answer = await self._approved(call, outcome)
        if answer.verdict == "deny":
            word = f" The user says: {cut(answer.word, 4000)}" if answer.word else ""
            return replace(outcome, state="denied", text=f"The user did not allow this call.{word}")
        said = ""
        if answer.arguments is not None and _object(answer.arguments) != arguments:
            edited = _object(answer.arguments)
            if edited is None:
                return replace(outcome, text="Not called: the edited arguments are not a JSON object.")
            arguments, outcome = edited, replace(outcome, arguments=answer.arguments)
            said = _EDITED.format(arguments=json.dumps(edited, ensure_ascii=False))
        self._report(replace(outcome, state="running"))
        connection = await self._servers.connected(self._user, outcome.server)
        result = await connection.call(outcome.tool, arguments)
        return replace(outcome, state="failed" if result.failed else "done", text=said + result.text)

    async def _approved(self, call: ToolCall, outcome: ToolOutcome) -> ToolAnswer:
        """Return the answer for the tool as it is now; a question whose tool changed meanwhile is asked again."""
        shown = ""
        for _ in range(_ASKS):
            tool = await self._now(outcome.server, outcome.tool)
            if tool is None:
                return ToolAnswer("deny", "the server does not offer this tool any more")
            if self._permissions.allows(tool, self._chat):
                return ToolAnswer("once")
            before = shown or self._permissions.before(tool) or self._offered_text(call.name, tool)
            answer = await self._ask(self._question(call, outcome, tool, before))
            if answer.verdict == "deny":
                return answer
            now = await self._now(outcome.server, outcome.tool)
            if now is not None and now.digest == tool.digest:
                self._permissions.grant(tool, answer.verdict, self._chat)
                return answer
            shown = tool.text
        return ToolAnswer("deny", "the tool changed each time that it was asked about")

    def _question(self, call: ToolCall, outcome: ToolOutcome, tool: PinnedTool, before: str) -> ToolQuestion:
        return ToolQuestion(
            call=call.id,
            server=tool.server,
            tool=tool.name,
            arguments=outcome.arguments,
            description=tool.description,
            annotations=tool.annotations,
            digest=tool.digest,
            before=before,
            after=tool.text if before else "",
            until=time.time() + self._ask_s,
        )

    def _offered_text(self, name: str, now: PinnedTool) -> str:
        """Return what the model was told of the tool, if the server now says something else."""
        _, offered = self._offered[name]
        return offered.text if offered.digest != now.digest else ""

    async def _now(self, server: str, tool: str) -> PinnedTool | None:
        tools, _ = await self._listed(server)
        return next((each for each in tools if each.name == tool), None)

    async def _listed(self, name: str) -> tuple[list[PinnedTool], list[str]]:
        connection = await self._servers.connected(self._user, name)
        return pinned(connection.server, await connection.listed())


def _object(text: str) -> dict[str, object] | None:
    """Return the JSON object that a text is; no arguments are an empty one."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
