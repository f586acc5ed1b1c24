"""Stored responses that clients may continue: in memory, in bounds, separate for each tenant.

A response is kept as JSON with the items that asked for it; the chat it belongs to is found through the response
before it. What continues an answer has the labels of the answer's request. The least recently used goes first: of the
tenant, and beyond the sum of the tenant with the most bytes.
Nothing outlives the server. Knows tenants and ids; knows no request. Path: routes.py -> Responses
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.server.core.problems import Refused

MAX_CHAIN = 1000  # responses that one chat may go back


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of JSON."""

    one: int = 8 << 20
    tenant: int = 32 << 20
    everybody: int = 128 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response. `asked`: the items of its own request, each with an id."""

    response: bytes
    asked: bytes
    ids: tuple[str, ...]  # of all its items
    previous: str | None
    labels: tuple[str, ...] = ()  # of its request: those of earlier responses are among them

    @property
    def bytes(self) -> int:
        return len(self.response) + len(self.asked)

    def questions(self) -> list[dict[str, Any]]:
        """Return the items of its own request."""
        return msgspec.json.decode(self.asked)

    def items(self) -> list[dict[str, Any]]:
        """Return what was asked, then what was answered."""
        return self.questions() + msgspec.json.decode(self.response)["output"]


class _Shelf:
    """What one tenant keeps."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self.bytes = 0
        self.where: dict[str, str] = {}  # item -> response

    def put(self, id: str, kept: StoredResponse) -> None:
        self.kept[id] = kept
        self.bytes += kept.bytes
        self.where |= dict.fromkeys(kept.ids, id)

    def drop(self, id: str) -> None:
        kept = self.kept.pop(id)
        self.bytes -= kept.bytes
        for item in kept.ids:
            if self.where.get(item) == id:
                del self.where[item]

    def drop_oldest(self) -> None:
        self.drop(next(iter(self.kept)))


class Responses:
    """All that is kept."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._shelves: dict[str, _Shelf] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(shelf.bytes for shelf in self._shelves.values())

    def keep(
        self,
        tenant: str,
        response: dict[str, Any],
        asked: Sequence[dict[str, Any]],
        previous: str | None,
        labels: tuple[str, ...] = (),
    ) -> str:
        """Keep a response; return why not, or ""."""
        encoded, items = msgspec.json.encode(response), msgspec.json.encode(asked)
        ids = tuple(item["id"] for item in [*asked, *response["output"]])
        kept = StoredResponse(encoded, items, ids, previous, labels)
        if kept.bytes > self._bounds.one:
            return f"the response was not stored: it has {kept.bytes:,} bytes, more than {self._bounds.one:,}"
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.put(response["id"], kept)
        while shelf.bytes > self._bounds.tenant:
            shelf.drop_oldest()
        while self.bytes > self._bounds.everybody:
            max(self._shelves.values(), key=lambda s: s.bytes).drop_oldest()
        return ""

    def get(self, tenant: str, id: str) -> StoredResponse:
        """Return a response, as one just used; 404 if it is not kept for this tenant."""
        kept = self._find(tenant, id)
        if kept is None:
            raise Refused(
                404,
                f"no response {id[:80]!r} is kept; they go with the server, and the oldest first",
                param="response_id",
                code="response_not_found",
            )
        return kept

    def _find(self, tenant: str, id: str) -> StoredResponse | None:
        shelf = self._shelves.get(tenant)
        if shelf is None or id not in shelf.kept:
            return None
        shelf.kept.move_to_end(id)
        return shelf.kept[id]

    def delete(self, tenant: str, id: str) -> None:
        """Forget a response; 404 if there is none."""
        self.get(tenant, id)
        self._shelves[tenant].drop(id)

    def chat(self, tenant: str, id: str | None) -> list[dict[str, Any]]:
        """Return all items up to a response's own, oldest first; 400 where one of the responses is gone."""
        chain: list[StoredResponse] = []
        while id is not None:
            kept = self._find(tenant, id)
            if kept is None:
                message = (
                    f"the response {id[:80]!r}, which the request continues, is not kept; send its items"
                )
                raise _broken(message, "previous_response_not_found")
            chain.append(kept)
            id = kept.previous
            if len(chain) > MAX_CHAIN:
                message = f"the chat goes back more than {MAX_CHAIN:,} responses; send its items instead"
                raise _broken(message, "chat_too_long")
        return [item for kept in reversed(chain) for item in kept.items()]

    def labels(self, tenant: str, id: str | None, items: Iterable[str]) -> tuple[str, ...]:
        """Return the labels of a response, if it is kept, and of those that have the items of these ids."""
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return ()
        owners = [id, *(shelf.where.get(item) for item in items)]
        kept = (shelf.kept[owner] for owner in owners if owner in shelf.kept)
        return tuple(dict.fromkeys(label for each in kept for label in each.labels))

    def named(self, tenant: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return by their ids those items that kept responses have; each response is decoded once."""
        shelf = self._shelves.get(tenant)
        where = {id: shelf.where[id] for id in ids if id in shelf.where} if shelf else {}
        return {
            item["id"]: item
            for owner in dict.fromkeys(where.values())
            for item in self.get(tenant, owner).items()
            if where.get(item["id"]) == owner
        }


def _broken(message: str, code: str) -> Refused:
    return Refused(400, message, param="previous_response_id", code=code)
