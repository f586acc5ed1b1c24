"""A model made from another, answering through the other's engine: jobs are changed on their way in.

Knows an overlay and a loaded model; knows no store. Its name, numbers and memory are the model's it stands on.
Path: Models.use -> Overlaid.start -> overlays.overlaid -> Served.start
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from freehold.store.overlays import Overlay, overlaid, with_messages
from freehold.types import EmbedJob, EngineStats, Job, Message, ModelInfo, Turn, Vectors
from freehold.worker.adapted import Adapted
from freehold.worker.stream import Stream
from freehold.worker.supervisor import Served


class Overlaid:
    """One overlay over a loaded model; made anew for each request."""

    def __init__(self, served: Served | Adapted, overlay: Overlay) -> None:
        self._served, self._overlay = served, overlay

    @property
    def name(self) -> str:
        """The name of the model that is in memory."""
        return self._served.name

    @property
    def info(self) -> ModelInfo:
        """What that model is."""
        return self._served.info

    @property
    def stats(self) -> EngineStats:
        """Its engine's latest numbers."""
        return self._served.stats

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        """Have a job answered as the overlay has it."""
        return await self._served.start(overlaid(job, self._overlay), keep_alive)

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Turn text into ids."""
        return await self._served.tokenize(text, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Turn ids into text."""
        return await self._served.detokenize(ids)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        """Return what each id writes."""
        return await self._served.token_texts(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new"
    ) -> list[int]:
        """Turn a chat into the ids the model would read, the overlay's messages before it."""
        return await self._served.render(with_messages(tuple(messages), self._overlay), think, turn)

    async def count(self, job: Job) -> int:
        """Return how many tokens a job's prompt has, the overlay's messages among them."""
        return await self._served.count(overlaid(job, self._overlay))

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, read: Callable[[int], None] | None = None
    ) -> Vectors:
        """Turn texts into vectors; an overlay changes nothing about that but the adapter."""
        job = replace(job, adapter=job.adapter or self._overlay.adapter_name)
        return await self._served.embed(job, keep_alive, read)

    async def template(self) -> dict[str, Any]:
        """Describe the tokenizer and its chat template."""
        return await self._served.template()
