"""The console's part for tools: servers, what they offer, and what was allowed for good; nothing is configured here.

Knows callers and what the pool has seen; knows no chat.
"""

from __future__ import annotations

from typing import Any

from freehold.base.errors import FreeholdError
from freehold.serve.http.console.login import NothingAsked
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.tools import allowed, run_tools, tool_servers, tool_user
from freehold.serve.tools.mcp.configured import ToolServer
from freehold.serve.tools.mcp.permissions import Permissions
from freehold.serve.tools.mcp.use import ToolServers

_LOOK = "settings"  # in place of a chat's id: whose server it is that was only looked at


async def tools(call: HttpCall) -> None:
    """List the servers that the caller may use, their tools as last seen, and the standing permissions."""
    user = tool_user(call)
    servers = tool_servers(call.server)
    servers_allowed = allowed(call.server, call.key, owner=not user)
    rows = [_row(server, servers, owner=not user) for server in servers_allowed.values()] if servers else []
    await call.answer({"servers": rows, "permissions": _standing(servers, user)})


async def try_server(call: HttpCall) -> None:
    """Start a server, list its tools, and stop it."""
    await call.struct(NothingAsked)
    name = call.scope["path_params"]["name"]
    runner = run_tools(call, _LOOK, [name], keep=False)
    try:
        await runner.offer()
    except FreeholdError:
        pass  # the row says what failed
    finally:
        await runner.aclose()
    servers = tool_servers(call.server)
    assert servers is not None
    await call.answer(_row(servers.server(name), servers, owner=not tool_user(call)))


async def revoke(call: HttpCall) -> None:
    """Take a standing permission back, in all chats."""
    servers, user = tool_servers(call.server), tool_user(call)
    if servers is None or not Permissions.of(servers.home, user).revoke(call.scope["path_params"]["digest"]):
        raise Refused(404, "no permission stands for this digest", code="no_permission")
    await call.answer({})


def _row(server: ToolServer, servers: ToolServers, *, owner: bool) -> dict[str, Any]:
    seen = servers.seen.get(server.name)
    running = servers.running().get(server.name, 0)
    state = "running" if running else "failed" if seen and seen.trouble else "idle"
    row: dict[str, Any] = {
        "name": server.name,
        "kind": "program" if server.command else "address",
        "state": state,
        "trouble": seen.trouble if seen else "",
        "tools": [tool.shown() for tool in seen.tools] if seen and not seen.trouble else None,
        "left_out": list(seen.left_out) if seen else [],
    }
    mine = {
        "where": server.where,
        "keys": list(server.keys),
        "env": sorted(server.env),
        "log": servers.lines(server.name),
    }
    return {**row, **mine} if owner else row


def _standing(servers: ToolServers | None, user: str) -> list[dict[str, Any]]:
    entries = Permissions.of(servers.home, user).entries() if servers else []
    return [
        {
            "digest": each.digest,
            "server": each.server,
            "tool": each.tool,
            "scope": each.scope,
            "chat": each.chat,
            "at": each.at,
            "text": each.text,
        }
        for each in reversed(entries)
    ]
