"""Who asks the console, what it may do, and which pages have something to show it.

Knows keys, the guard and where a home keeps what; reads none of it. Path: route -> me
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from freehold.adapt import registry
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
    """Describe a caller: version, name of the key, whether it is the owner, whether a key is wanted, what it can.

    `has`: of the pages that a home begins without, those with something in them.
    """
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
        "has": [*_filled(server, key, owner=owner)],
        "can": [*(["chat"] if chat else []), *(STORE if admin else ()), *tools, *(["keys"] if admin else [])],
        "refused": "",
    }


def _filled(server: Server, key: Key | None, *, owner: bool) -> Iterator[str]:
    """Name the pages with something in them; only the owner sees deployed engines."""
    keyed = bool(server.guard.keys)
    operator = owner or (key.kind == "admin" if key else not keyed)
    if keyed:
        yield "keys"
    if (home := server.home) is None:
        return
    if keyed or _any(home / "sessions", "*.jsonl") or _any(home, "ledger*"):
        yield "usage"
    if operator and (home / registry.FILE).exists():
        yield "runs"
    if owner and (_any(home / "deployments", "*") or _any(home / "engines", "*")):
        yield "deployments"


def _any(folder: Path, pattern: str) -> bool:
    with suppress(OSError):
        return next(folder.glob(pattern), None) is not None
    return False
