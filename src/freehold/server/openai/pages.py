"""OpenAI's lists: a page of the entries after a named one.

Knows query strings; knows no route. Path: a route that lists -> query, page -> HttpCall.answer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused


def query(call: HttpCall) -> dict[str, str]:
    """Return the query's fields."""
    try:
        return dict(parse_qsl(call.scope["query_string"].decode("latin-1"), max_num_fields=32))
    except ValueError as e:
        raise Refused(400, f"the query is malformed: {e}", code="invalid_value") from None


class PageEntry(Protocol):
    """What a list is made of."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=PageEntry)


def page(
    entries: Sequence[E], params: Mapping[str, str], shown: Callable[[E], object], *, most: int = 100
) -> dict[str, Any]:
    """Return `limit` of the entries after the one named `after`. 400 for a limit beyond `most`, and for no entry.

    `shown` makes what is sent of an entry, of those alone that are sent.
    """
    limit = params.get("limit", str(min(most, 20)))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= most):
        raise Refused(400, f"limit is {limit[:20]!r}; expected 1 to {most:,}", param="limit")
    after, begin = params.get("after"), 0
    if after:
        begin = next((i for i, entry in enumerate(entries, 1) if entry.id == after), 0)
        if not begin:  # an empty page would end a client's walk as if it had seen all
            raise Refused(400, f"after is {after[:80]!r}, which is not an entry of this list", param="after")
    part = entries[begin : begin + int(limit)]
    return {
        "object": "list",
        "data": [shown(entry) for entry in part],
        "first_id": part[0].id if part else None,
        "last_id": part[-1].id if part else None,
        "has_more": begin + int(limit) < len(entries),
    }
