"""A served model under the name of one of its adapters: `base+adapter`.

Knows one name and what every job must carry for it; the rest is the model's own. So no protocol knows of adapters:
whoever asks Models.use for such a name gets a model like any other.
Path: Models.use -> Adapted.start -> Served.start
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from freehold.types import EmbedJob, EngineStats, Job, Message, ModelInfo, Turn, Vectors
from freehold.worker.stream import Stream
from freehold.worker.supervisor import Served


class Adapted:
    """`served`, computing with `adapter`."""

    def __init__(self, served: Served, adapter: str) -> None:
        self.served, self.adapter = served, adapter

    @property
    def name(self) -> str:
        """The name it is asked for by."""
        return f"{self.served.name}+{self.adapter}"

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self.served.info

    @property
    def stats(self) -> EngineStats:
        """The engine's numbers, for the model and all its adapters."""
        return self.served.stats

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        """Have a job answered with the adapter; see Served.start."""
        return await self.served.start(replace(job, adapter=self.adapter), keep_alive)

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Turn text into ids."""
        return await self.served.tokenize(text, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Turn ids into text."""
        return await self.served.detokenize(ids)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        """Return what each id writes."""
        return await self.served.token_texts(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new"
    ) -> list[int]:
        """Turn a chat into the ids the model would read."""
        return await self.served.render(messages, think, turn)

    async def count(self, job: Job) -> int:
        """Count the tokens of a job's prompt."""
        return await self.served.count(job)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, read: Callable[[int], None] | None = None
    ) -> Vectors:
        """Turn texts into vectors with the adapter; see Served.embed."""
        return await self.served.embed(replace(job, adapter=self.adapter), keep_alive, read)

    async def template(self) -> dict[str, Any]:
        """Describe the tokenizer and its chat template."""
        return await self.served.template()
