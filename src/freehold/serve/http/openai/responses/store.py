"""Stored responses that clients may continue: in memory, in bounds, separate for each tenant.

A response is kept as the JSON of its items, its own and those that asked for it, in the form that lists show; the chat
it belongs to is found through the response before it. Nothing is parsed to keep, list or give it again. A chat that is
continued may hold what a body may. What continues an answer has the labels of the answer's request. The least recently
used goes first: of the tenant, and beyond the sum of the tenant with the most bytes.
Nothing outlives the server. Knows tenants and ids; knows no request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from freehold.base.serving import MAX_MESSAGES
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.longjson import NOTHING, BodyStructure, in_pieces, structure_of, weight
from freehold.serve.http.core.problems import Refused

MAX_CHAIN = 1000  # responses that one chat may go back
ITEM_BYTES = 400  # of memory that an item takes beside its JSON: its id, its counts, and where it is found


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of JSON, and ITEM_BYTES for each item."""

    one: int = 8 << 20
    tenant: int = 32 << 20
    everybody: int = 128 << 20


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as JSON, as lists show it. `weight`: bytes of memory that it takes once it is parsed.

    `beside`: fields that are not shown and that a chat which continues needs, as JSON.
    """

    id: str
    data: bytes
    holds: BodyStructure
    weight: int
    beside: bytes = b""

    @classmethod
    def of(cls, item: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> StoredItem:
        """Encode an item, which has an id."""
        listed = _listed(item)
        data = msgspec.json.encode(in_pieces(listed))
        more = msgspec.json.encode(beside) if beside else b""
        holds = structure_of(data) + structure_of(more) if more else structure_of(data)
        return cls(item["id"], data, holds, weight(data + more, holds), more)

    def parsed(self) -> dict[str, Any]:
        """Return the item with what is kept beside it."""
        item = msgspec.json.decode(self.data)
        return {**item, **msgspec.json.decode(self.beside)} if self.beside else item


@dataclass(frozen=True)
class StoredResponse:
    """One response. `input`: the items of its own request; `head`: the response without its output."""

    head: bytes
    input: tuple[StoredItem, ...]
    output: tuple[StoredItem, ...]
    previous: str | None
    labels: tuple[str, ...] = ()  # of its request: those of earlier responses are among them

    @classmethod
    def of(
        cls,
        response: Mapping[str, Any],
        input: Sequence[StoredItem],
        previous: str | None,
        labels: tuple[str, ...] = (),
        beside: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> StoredResponse:
        """Encode a finished response. `beside`: by the ids of items, what is kept of them and not shown."""
        head = msgspec.json.encode({name: value for name, value in response.items() if name != "output"})
        kept = beside or {}
        output = tuple(StoredItem.of(item, kept.get(item["id"])) for item in response["output"])
        return cls(head, tuple(input), output, previous, labels)

    @property
    def items(self) -> tuple[StoredItem, ...]:
        """What was asked, then what was answered."""
        return self.input + self.output

    @property
    def response(self) -> bytes:
        """The response as it was answered."""
        return b'%b,"output":[%b]}' % (self.head[:-1], b",".join(item.data for item in self.output))

    @cached_property
    def bytes(self) -> int:
        """Bytes of memory, as Bounds count them."""
        return len(self.head) + sum(len(i.data) + len(i.beside) + ITEM_BYTES for i in self.items)

    @cached_property
    def extent(self) -> Extent:
        """What its items hold."""
        return Extent.of(self.items)


@dataclass(frozen=True, slots=True)
class Extent:
    """What items hold together, once they are parsed."""

    items: int = 0
    bytes: int = 0
    holds: BodyStructure = NOTHING
    weight: int = 0

    @classmethod
    def of(cls, items: Sequence[StoredItem]) -> Extent:
        """Add up items."""
        size = sum(len(item.data) + len(item.beside) for item in items)
        holds = sum((item.holds for item in items), NOTHING)
        return cls(len(items), size, holds, sum(item.weight for item in items))

    def __add__(self, other: Extent) -> Extent:
        return Extent(
            self.items + other.items,
            self.bytes + other.bytes,
            self.holds + other.holds,
            self.weight + other.weight,
        )

    def check(self, limits: ServerLimits, what: str, instead: str, param: str, code: str | None) -> None:
        """Raise Refused (400) for more than a body may hold, before any of it is parsed."""
        for has, most, of in (
            (self.items, MAX_MESSAGES, "items"),
            (self.bytes, limits.body_bytes, "bytes"),
            (self.holds.containers, limits.body_containers, "lists and objects"),
            (self.holds.names, limits.body_names, "names in objects"),
            (self.holds.values, limits.body_values, "values in lists and objects"),
        ):
            if has > most:
                message = f"{what} {has:,} {of}; expected at most {most:,}: {instead}"
                raise Refused(400, message, param=param, code=code)


class _Shelf:
    """What one tenant keeps."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self.bytes = 0
        self.where: dict[str, tuple[str, StoredItem]] = {}  # item -> its response, and itself

    def put(self, id: str, kept: StoredResponse) -> None:
        self.kept[id] = kept
        self.bytes += kept.bytes
        self.where |= {item.id: (id, item) for item in kept.items}

    def drop(self, id: str) -> None:
        kept = self.kept.pop(id)
        self.bytes -= kept.bytes
        for item in kept.items:
            if (place := self.where.get(item.id)) is not None and place[0] == id:
                del self.where[item.id]

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

    def why_not(self, kept: StoredResponse) -> str:
        """Return why a response cannot be kept, or "". Safe in any thread."""
        if kept.bytes <= self._bounds.one:
            return ""
        return f"the response was not stored: it has {kept.bytes:,} bytes, more than {self._bounds.one:,}"

    def keep(self, tenant: str, id: str, kept: StoredResponse) -> None:
        """Keep a response that `why_not` has nothing against."""
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.put(id, kept)
        while shelf.bytes > self._bounds.tenant:
            shelf.drop_oldest()
        while self.bytes > self._bounds.everybody:
            max(self._shelves.values(), key=lambda s: s.bytes).drop_oldest()

    def get(self, tenant: str, id: str) -> StoredResponse:
        """Return a response, as one just used; 404 if it is not kept for this tenant."""
        kept = self._find(tenant, id)
        if kept is None:
            message = f"no response {id[:80]!r} is stored; they go with the server, and the oldest first"
            raise Refused(404, message, param="response_id", code="response_not_found")
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

    def chat(self, tenant: str, id: str | None) -> list[StoredResponse]:
        """Return all responses up to this one, oldest first; 400 where one of them is gone."""
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
        return chain[::-1]

    def labels(self, tenant: str, id: str | None, items: Iterable[str]) -> tuple[str, ...]:
        """Return the labels of a response, if it is kept, and of those that have the items of these ids."""
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return ()
        places = (shelf.where.get(item) for item in items)
        owners = dict.fromkeys([id, *(each[0] for each in places if each is not None)])
        kept = (shelf.kept[owner] for owner in owners if owner in shelf.kept)
        return tuple(dict.fromkeys(label for each in kept for label in each.labels))

    def named(self, tenant: str, ids: Iterable[str]) -> dict[str, StoredItem]:
        """Return by their ids those items that kept responses have. Safe in any thread."""
        shelf = self._shelves.get(tenant)
        places = ((id, shelf.where.get(id)) for id in ids) if shelf else ()
        return {id: each[1] for id, each in places if each is not None}


@dataclass
class Keeping:
    """One response on its way into the store: prepared in any thread, and put there on the loop."""

    store: Responses
    tenant: str
    input: Sequence[StoredItem]
    previous: str | None
    _stored: tuple[str, StoredResponse] | None = None

    def prepare(
        self,
        response: Mapping[str, Any],
        labels: tuple[str, ...],
        beside: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """Encode a finished response with its request's labels; return why it cannot be kept, or ""."""
        stored = StoredResponse.of(response, self.input, self.previous, labels, beside)
        if not (why := self.store.why_not(stored)):
            self._stored = response["id"], stored
        return why

    def put(self) -> None:
        """Keep what was prepared, if it can be."""
        if self._stored is not None:
            self.store.keep(self.tenant, *self._stored)


def _listed(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item as lists have it: a message's text in parts."""
    if item.get("type", "message") != "message":
        return item
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {"type": "message", "status": "completed", **item, "content": content}


def _broken(message: str, code: str) -> Refused:
    return Refused(400, message, param="previous_response_id", code=code)
