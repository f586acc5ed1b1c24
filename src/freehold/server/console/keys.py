"""Keys of this server, for the page: list, make, revoke, as `freehold keys` does and in the same file.

Knows the ring of keys and its file; knows no option of the command line. Path: page -> keys, add, revoke -> Ring
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.keys import Key, made, new_secret
from freehold.server.core.problems import Refused

NO_STORE = (b"cache-control", b"no-store")
Quota = Annotated[str, Meta(max_length=40)]


class KeyRequest(Struct, kw_only=True):
    """A key to make, with the options of `freehold keys add`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    models: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=256)] = []
    rate: Quota = ""
    tokens: Quota = ""
    admin: bool = False


async def keys(call: HttpCall) -> None:
    """List the keys: scope, limits, and tokens spent today."""
    spent = call.server.accounts.today()
    rows = [_row(key, spent.get(key.name, 0)) for key in call.server.guard.keys.all()]
    await call.answer({"keys": rows}, 200, [NO_STORE])


async def add(call: HttpCall) -> None:
    """Make a key; its secret is in this answer and nowhere else."""
    request, _ = await call.struct(KeyRequest)
    if request.admin and (request.models or request.rate or request.tokens):
        raise Refused(400, "an admin key cannot use models, so it has no models, rate or tokens")
    secret = new_secret()
    key = made(
        request.name,
        secret,
        admin=request.admin,
        models=request.models,
        rate=request.rate,
        tokens=request.tokens,
    )
    await asyncio.to_thread(call.server.guard.keys.add, key)
    await call.answer({**_row(key, 0), "key": secret}, 201, [NO_STORE])


async def revoke(call: HttpCall) -> None:
    """Revoke a key: its requests and sessions are refused from now on; its token counts are kept."""
    name = call.scope["path_params"]["name"]
    if call.server.guard.keys.named(name) is None:
        raise Refused(404, f"there is no key {name[:80]!r}", code="no_key")
    await asyncio.to_thread(call.server.guard.keys.remove, name)
    await call.answer({"name": name}, 200, [NO_STORE])


def _row(key: Key, spent: int) -> dict[str, Any]:
    return {
        "name": key.name,
        "kind": key.kind,
        "models": list(key.models),
        "rate": key.rate or None,
        "tokens": key.tokens or None,
        "spent_today": spent,
        "created": key.created,
    }
