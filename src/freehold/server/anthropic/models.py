"""GET /v1/models and /v1/models/{id} for clients of Anthropic's, which a header distinguishes.

Knows names, dates and pages; loads nothing. Path: Gate -> app.models -> models -> listing.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from freehold.server.core.call import HttpCall
from freehold.server.core.listing import answer_one, listed
from freehold.server.core.problems import Refused
from freehold.serving import LoadedInfo, StoredModel

PAGE, MAX_PAGE = 20, 1000  # models of an answer


async def models(call: HttpCall) -> None:
    """List the models, a page at a time: `limit`, `after_id`, `before_id`."""
    params = dict(parse_qsl(call.scope["query_string"].decode("latin-1")))
    page, more = _page(await listed(call, _model), params)
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    await call.answer({"data": page, "has_more": more, "first_id": first, "last_id": last})


async def model(call: HttpCall) -> None:
    """Describe one; its id may hold `/` and `:`."""
    await answer_one(call, _model)


def _page(all_: Sequence[dict[str, Any]], params: Mapping[str, str]) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of models, and whether there are more in its direction."""
    limit = params.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise Refused(400, f"limit is {limit[:20]!r}; expected 1 to {MAX_PAGE:,}", param="limit")
    ids, size = [each["id"] for each in all_], int(limit)
    if "after_id" in params:
        rest = all_[_place(ids, params["after_id"], "after_id") + 1 :]
        return list(rest[:size]), len(rest) > size
    if "before_id" in params:
        rest = all_[: _place(ids, params["before_id"], "before_id")]
        return list(rest[-size:]), len(rest) > size
    return list(all_[:size]), len(all_) > size


def _place(ids: Sequence[str], id: str, name: str) -> int:
    if id not in ids:
        raise Refused(400, f"{name} is {id[:60]!r}, which is not a model here", param=name)
    return ids.index(id)


def _model(name: str, held: StoredModel | None, loaded: Mapping[str, LoadedInfo]) -> dict[str, Any]:
    created = datetime.fromtimestamp(held.modified if held else 0, UTC)
    info = loaded.get(held.parent or name if held else name)
    context = info.info.context if info else None
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "lifecycle": "active",
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": context,  # known once it is in memory
        "max_tokens": context,
    }
