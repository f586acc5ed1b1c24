"""Who asks the console, and what it may do. Knows keys and the guard; knows no chat. Path: route -> me"""

from __future__ import annotations

from typing import Any

from freehold.server.core.call import HttpCall, Server
from freehold.server.core.keys import Key
from freehold.server.core.problems import Refused
from freehold.server.core.tools import may_use_tools
from freehold.version import __version__

STORE = ("pull", "delete", "load")  # what the owner and admin keys do to models


async def me(call: HttpCall) -> None:
    """Say who asks; also to a browser without a key, so that the page knows to ask for one."""
    await call.answer(description(call), 200, [(b"cache-control", b"no-store")])


def description(call: HttpCall) -> dict[str, Any]:
    """Describe the caller, or say why it may do nothing."""
    server = call.server
    if call.owner:
        return described(server, None, owner=True)
    try:
        key, owner = server.guard.check("/v1/models", call.headers)
    except Refused as e:
        return {**described(server, None, owner=False), "can": [], "refused": e.message}
    return described(server, key, owner=owner)


def described(server: Server, key: Key | None, *, owner: bool) -> dict[str, Any]:
    """Describe a caller: version, name of the key, whether it is the owner, whether a key is wanted, what it can."""
    keyed = bool(server.guard.keys)
    stranger = keyed and key is None and not owner
    admin = owner or (key is not None and key.kind == "admin")
    chat = not stranger and (key is None or key.kind == "client")
    tools = ["tools"] if may_use_tools(server, key, owner=owner) else []
    return {
        "version": __version__,
        "key": key.name if key else None,
        "owner": owner,
        "keyed": keyed,
        "can": [*(["chat"] if chat else []), *(STORE if admin else ()), *tools, *(["keys"] if admin else [])],
        "refused": "",
    }
