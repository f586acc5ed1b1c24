"""Who asks the console, and what it may do. Knows keys and the guard; knows no chat. Path: route -> me"""

from __future__ import annotations

from typing import Any

import freehold
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused

OWNERS = ("pull", "delete", "load", "tools", "keys")


async def me(call: HttpCall) -> None:
    """Say who asks; also to a browser without a key, so that the page knows to ask for one."""
    await call.answer(description(call))


def description(call: HttpCall) -> dict[str, Any]:
    """Describe the caller: version, name of the key, whether it is the owner, whether a key is wanted, what it can."""
    guard = call.server.guard
    try:
        key, owner = guard.check("/v1/models", call.headers)
    except Refused:
        key, owner, can = None, False, []
    else:
        admin = owner or (key is not None and key.kind == "admin")
        chat = key is None or key.kind == "client"
        can = [*(["chat"] if chat else []), *(OWNERS if admin else ())]
    return {
        "version": freehold.__version__,
        "key": key.name if key else None,
        "owner": owner,
        "keyed": bool(guard.keys),
        "can": can,
    }
