"""Rented models over one set of connections, as routes ask for them.

Path: directory.py -> ProviderModels.start -> providers/upstream.py -> providers/hop.py
"""

from __future__ import annotations

from collections.abc import Iterable

from freehold.providers import upstream
from freehold.providers.cleared import Cleared
from freehold.providers.contract import Provider, RemoteModel
from freehold.providers.hop import Hop
from freehold.router.contract import RentedStream
from freehold.serving import EmbedJob, Job, Vectors


class ProviderModels:
    """The models of all providers; one event loop's."""

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._hop = Hop(providers)

    def keep(self, providers: Iterable[Provider]) -> None:
        self._hop.keep(providers)

    async def start(
        self,
        cleared: Cleared[Job],
        model: RemoteModel,
        *,
        first_token_s: float,
        timeout_s: float,
    ) -> RentedStream:
        return await upstream.start(
            self._hop,
            cleared,
            model,
            first_token_s=first_token_s,
            timeout_s=timeout_s,
            stream=not cleared.work.whole,
        )

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors:
        return await upstream.embed(self._hop, cleared, model, timeout_s=timeout_s)

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        return await upstream.count(self._hop, cleared, model, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close every connection; answers in progress break."""
        await self._hop.close()
