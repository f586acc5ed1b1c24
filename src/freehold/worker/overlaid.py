"""A model made from another, answering through the other's engine: jobs are changed on their way in.

Knows an overlay and a loaded model; knows no store. Its name, statistics and memory are those of its base.
Path: EngineModels.use -> OverlaidHandle.start -> overlays.overlaid -> EngineHandle.start
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from freehold.delegating import DelegatingHandle, DelegatingTokenizer
from freehold.serving import (
    EmbedJob,
    Job,
    ModelHandle,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.store.overlays import Overlay, overlaid, with_messages
from freehold.types import Message, Turn


class OverlaidHandle(DelegatingHandle):
    """One overlay over a loaded model; made anew for each request."""

    def __init__(self, handle: ModelHandle, overlay: Overlay) -> None:
        super().__init__(handle)
        self._overlay = overlay

    @property
    def tokenizer(self) -> TokenizerFace | None:
        inner = self.handle.tokenizer
        return None if inner is None else OverlaidTokenizer(inner, self._overlay)

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(overlaid(job, self._overlay), keep_alive)

    async def count(self, job: Job) -> int:
        return await self.handle.count(overlaid(job, self._overlay))

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        adapter = job.adapter or self._overlay.adapter_name  # all that an overlay changes about embeddings
        return await self.handle.embed(replace(job, adapter=adapter), keep_alive, computed)


class OverlaidTokenizer(DelegatingTokenizer):
    """A tokenizer whose chats begin with an overlay's messages."""

    def __init__(self, tokenizer: TokenizerFace, overlay: Overlay) -> None:
        super().__init__(tokenizer)
        self._overlay = overlay

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        begun = with_messages(tuple(messages), self._overlay)
        return await self.inner.render(begun, think, turn, client)
