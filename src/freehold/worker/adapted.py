"""A loaded model under the name of one of its adapters: `base+adapter`.

Knows one name and what every job must carry for it; the rest is the model's own. So no protocol knows of adapters:
EngineModels.use returns a handle for such a name like any other.
Path: EngineModels.use -> AdaptedHandle.start -> EngineHandle.start
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from freehold.delegating import DelegatingHandle
from freehold.serving import EmbedJob, Job, ModelHandle, Stream, Vectors


class AdaptedHandle(DelegatingHandle):
    """A model that computes every job with `adapter`."""

    def __init__(self, handle: ModelHandle, adapter: str) -> None:
        super().__init__(handle)
        self.adapter = adapter

    @property
    def name(self) -> str:
        return f"{self.handle.name}+{self.adapter}"

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(replace(job, adapter=self.adapter), keep_alive)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        return await self.handle.embed(replace(job, adapter=self.adapter), keep_alive, computed)
