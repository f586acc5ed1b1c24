"""Tools of MCP servers in a response: `{"type": "mcp", "server_label": NAME}` of servers that the owner configured.

Each call of the model ends the response with an `mcp_approval_request`; the request that brings its
`mcp_approval_response` runs the call first, and has it as an `mcp_call` before the model's next words. An approval
holds for the tool as it was: its id carries a part of the digest. Knows items and RunTools; knows no event.
Path: routes.create -> McpTools.opened -> RunTools.use; fields.py reads what came of it
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.limits import typed
from freehold.server.core.problems import Refused
from freehold.server.core.tools import run_tools
from freehold.types import Tool, ToolCall

if TYPE_CHECKING:
    from freehold.chats.types import ToolAnswer, ToolQuestion, ToolStep
    from freehold.tools.mcp.permissions import PinnedTool
    from freehold.tools.mcp.use import RunTools

DENIED = "The user did not allow this call."
_PIN = 24  # characters of a digest in an approval's id
_MEANT = {"type", "server_label", "allowed_tools", "require_approval", "server_description"}
Label = Annotated[str, Meta(min_length=1, max_length=64)]


class ToolNames(Struct, kw_only=True):
    """Tools by name."""

    tool_names: Annotated[list[str], Meta(max_length=256)] = []


class McpTool(Struct, kw_only=True):
    """A configured server whose tools the model may call. `require_approval`: `always`, which is what holds anyway."""

    server_label: Label
    allowed_tools: Annotated[list[str], Meta(max_length=256)] | ToolNames | None = None
    require_approval: Literal["always"] | None = None
    server_description: str | None = None  # for the model, which reads the server's own words here

    @property
    def names(self) -> list[str] | None:
        """The tools that are offered; None: all."""
        allowed = self.allowed_tools
        return allowed.tool_names if isinstance(allowed, ToolNames) else allowed


def wanted(tools: Sequence[Any]) -> dict[str, McpTool]:
    """Return the MCP servers that a request names. Raises Refused for what a request may not say."""
    by_label: dict[str, McpTool] = {}
    for i, raw in enumerate(tools):
        if not isinstance(raw, dict) or raw.get("type") != "mcp":
            continue
        at = f"tools[{i}]"
        for name in sorted(raw.keys() - _MEANT):
            if raw[name] is not None:
                message = f"{at}.{name}: a request configures no server; the owner does, by freehold mcp add"
                raise Refused(400, message, param=f"{at}.{name}", code="unsupported_parameter")
        if raw.get("require_approval") not in (None, "always"):
            message = f"{at}.require_approval: a request cannot lower it; leave it out, or send always"
            raise Refused(400, message, param=f"{at}.require_approval", code="unsupported_parameter")
        tool = typed(raw, McpTool, at)
        if tool.server_label in by_label:
            raise Refused(400, f"{at} names {tool.server_label!r} again", param=f"{at}.server_label")
        by_label[tool.server_label] = tool
    return by_label


class McpTools:
    """The MCP tools of one response."""

    def __init__(self, runner: RunTools | None, servers: Mapping[str, McpTool]) -> None:
        self._runner, self._servers = runner, servers
        self.offered: tuple[Tool, ...] = ()
        self.pinned: dict[str, PinnedTool] = {}  # by the model's name
        self.first: list[dict[str, Any]] = []  # items that come before the model's own

    @classmethod
    async def opened(cls, call: HttpCall, tools: Sequence[Any]) -> McpTools:
        """Start the servers that a request names. Raises Refused, FreeholdErrors."""
        servers = wanted(tools)
        runner = run_tools(call, "", list(servers), keep=False) if servers else None
        opened_tools = cls(runner, servers)
        if runner is not None:
            opened_tools._offer(await runner.offer(), runner.tools())
        return opened_tools

    async def aclose(self) -> None:
        """End the servers."""
        if self._runner is not None:
            await self._runner.aclose()

    def name_of(self, item: Mapping[str, Any]) -> str:
        """Return by which name the model knows the tool of an item."""
        for name, tool in self.pinned.items():
            if (tool.server, tool.name) == (item.get("server_label"), item.get("name")):
                return name
        return str(item.get("name"))[:64]

    async def read(self, items: Sequence[Any]) -> list[Any]:
        """Return the items with what the chat needs of MCP's: calls with results. Runs what was approved."""
        requests = {str(i.get("id")): i for i in items if _is(i, "mcp_approval_request")}
        done = {i.get("approval_request_id") for i in items if _is(i, "mcp_call")}
        if not any(_is(i, "mcp_list_tools") for i in items):
            self.first += self._listed()
        out: list[Any] = []
        for item in items:
            if self._runner is not None and isinstance(item, dict) and item.get("role") == "user":
                self._runner.forget()
            if _is(item, "mcp_approval_response"):
                id = str(item.get("approval_request_id"))
                if id in done:
                    continue
                if id not in requests:
                    raise Refused(
                        400,
                        f"no item asks for the approval {id[:80]!r}",
                        param="input",
                        code="invalid_value",
                    )
                done.add(id)
                out += self._chat(await self._answered(requests[id], item))
            elif _is(item, "mcp_call"):
                self._recall(item)
                out += self._chat(item)
            elif not (_is(item, "mcp_approval_request") or _is(item, "mcp_list_tools")):
                out.append(item)
        return out

    def _recall(self, item: Mapping[str, Any]) -> None:
        if self._runner is not None and isinstance(output := item.get("output"), str):
            call = ToolCall(str(item.get("id")), self.name_of(item), str(item.get("arguments")))
            self._runner.recall(call, output)

    def _offer(self, tools: Iterable[Tool], pinned: Mapping[str, PinnedTool]) -> None:
        for tool in tools:
            names = self._servers[pinned[tool.name].server].names
            if names is None or pinned[tool.name].name in names:
                self.offered = (*self.offered, tool)
                self.pinned[tool.name] = pinned[tool.name]

    def _listed(self) -> list[dict[str, Any]]:
        rows: dict[str, list[dict[str, Any]]] = {label: [] for label in self._servers}
        for tool in self.pinned.values():
            row = {key: value for key, value in tool.shown().items() if key != "digest"}
            rows[tool.server].append(row)
        return [
            {"type": "mcp_list_tools", "id": _id("mcpl"), "server_label": label, "tools": tools}
            for label, tools in rows.items()
        ]

    async def _answered(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call's item; one that was approved is run and shown among the response's items."""
        item: dict[str, Any] = {
            "type": "mcp_call",
            "id": _id("mcp"),
            "approval_request_id": request.get("id"),
            "server_label": str(request.get("server_label")),
            "name": str(request.get("name")),
            "arguments": str(request.get("arguments")),
            "output": None,
            "error": None,
        }
        if answer.get("approve") is not True:
            reason = str(answer.get("reason") or "")[:1000]
            return {**item, "error": f"{DENIED} {reason}".rstrip()}
        if self._runner is None:
            raise Refused(400, "an approved call needs its server among tools", param="tools")
        call = ToolCall(item["id"], self.name_of(request), item["arguments"])
        result = await self._runner.use(call, _Approved(str(request.get("id"))))
        item["error" if result.failed else "output"] = result.content
        self.first.append(item)
        return item

    def _chat(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a call and its result as the items by which chats have them."""
        id, output = str(call.get("id")), call.get("output")
        return [
            {
                "type": "function_call",
                "call_id": id,
                "name": self.name_of(call),
                "arguments": str(call.get("arguments")),
            },
            {
                "type": "function_call_output",
                "call_id": id,
                "output": str(call.get("error") if output is None else output),
            },
        ]


class _Approved:
    """Implements ToolDesk: allows the one tool that was approved, as it was described then."""

    def __init__(self, id: str) -> None:
        self._pin = id.rpartition("_")[2]

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        from freehold.chats.types import ToolAnswer

        if question.digest[:_PIN] == self._pin:
            return ToolAnswer(verdict="once")
        return ToolAnswer(verdict="deny", word="the tool has changed since the approval was asked for")

    def say(self, step: ToolStep) -> None:
        return


def approval_id(tool: PinnedTool) -> str:
    """Return the id of a request for approval, which says what is approved."""
    return f"{_id('mcpr')}_{tool.digest[:_PIN]}"


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _is(item: Any, kind: str) -> bool:
    return isinstance(item, dict) and item.get("type") == kind
