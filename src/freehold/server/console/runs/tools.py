"""The tools of one run: those of the chat's servers, asked about through the run's events.

Knows a caller and the contract of tools/mcp; knows no model.
Path: start, again -> servers_of, tools_of -> RunTools -> Questions
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused
from freehold.tools.mcp.contract import AskUser, Report
from freehold.tools.mcp.pool import ToolServers
from freehold.tools.mcp.use import RunTools


def servers_of(call: HttpCall, names: Sequence[str]) -> ToolServers | None:
    """Return what runs the servers `names`; None for no names. Raises Refused where the caller may not use them."""
    if not names:
        return None
    servers = call.server.part(ToolServers)
    if servers is None:
        raise Refused(400, "this server has no tools", param="settings.tools", code="no_tools")
    if call.key is None and not (call.owner or call.server.guard.trusted):
        raise Refused(
            403, "tools are the owner's: freehold open opens a page that may use them", code="owner_only"
        )
    allowed = servers.for_key(call.key.name if call.key else None)
    for name in names:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise Refused(
                400,
                f"no server of tools is called {name[:60]!r}; there are: {known}",
                param="settings.tools",
                code="no_tools",
            )
    return servers


def tools_of(
    call: HttpCall, servers: ToolServers | None, chat: str, names: Sequence[str], ask: AskUser, report: Report
) -> RunTools | None:
    """Return the tools of one run."""
    if servers is None:
        return None
    user = f"{call.caller}/{chat}"
    return RunTools(servers, names, user=user, key=call.tenant, chat=chat, ask=ask, report=report)
