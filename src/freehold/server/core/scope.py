"""The models as one key sees them: those of its scope, each of which counts the tokens it answers with.

Every protocol asks through this view (HttpCall.models), so that none of them can skip a scope or a budget.
Knows keys, accounts and the contract of serving.py; knows no protocol.
Path: HttpCall.models -> ScopedDirectory.use -> MeteredHandle.start -> MeteredStream -> Accounts.spend
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from freehold.delegating import DelegatingHandle, DelegatingTokenizer
from freehold.errors import ModelNotFound
from freehold.server.core.accounts import Accounts
from freehold.server.core.keys import Key
from freehold.serving import (
    Begin,
    EmbedJob,
    Job,
    LoadedInfo,
    ModelDirectory,
    ModelHandle,
    StoredModel,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.types import Chunk, Message, Turn


class ScopedDirectory:
    """What a key may ask. A model outside its scope does not exist for it."""

    def __init__(self, models: ModelDirectory, key: Key, accounts: Accounts) -> None:
        self._models, self._key, self._accounts = models, key, accounts

    async def names(self) -> Sequence[StoredModel]:
        return [each for each in await self._models.names() if self._key.may_use(each.name)]

    def loaded(self) -> Sequence[LoadedInfo]:
        return [each for each in self._models.loaded() if self._key.may_use(each.name)]

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        self._check(name)
        return MeteredHandle(await self._models.use(name, keep_alive), self._key, self._accounts)

    async def name_of(self, name: str) -> str:
        self._check(name)
        return await self._models.name_of(name)

    async def stamp_of(self, name: str) -> str:
        self._check(name)
        return await self._models.stamp_of(name)

    def _check(self, name: str) -> None:
        if not self._key.may_use(name):
            raise ModelNotFound(
                f"there is no model {name[:200]!r} for the key {self._key.name}",
                "GET /v1/models lists what this key may use",
            )


class MeteredHandle(DelegatingHandle):
    """A model whose tokens are booked on a key's account."""

    def __init__(self, handle: ModelHandle, key: Key, accounts: Accounts) -> None:
        super().__init__(handle)
        self._key, self._accounts = key, accounts

    @property
    def tokenizer(self) -> TokenizerFace | None:
        inner = self.handle.tokenizer
        return None if inner is None else MeteredTokenizer(inner, self._key, self._accounts)

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        self._accounts.check(self._key)
        return MeteredStream(await self.handle.start(job, keep_alive), self._key.name, self._accounts)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        def spend(tokens: int) -> None:
            self._accounts.spend(self._key.name, tokens)
            if computed is not None:
                computed(tokens)

        self._accounts.check(self._key)
        return await self.handle.embed(job, keep_alive, spend)

    async def count(self, job: Job) -> int:
        with self._accounts.counting(self._key, chars_of(job.messages or ())):
            return await self.handle.count(job)


class MeteredTokenizer(DelegatingTokenizer):
    """A tokenizer whose use takes from a key's rate of counting."""

    def __init__(self, tokenizer: TokenizerFace, key: Key, accounts: Accounts) -> None:
        super().__init__(tokenizer)
        self._key, self._accounts = key, accounts

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        with self._accounts.counting(self._key, len(text)):
            return await self.inner.tokenize(text, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        with self._accounts.counting(self._key, len(ids)):
            return await self.inner.detokenize(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new"
    ) -> list[int]:
        with self._accounts.counting(self._key, chars_of(messages)):
            return await self.inner.render(messages, think, turn)


def chars_of(messages: Sequence[Message]) -> int:
    """Return how many characters a chat has."""
    return sum(
        len(m.content) + len(m.thinking) + sum(len(c.arguments) for c in m.tool_calls) for m in messages
    )


class MeteredStream:
    """A stream that books its tokens when it is closed, whole or cut off."""

    def __init__(self, stream: Stream, name: str, accounts: Accounts) -> None:
        self._stream, self._name, self._accounts = stream, name, accounts
        self._prompt = len(stream.begin.prompt_ids)  # where ids are not reported, the usage counts them
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
        if chunk.usage is None:
            self._made[index] = self._made.get(index, 0) + len(chunk.token_ids)
        else:
            self._made[index] = chunk.usage.completion_tokens
            self._prompt = self._prompt or chunk.usage.prompt_tokens
        return index, chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if not self._booked:
                self._booked = True
                self._accounts.spend(self._name, self._prompt + sum(self._made.values()))
