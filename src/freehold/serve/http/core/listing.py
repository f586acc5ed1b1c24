"""The models that a request may name, as rows for any protocol: downloaded, in memory, or both.

Knows names; knows no protocol's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from freehold.base.errors import ModelNotFound
from freehold.base.serving import LoadedInfo, ModelInfo, StoredModel
from freehold.serve.http.core.call import HttpCall

# A model's name, what the store has of it, and all that is in memory -> how the protocol describes it, with its `id`.
Row = Callable[[str, StoredModel | None, Mapping[str, LoadedInfo]], dict[str, Any]]


def capabilities(info: ModelInfo) -> list[str]:
    """Return what a loaded model can do, in the words of Ollama's protocol, which other clients read too."""
    if info.embeds_only:
        return ["embedding"]
    if info.can_hear:
        return ["transcription"]
    able = {
        "completion": True,
        "tools": info.can_call,
        "insert": info.can_fill,
        "vision": info.can_see,
        "audio": info.can_listen,
        "thinking": info.thinking != "none" or bool(info.efforts),
    }
    return [name for name, has in able.items() if has]


async def listed(call: HttpCall, row: Row) -> list[dict[str, Any]]:
    """Describe every model."""
    loaded = {each.name: each for each in call.models.loaded()}
    held = {each.name: each for each in await call.models.names()}
    return [row(name, held.get(name), loaded) for name in {**held, **loaded}]


async def answer_one(call: HttpCall, row: Row) -> None:
    """Describe the model that the path names; its id may hold `/` and `:`. Raises ModelNotFound."""
    name = call.scope["path_params"]["id"]
    rows = {each["id"]: each for each in await listed(call, row)}
    described = rows.get(name) or rows.get(await call.models.name_of(name))
    if described is None:
        raise ModelNotFound(f"there is no model {name[:200]!r}", "GET /v1/models lists what there is")
    await call.answer(described)
