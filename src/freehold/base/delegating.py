"""Wrappers of a served model that pass everything on: subclass one, and override what differs.

Knows the contract of serving.py alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from freehold.base.serving import (
    EmbedJob,
    EngineStats,
    Job,
    ModelHandle,
    ModelInfo,
    SpeechJob,
    SpeechSource,
    SpeechStream,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.base.types import Message, Turn


class DelegatingHandle:
    """A ModelHandle that passes everything on to another."""

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle

    @property
    def name(self) -> str:
        return self.handle.name

    @property
    def info(self) -> ModelInfo:
        return self.handle.info

    @property
    def stats(self) -> EngineStats:
        return self.handle.stats

    @property
    def tokenizer(self) -> TokenizerFace | None:
        return self.handle.tokenizer

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(job, keep_alive)

    async def count(self, job: Job) -> int:
        return await self.handle.count(job)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        return await self.handle.embed(job, keep_alive, computed)

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        return await self.handle.hear(job, recording, keep_alive)


class DelegatingTokenizer:
    """A TokenizerFace that passes everything on to another."""

    def __init__(self, tokenizer: TokenizerFace) -> None:
        self.inner = tokenizer

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self.inner.tokenize(text, special, client)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self.inner.detokenize(ids, client)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        return await self.inner.token_texts(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        return await self.inner.render(messages, think, turn, client)

    async def template(self) -> dict[str, Any]:
        return await self.inner.template()
