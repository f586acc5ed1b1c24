"""The console's routes, and its part for tools. Knows every handler of the console.

Of tools: servers, what they offer, and what was allowed for good; nothing is configured here. Knows callers and what
the pool has seen; knows no chat.
"""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from freehold.base.errors import FreeholdError
from freehold.base.types import MEDIA_TYPES
from freehold.serve.chats.types import ChatChange
from freehold.serve.http.console import chats, login, pictures, usage
from freehold.serve.http.console.choose import choose, models, starters
from freehold.serve.http.console.live import live
from freehold.serve.http.console.login import NothingAsked, me
from freehold.serve.http.console.runs import handlers as runs
from freehold.serve.http.console.training import compared, training, trainings
from freehold.serve.http.core.call import HttpCall, route
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.tools import allowed, run_tools, tool_servers, tool_user
from freehold.serve.tools.mcp.configured import ToolServer
from freehold.serve.tools.mcp.permissions import Permissions
from freehold.serve.tools.mcp.use import ToolServers

# --- tools -----------------------------------------------------------------------------------------

_LOOK = "settings"  # in place of a chat's id: whose server it is that was only looked at


async def tools(call: HttpCall) -> None:
    """List the MCP servers that the caller may use, their tools as last listed, and the permissions."""
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
    """Revoke a permission, in all chats."""
    servers, user = tool_servers(call.server), tool_user(call)
    digest = call.scope["path_params"]["digest"]
    if servers is None or not await call.in_thread(Permissions.of(servers.home, user).revoke, digest):
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


# --- routes ----------------------------------------------------------------------------------------


def console_routes() -> list[Route]:
    """Return the routes that the page asks besides those of `/v1` and `/api`."""
    return [
        route("GET", "/console/api/me", me, audience="all"),
        route("POST", "/console/login", login.login, login.LoginRequest, audience="all"),
        route("POST", "/console/owner", login.owner, login.OwnerRequest, audience="all"),
        route("POST", "/console/logout", login.logout, login.NothingAsked, audience="all"),
        route("POST", "/console/api/code", login.code, login.NothingAsked, audience="admin"),
        route("GET", "/console/api/keys", usage.keys, audience="admin"),
        route("POST", "/console/api/keys", usage.add, usage.KeyRequest, audience="admin", status=[201]),
        route("DELETE", "/console/api/keys/{name}", usage.revoke, audience="admin"),
        *fact_routes(),
        *_tools("/console/api/tools"),
        *_chats("/console/api/chats"),
        *_pictures("/console/api/chats/{chat}/pictures"),
        *_runs("/console/api/chats/{chat}", "/console/api/runs/{run}"),
    ]


def _chats(at: str) -> list[Route]:
    one = f"{at}/{{chat}}"
    files = ["application/json", "text/markdown"]
    return [
        route("GET", at, chats.chats, query=["limit", "after", "q"]),
        route("POST", at, chats.begin, chats.NewChat, status=[201]),
        route("GET", one, chats.chat, query=["last"]),
        route("PATCH", one, chats.change, ChatChange),
        route("DELETE", one, chats.delete),
        route("POST", f"{one}/restore", chats.restore, login.NothingAsked),
        route("GET", f"{one}/messages", chats.messages, query=["ids"]),
        route("POST", f"{one}/take-out", chats.take_out, chats.OneMessage),
        route("POST", f"{one}/put-back", chats.put_back, chats.SomeMessages),
        route("POST", f"{one}/answers", chats.edit_answer, chats.EditedAnswer, status=[201]),
        route("POST", f"{one}/verdict", chats.judge, chats.JudgedAnswer),
        route("POST", f"{one}/fork", chats.fork, chats.OneMessage, status=[201]),
        route("GET", f"{one}/export", chats.export, query=["as"], answer=files),
        route("POST", "/console/api/import", chats.take, chats.ImportedChat, status=[201]),
    ]


def _pictures(at: str) -> list[Route]:
    kinds = [*MEDIA_TYPES, "application/octet-stream"]
    return [
        route("POST", at, pictures.store, pictures.SentPicture, status=[201]),
        route("GET", f"{at}/{{digest}}", pictures.picture, answer=kinds),
        route("POST", "/console/api/pictures/tokens", pictures.tokens, pictures.PictureSizes),
    ]


def _tools(at: str) -> list[Route]:
    return [
        route("GET", at, tools, audience="any"),
        route("POST", f"{at}/{{name}}/try", try_server, login.NothingAsked, audience="any"),
        route("DELETE", f"{at}/permissions/{{digest}}", revoke, audience="any"),
    ]


def _runs(chat: str, run: str) -> list[Route]:
    return [
        route("POST", f"{chat}/runs", runs.start, runs.StartRun, status=[201]),
        route("POST", f"{chat}/again", runs.again, runs.ComputeAgain, status=[201]),
        route("GET", f"{chat}/difference", runs.difference, query=["a", "b"]),
        route("GET", f"{run}/events", runs.events, answer=["text/event-stream"], query=["after"]),
        route("POST", f"{run}/cancel", runs.cancel, login.NothingAsked),
        route("POST", f"{run}/approve", runs.approve, runs.ApproveCall),
    ]


# --- routes of the pages that show facts ------------------------------------------------------------


def fact_routes() -> list[Route]:
    """Return the routes that the pages of models, engine, usage and runs ask."""
    return [
        route("GET", "/console/api/live", live, audience="any", answer=["text/event-stream"]),
        route("GET", "/console/api/models", models, audience="any", query=["held", "newest"]),
        route("GET", "/console/api/starters", starters, audience="any"),
        route(
            "GET",
            "/console/api/choose",
            choose,
            audience="any",
            query=["verb", "model", "name", "task", "on"],
        ),
        route("GET", "/console/api/usage", usage.usage, audience="any", query=["days", "on"]),
        route("GET", "/console/api/training", trainings, audience="operator"),
        route("GET", "/console/api/training/compare", compared, audience="operator", query=["one", "other"]),
        route("GET", "/console/api/training/{id}", training, audience="operator"),
    ]
