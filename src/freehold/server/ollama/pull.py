"""POST /api/pull and /api/push: fetch a model by name; nothing is ever sent away.

Knows the routes; the store fetches, chores.py tells. Path: Gate -> pull -> chores.run -> Store.pull
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.fields import Name
from freehold.server.core.problems import Refused
from freehold.server.ollama import chores
from freehold.server.ollama.fields import unknown_fields
from freehold.server.ollama.generating import worded
from freehold.server.ollama.models import stored
from freehold.store.judging import check_fetch
from freehold.store.refs import parse_ref


class PullRequest(Struct, kw_only=True):
    """POST /api/pull: fetch a model, and tell how far it is."""

    model: Annotated[Name | None, Meta(description="A name of the catalogue, or org/repo:QUANT.")] = None
    name: Annotated[Name | None, Meta(description="The same, as older clients call it.")] = None
    stream: Annotated[bool | None, Meta(description="A line of JSON a step. Default true.")] = None
    insecure: Annotated[bool | None, Meta(description="Refused when true: downloads are always checked.")] = (
        None
    )
    username: str | None = None
    password: str | None = None


async def pull(call: HttpCall) -> None:
    """Fetch a model, or reference one that is on this machine; only for the owner."""
    request, raw = await call.struct(PullRequest)
    name = fetchable(request.model or request.name, "model")
    for field in ("insecure", "username", "password"):
        if getattr(request, field):
            raise Refused(
                400, f"{field} is not supported: a login for the hub is the server's own", param=field
            )
    store, notes = stored(call), unknown_fields(raw, PullRequest)

    def work(tell: chores.Tell) -> None:
        for note in notes:
            tell({"status": chores.WARNING + note})
        check_fetch(store, name)
        store.pull(name, lambda event: chores.report(event, tell))

    first = {"status": "pulling manifest"}
    await worded(name, lambda: chores.run(call, name, work, stream=request.stream is not False, first=first))


async def push(call: HttpCall) -> None:
    """Refuse: models are not sent away."""
    raise Refused(403, "push is refused: Freehold sends no model anywhere", code="push_refused")


def fetchable(name: str | None, field: str) -> str:
    """Return a name the store may look for elsewhere; 400 for a local file, and for an address."""
    if not name:
        raise Refused(400, f"{field} is missing", param=field, code="missing_required_parameter")
    if parse_ref(name).kind in ("path", "url"):
        raise Refused(
            400,
            f"{field} is {name[:100]!r}; expected a name, or org/repo:QUANT "
            "(files and addresses: freehold pull on the server's machine)",
            param=field,
        )
    return name
