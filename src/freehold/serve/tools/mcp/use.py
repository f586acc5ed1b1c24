"""The tools of one run: offered under clear names, asked about, called, cut, and counted.

A permission is compared with what the server says at that moment: its tools are listed again before each call, and
again after the user's answer, which may take minutes. Knows permissions and connections; knows no model, no page and no
terminal.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.base.errors import FreeholdError, Overloaded, UsageError
from freehold.base.types import Tool, ToolCall
from freehold.serve.chats.types import ToolAnswer, ToolDesk, ToolQuestion, ToolResult, ToolState, ToolStep
from freehold.serve.tools.mcp.configured import ToolServer, tool_servers
from freehold.serve.tools.mcp.connection import ToolConnection, cut
from freehold.serve.tools.mcp.permissions import Permissions, PinnedTool, offered, pinned
from freehold.serve.tools.pictures import usable

MAX_CALLS = 16  # of one answer
MAX_WORD = 4000  # bytes of what a user says with a denial
_ASKS = 3  # of one call, whose tool changes while the question is open
_EDITED = "[The user changed the arguments of this call to {arguments}]\n"
# Small models repeat a call whose result they have, without end; where the result says so, they answer.
_AGAIN = "\n[This result is the same as before. Answer the user's question with it, in words.]"


class RunTools:
    """Implements chats.types.ToolRunner.

    `key` "": the machine's user. `chat`: whose servers these are, beside the key, and for which "chat" allows. `keep`:
    servers stay for the chat's next run, which they share with others of the chat.
    """

    def __init__(
        self, servers: ToolServers, names: Sequence[str], *, key: str, chat: str, keep: bool = False
    ) -> None:
        self._servers, self._names, self._chat, self._keep = servers, tuple(dict.fromkeys(names)), chat, keep
        # A run that keeps nothing has servers of its own: it ends them, and another may be in the midst of a call.
        self._user = f"{key}/{chat}" if keep else f"{key}/{chat} {secrets.token_hex(8)}"
        self._permissions = Permissions.of(servers.home, key)
        self._offered: dict[str, tuple[Tool, PinnedTool]] = {}
        self._calls = 0
        self._results: dict[str, str] = {}  # of this answer's calls, by tool and arguments

    async def offer(self) -> Sequence[Tool]:
        """Start the servers and return their tools. Raises FreeholdErrors that name the server at fault."""
        tools: list[PinnedTool] = []
        for name in self._names:
            tools += await self._servers.listed(self._user, name)
        self._offered = offered(tools)
        return [tool for tool, _ in self._offered.values()]

    def tools(self) -> dict[str, PinnedTool]:
        """Return what was offered, by the names that the model sees."""
        return {name: tool for name, (_, tool) in self._offered.items()}

    def server_of(self, name: str) -> str:
        """Return the server of an offered tool; "" for a name that was not offered."""
        tool = self._tool(name)
        return tool.server if tool else ""

    async def stands(self, name: str) -> bool:
        """Return whether a tool may be called without a question, as its server describes it now."""
        tool = self._tool(name)
        now = tool and await self._now(tool)
        return now is not None and self._permissions.allows(now, self._chat)

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        """Run a call once it is allowed. What fails, is denied or is unknown is a result too; cancelled, it stops."""
        tool = self._tool(call.name)
        if tool is None:
            return ToolResult(content=f"There is no tool called {call.name[:100]!r}.", state="failed")
        step = _ToolStep(call, tool, desk)
        try:
            await self._use(step)
        except FreeholdError as e:
            step.end("failed", f"The call failed: {e.message}")
        return ToolResult(content=step.result, images=step.images, server=tool.server, state=step.state)

    def recall(self, call: ToolCall, result: str) -> None:
        """Take in a call that this answer made before, in another request."""
        self._results[_call_key(call)] = result.removesuffix(_AGAIN)

    def forget(self) -> None:
        """Begin another answer, whose calls repeat none of those before."""
        self._results = {}

    def noted(self, call: ToolCall, result: str) -> str:
        """Return a result, with a word to the model where the same call of this answer had the same; and keep it."""
        before = self._results.get(_call_key(call))
        self._results[_call_key(call)] = result
        return result + _AGAIN if before == result else result

    async def aclose(self) -> None:
        """End the servers, unless the chat keeps them; the pool ends those that are idle."""
        if not self._keep:
            await self._servers.release(self._user)

    async def _use(self, step: _ToolStep) -> None:
        if self._calls >= MAX_CALLS:
            return step.end("failed", f"Not called: an answer may call tools {MAX_CALLS} times.")
        arguments = _object(step.arguments)
        if arguments is None:
            return step.end("failed", "Not called: the arguments are not a JSON object.")
        self._calls += 1
        answer = await self._approved(step)
        if answer.verdict == "deny":
            word = f" The user says: {cut(answer.word, MAX_WORD)}" if answer.word else ""
            return step.end("denied", f"The user did not allow this call.{word}")
        prefix = ""
        if answer.arguments is not None and (edited := _object(answer.arguments)) != arguments:
            step.arguments = answer.arguments
            if edited is None:
                return step.end("failed", "Not called: the edited arguments are not a JSON object.")
            arguments, prefix = edited, _EDITED.format(arguments=json.dumps(edited, ensure_ascii=False))
        step.say("running")
        connection = await self._servers.connected(self._user, step.tool.server)
        result = await connection.call(step.tool.name, arguments)
        call = ToolCall(step.id, step.name, json.dumps(arguments))
        step.images, lines = await asyncio.to_thread(usable, result.images)
        text = self.noted(call, "\n".join((result.text, *lines)))
        return step.end("failed" if result.failed else "done", prefix + text)

    async def _approved(self, step: _ToolStep) -> ToolAnswer:
        """Return the answer for the tool as it is now; a question whose tool changed meanwhile is asked again."""
        known = step.tool
        for _ in range(_ASKS):
            tool = await self._now(step.tool)
            if tool is None:
                return ToolAnswer(verdict="deny", word="its server does not offer the tool any more")
            if self._permissions.allows(tool, self._chat):
                return ToolAnswer(verdict="once")
            before = self._permissions.before(tool) or (known.text if known.digest != tool.digest else "")
            answer = await step.desk.ask(step.question(tool, before))
            if answer.verdict == "deny":
                return answer
            now = await self._now(step.tool)
            if now is not None and now.digest == tool.digest:
                self._permissions.grant(tool, answer.verdict, self._chat)
                return answer
            known = tool
        return ToolAnswer(verdict="deny", word="the tool changed each time that it was asked about")

    def _tool(self, name: str) -> PinnedTool | None:
        return self._offered[name][1] if name in self._offered else None

    async def _now(self, tool: PinnedTool) -> PinnedTool | None:
        tools = await self._servers.listed(self._user, tool.server)
        return next((each for each in tools if each.name == tool.name), None)


class _ToolStep:
    """One call on its way, and what the desk sees of it."""

    def __init__(self, call: ToolCall, tool: PinnedTool, desk: ToolDesk) -> None:
        self.id, self.name, self.arguments = call.id, call.name, call.arguments
        self.tool, self.desk = tool, desk
        self.state: ToolState = "failed"
        self.result = ""
        self.images: tuple[str, ...] = ()

    def question(self, tool: PinnedTool, before: str) -> ToolQuestion:
        claims: dict[str, Any] = {"description": tool.description, "annotations": dict(tool.annotations)}
        changed = {"before": before, "after": tool.text} if before else None
        return ToolQuestion(
            call=self.id,
            server=tool.server,
            tool=tool.name,
            arguments=self.arguments,
            claims=claims,
            changed=changed,
            digest=tool.digest,
        )

    def say(self, state: ToolState, result: str | None = None) -> None:
        tool = self.tool
        self.desk.say(
            ToolStep(
                call=self.id,
                server=tool.server,
                tool=tool.name,
                arguments=self.arguments,
                state=state,
                result=result,
            )
        )

    def end(self, state: ToolState, result: str) -> None:
        self.state, self.result = state, result
        self.say(state, result)


def _call_key(call: ToolCall) -> str:
    """Return what two calls of one tool with the same arguments have in common."""
    return json.dumps([call.name, _object(call.arguments)], sort_keys=True)


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is; no arguments are an empty one."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- the servers of tools that run for this process, one for each chat that uses it -----------------
# Two chats never share a server: its state may hold what one of them sent. One that is idle ends after five
# minutes, and beyond eight the one that was used longest ago, unless it is in a call.

IDLE_S = 300.0
MOST, STARTING = 8, 4  # processes: that run, and that start beside them
ROOM_S = 30.0  # a start waits so long for one that is in no call
_LOOK_S = 20.0


@dataclass(frozen=True, slots=True)
class SeenServer:
    """What came of a server's last listing."""

    tools: tuple[PinnedTool, ...] = ()
    left_out: tuple[str, ...] = ()
    trouble: str = ""


class ToolServers:
    """All that is configured, and what of it runs. `table` returns `[mcp]` as it is now."""

    def __init__(self, table: Callable[[], Mapping[str, Any]], home: Path, idle_s: float = IDLE_S) -> None:
        self._table, self.home, self._idle_s = table, home, idle_s
        self.seen: dict[str, SeenServer] = {}  # by the server's name
        self._running: dict[tuple[str, str], ToolConnection] = {}
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}
        self._places = asyncio.Semaphore(STARTING)
        self._sweeper: asyncio.Task[None] | None = None

    def configured(self) -> dict[str, ToolServer]:
        """Return the servers by name. Raises UsageError for what is wrong in the configuration."""
        return tool_servers(self._table())

    def server(self, name: str) -> ToolServer:
        """Return a server. Raises UsageError if none has this name."""
        servers = self.configured()
        if name not in servers:
            known = f"configured: {', '.join(servers)}" if servers else "freehold mcp add NAME makes one"
            raise UsageError(f"no tool server named {name[:60]!r}", known)
        return servers[name]

    def for_key(self, key: str | None) -> dict[str, ToolServer]:
        """Return the servers that a key may use; None: the owner, who may use all."""
        return {n: s for n, s in self.configured().items() if key is None or key in s.keys}

    def running(self) -> dict[str, int]:
        """Return how many of each server run."""
        names = [name for (_, name), connection in self._running.items() if connection.alive]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def lines(self, name: str) -> list[str]:
        """Return what the server of a name wrote last for people."""
        stderr = [c.lines for (_, each), c in self._running.items() if each == name]
        return stderr[-1] if stderr else []

    async def listed(self, user: str, name: str) -> list[PinnedTool]:
        """Return the tools of a server as it describes them now, and remember them for lists. Raises as `connected`."""
        try:
            connection = await self.connected(user, name)
            tools, left_out = pinned(connection.server, await connection.listed())
        except FreeholdError as e:
            self.seen[name] = SeenServer(trouble=e.message)
            raise
        self.seen[name] = SeenServer(tuple(tools), tuple(left_out))
        return tools

    async def connected(self, user: str, name: str) -> ToolConnection:
        """Return the server of a chat, started if it does not run. Raises as ToolConnection.start.

        `user`: a key and a chat, which share its state. A server whose configuration has changed is started anew.
        """
        key = (user, name)
        async with self._starting.setdefault(key, asyncio.Lock()):
            server = self.server(name)
            connection = self._running.get(key)
            if connection is not None and (not connection.alive or connection.server != server):
                del self._running[key]
                await connection.close(now=True)
                connection = None
            if connection is None:
                connection = self._running[key] = await self._started(server)
                self._sweep()
            connection.used_at = time.monotonic()
            return connection

    async def _started(self, server: ToolServer) -> ToolConnection:
        """Start a server, of which few start at once, and make room for it."""
        async with self._places:
            connection = ToolConnection(server)
            try:
                await connection.start()
                await self._make_room()
            except BaseException:
                await asyncio.shield(connection.close(now=True))
                raise
            return connection

    async def release(self, user: str) -> None:
        """End the servers of a chat."""
        for key in [key for key in self._starting if key[0] == user]:
            del self._starting[key]
            if (connection := self._running.pop(key, None)) is not None:
                await connection.close()

    async def close(self) -> None:
        """End all of them, and wait until they are gone."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        running, self._running = list(self._running.values()), {}
        await asyncio.gather(*(connection.close(now=True) for connection in running), return_exceptions=True)

    async def _make_room(self) -> None:
        """End the one that was used longest ago, once one is in no call. Raises Overloaded after ROOM_S."""
        until = time.monotonic() + ROOM_S
        while len(self._running) >= MOST:
            idle = [key for key, each in self._running.items() if not each.calls]
            if idle:
                oldest = min(idle, key=lambda key: self._running[key].used_at)
                self._starting.pop(oldest, None)
                await self._running.pop(oldest).close(f"more than {MOST} servers ran", now=True)
            elif time.monotonic() > until:
                raise Overloaded(
                    f"all {MOST} servers of tools that may run at once have been in calls for {ROOM_S:g} s",
                    "try again when other answers with tools have ended",
                )
            else:
                await asyncio.sleep(0.05)

    def _sweep(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_idle(), name="mcp idle")

    async def _sweep_idle(self) -> None:
        while self._running:
            await asyncio.sleep(min(_LOOK_S, self._idle_s / 2))
            since = time.monotonic() - self._idle_s
            for key in [key for key, each in self._running.items() if each.used_at < since or not each.alive]:
                self._starting.pop(key, None)
                await self._running.pop(key).close()


# --- hostile text made visible for a terminal -------------------------------------------------------
# What would be obeyed, or not be seen, is shown by its number.

_KEPT = frozenset("\n\t ")
# Not control or format characters, and yet blank: fillers and selectors by which texts are hidden.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5")


def visible(text: str, *, lines: bool = True) -> str:
    """Return `text` with invisible, control and direction characters as \\u{...}. `lines` False: line ends too."""
    return "".join(c if _seen(c, lines) else f"\\u{{{ord(c):x}}}" for c in text)


def visible_json(text: str) -> str:
    """Return a text of JSON over several lines with all of it visible; other text as it is."""
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return visible(text)


def _seen(c: str, lines: bool) -> bool:
    if c in _KEPT:
        return lines or c == " "
    if c in _BLANK or 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF:
        return False
    return unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
