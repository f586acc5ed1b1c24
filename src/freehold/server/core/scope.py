"""The models as one key sees them: those of its scope, each of which counts what it answers.

Every protocol asks through this view (Call.models), so none of them can forget a scope or a budget.
Knows keys, accounts and the three faces of contract.py; knows no protocol.
Path: Call.models -> Scoped.use -> Metered.start -> MeteredStream -> Accounts.spend
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from freehold.errors import ModelNotFound
from freehold.server.core.accounts import Accounts
from freehold.server.core.contract import Asking, Held, Loaded, Served, Stream
from freehold.server.core.keys import Key
from freehold.types import Begin, Chunk, EmbedJob, Job, Message, Turn, Vectors


class Scoped:
    """What a key may ask. A model outside its scope does not exist for it."""

    def __init__(self, models: Asking, key: Key, accounts: Accounts) -> None:
        self._models, self._key, self._accounts = models, key, accounts

    async def names(self) -> Sequence[Held]:
        return [each for each in await self._models.names() if self._key.may_use(each.name)]

    def loaded(self) -> Sequence[Loaded]:
        return [each for each in self._models.loaded() if self._key.may_use(each.name)]

    async def use(self, name: str, keep_alive: float | None = None) -> Served:
        self._check(name)
        return cast(Served, Metered(await self._models.use(name, keep_alive), self._key, self._accounts))

    async def name_of(self, name: str) -> str:
        self._check(name)
        return await self._models.name_of(name)

    def _check(self, name: str) -> None:
        if not self._key.may_use(name):
            raise ModelNotFound(
                f"there is no model {name[:200]!r} for the key {self._key.name}",
                "GET /v1/models lists what this key may use",
            )


class Metered:
    """A model whose answers are booked on a key's account; for the rest it is the model."""

    def __init__(self, served: Served, key: Key, accounts: Accounts) -> None:
        self._served, self._key, self._accounts = served, key, accounts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served, name)

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        self._accounts.check(self._key)
        return MeteredStream(await self._served.start(job, keep_alive), self._key.name, self._accounts)

    async def embed(self, job: EmbedJob, keep_alive: float | None = None) -> Vectors:
        self._accounts.check(self._key)
        return await self._served.embed(job, keep_alive, lambda n: self._accounts.spend(self._key.name, n))

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        with self._accounts.counting(self._key, len(text)):
            return await self._served.tokenize(text, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        with self._accounts.counting(self._key, len(ids)):
            return await self._served.detokenize(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new"
    ) -> list[int]:
        with self._accounts.counting(self._key, chars_of(messages)):
            return await self._served.render(messages, think, turn)

    async def count(self, job: Job) -> int:
        with self._accounts.counting(self._key, chars_of(job.messages or ())):
            return await self._served.count(job)


def chars_of(messages: Sequence[Message]) -> int:
    """Return how many characters a chat has."""
    return sum(
        len(m.content) + len(m.thinking) + sum(len(c.arguments) for c in m.tool_calls) for m in messages
    )


class MeteredStream:
    """A stream that books its tokens when it is closed, whole or cut off."""

    def __init__(self, stream: Stream, name: str, accounts: Accounts) -> None:
        self._stream, self._name, self._accounts = stream, name, accounts
        self._made: dict[int, int] = {}  # answer -> its tokens
        self._booked = False

    @property
    def begin(self) -> Begin:
        return self._stream.begin

    @property
    def more(self) -> bool:
        return self._stream.more

    def __aiter__(self) -> MeteredStream:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        index, chunk = await self._stream.__anext__()
        made = self._made.get(index, 0) + len(chunk.token_ids)
        self._made[index] = chunk.usage.completion_tokens if chunk.usage is not None else made
        return index, chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if not self._booked:
                self._booked = True
                self._accounts.spend(self._name, len(self.begin.prompt_ids) + sum(self._made.values()))
