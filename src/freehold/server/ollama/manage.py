"""POST /api/copy and DELETE /api/delete: another name for a model, and the end of one.

Knows the routes; the store does it. Path: Gate -> copy, delete -> create.copy, Store.remove
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.fields import Name
from freehold.server.ollama.generating import worded
from freehold.server.ollama.models import look_up, stored
from freehold.server.ollama.pull import fetchable
from freehold.store.create import copy as make_copy


class CopyRequest(Struct, kw_only=True):
    """POST /api/copy: give a model another name."""

    source: Annotated[Name, Meta(description="The model.")]
    destination: Annotated[Name, Meta(description="Its other name; no weights are copied.")]


class DeleteRequest(Struct, kw_only=True):
    """DELETE /api/delete: delete a model, or forget another program's."""

    model: Annotated[Name | None, Meta(description="The model's name.")] = None
    name: Annotated[Name | None, Meta(description="The same, as older clients call it.")] = None


async def copy(call: HttpCall) -> None:
    """Give a model another name; only for the owner."""
    request, _ = await call.struct(CopyRequest)
    source, name = fetchable(request.source, "source"), fetchable(request.destination, "destination")
    await worded(source, lambda: asyncio.to_thread(make_copy, stored(call), source, name))
    await call.server.models.retire(name)
    await call.answer(b"")


async def delete(call: HttpCall) -> None:
    """Delete a model, or forget another program's; only for the owner."""
    request, _ = await call.struct(DeleteRequest)
    name = fetchable(request.model or request.name, "model")
    listed = await asyncio.to_thread(look_up, stored(call), name)
    await asyncio.to_thread(stored(call).remove, listed.name)
    await call.server.models.retire(listed.name)
    await call.answer(b"")
