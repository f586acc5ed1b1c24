"""Who may use tools of which servers, and the tools of one run.

The owner may use all; a key those whose `keys` name it; a local program without a key none, since a browser's page
looks the same. What talks to servers is imported with the first use. Knows callers; knows no protocol and no
chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from freehold.base.config import tool_table
from freehold.base.errors import UsageError
from freehold.serve.http.core.call import HttpCall, Server
from freehold.serve.http.core.keys import Key
from freehold.serve.http.core.problems import Refused

if TYPE_CHECKING:
    from freehold.serve.tools.mcp.configured import ToolServer
    from freehold.serve.tools.mcp.use import RunTools, ToolServers


def tool_servers(server: Server) -> ToolServers | None:
    """Return the servers of tools, of which none runs before it is used; None for a server without a folder."""
    from freehold.serve.tools.mcp.use import ToolServers

    servers = server.part(ToolServers)
    if servers is None and server.home is not None:
        servers = server.parts[ToolServers] = ToolServers(partial(tool_table, server.home), server.home)
        server.ending.append(servers.close)
    return servers


def allowed(server: Server, key: Key | None, *, owner: bool) -> dict[str, ToolServer]:
    """Return the servers of tools that a caller may use, by name. Raises UsageError for a wrong configuration."""
    if not (owner or (key is not None and key.kind == "client")):
        return {}
    servers = tool_servers(server)
    if servers is None:
        return {}
    return servers.for_key(None if owner or key is None else key.name)


def may_use_tools(server: Server, key: Key | None, *, owner: bool) -> bool:
    """Return whether a caller may use tools; the owner may, and configures what there is."""
    try:
        return owner or bool(allowed(server, key, owner=owner))
    except UsageError:  # of the configuration: the owner's page says so
        return False


def tool_user(call: HttpCall) -> str:
    """Return whose permissions a caller's are: a key's name, or "" for the owner. Raises Refused (403) for others."""
    if call.owner or call.server.guard.trusted:
        return ""
    if call.key is None or call.key.kind != "client":
        raise Refused(
            403,
            "tools are the owner's, and those keys' whom [mcp.NAME] keys names; freehold open makes an owner's "
            "session in the browser",
            code="not_permitted",
        )
    return call.key.name


def run_tools(call: HttpCall, chat: str, names: Sequence[str], *, keep: bool) -> RunTools:
    """Return the tools of a run. Raises Refused: 403 for who may not use them, 404 for a server that is none."""
    from freehold.serve.tools.mcp.use import RunTools

    servers, user = tool_servers(call.server), tool_user(call)
    usable = allowed(call.server, call.key, owner=not user)
    for name in names:
        if name not in usable:  # one of another key is as one that never was
            raise Refused(404, f"no tool server named {name[:60]!r}", code="no_tool_server")
    assert servers is not None or not names
    if servers is None:
        raise Refused(404, "this server has no servers of tools", code="no_tool_server")
    return RunTools(servers, names, key=user, chat=chat, keep=keep)
