"""GET /v1/models and /v1/models/{id}: what could be asked, and what is in memory.

Knows names and sizes; loads nothing. Path: Gate -> models -> listing.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.server.core.call import HttpCall
from freehold.server.core.listing import answer_one, capabilities, listed
from freehold.serving import LoadedInfo, StoredModel


async def models(call: HttpCall) -> None:
    """List every model."""
    await call.answer({"object": "list", "data": await listed(call, _model)})


async def model(call: HttpCall) -> None:
    """Describe one; its id may hold `/` and `:`."""
    await answer_one(call, _model)


def _model(name: str, held: StoredModel | None, loaded: Mapping[str, LoadedInfo]) -> dict[str, Any]:
    parent = held.parent if held else ""
    each = loaded.get(parent or name)
    info = each.info if each else None
    places = held.places if held else ()
    more: dict[str, Any] = {"bytes": held.bytes if held else None, "loaded": info is not None}
    if places:  # a name of a gateway's file: by itself it is not in local memory
        more = {"places": places}
    if info:
        more |= {"quantization": info.quantization, "trained_context": info.trained_context}
        more["capabilities"] = capabilities(info)
    return {
        "id": name,
        "object": "model",
        "created": int(held.modified) if held else 0,
        "owned_by": places[0] if len(places) == 1 else "freehold",
        "root": parent or name,
        "parent": parent or None,
        "max_model_len": info.context if info else None,
        "freehold": more,
    }
