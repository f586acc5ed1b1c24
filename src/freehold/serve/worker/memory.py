"""Memory for the models of a server: counts bytes before a load, and unloads idle models until they suffice.

Knows sizes, processes and which models are idle; knows no name of a file and no request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from freehold.base.errors import CapacityExceeded
from freehold.base.machine import resident_bytes, show_bytes
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.options import EngineOptions

HEADROOM = 256 << 20  # bytes of an engine beside weights and cache: interpreter, tokenizer, activations
LEAST_CACHE = 64 << 20  # a model is not worth loading with less
# Of what memory is left once the weights are in: the cache of the first model takes half, of the next half of
# the rest. Pages of it count as soon as they are reserved here, though the kernel gives them when first used.
CACHE_SHARE = 0.5
PAGED_CACHE_SHARE = (
    0.1  # of free memory, where weights come from disk: what the cache takes is read again for each token
)


class EngineMemory:
    """Memory left on the machine for engines. `available` returns the bytes that may still be taken."""

    def __init__(
        self, handles: Mapping[str, EngineHandle], options: EngineOptions, available: Callable[[], int]
    ) -> None:
        self._handles, self._options, self._available = handles, options, available
        self._needs: dict[str, int] = {}  # bytes, by name, of models being loaded
        self._lock = asyncio.Lock()  # one load looks for room at a time

    async def reserve(self, handle: EngineHandle, weights: int, refused: CapacityExceeded | None) -> int:
        """Make room for a model of `weights` bytes; return the bytes its cache may take. Raises CapacityExceeded.

        `refused`: the engine's own error, which knows what a token costs; then one idle model more is unloaded.
        """
        async with self._lock:
            if refused is not None and not await self._unload_one(handle):
                raise refused
            cache = await self._make_room(handle, weights)
            self._needs[handle.name] = weights + cache + HEADROOM
            return cache

    def loaded_names(self) -> str:
        """Say which models are loaded, with their sizes; empty for none."""
        shown = [
            f"{each.name} ({show_bytes(each.info.memory_bytes)} reserved, {each.in_flight} running)"
            for each in self._handles.values()
            if each.loaded
        ]
        return f"loaded: {', '.join(shown)}" if shown else ""

    async def _make_room(self, handle: EngineHandle, weights: int) -> int:
        """Unload idle models until `weights` fit; return the bytes the cache may take."""
        wanted = self._options.cache_bytes
        need = weights + HEADROOM + (wanted or LEAST_CACHE)
        while True:
            free = self._free(handle)
            if need > free and self._pages(handle):
                return wanted or max(int(free * PAGED_CACHE_SHARE), LEAST_CACHE)
            if need <= free and not self._too_many(handle):
                return wanted or int((free - weights - HEADROOM) * CACHE_SHARE)
            if not await self._unload_one(handle):
                raise self._no_room(handle, need, free)

    def _pages(self, handle: EngineHandle) -> bool:
        """Whether a model may be read from disk: where it is allowed, and no idle one can make room."""
        movable = any(each.leaving or (each.loaded and each.idle) for each in self._others(handle))
        return self._options.allow_paging and not movable and not self._too_many(handle)

    async def _unload_one(self, handle: EngineHandle) -> bool:
        """Wait for a model that is leaving, else unload the idle one used longest ago; False if there is neither."""
        others = self._others(handle)
        leaving = [each for each in others if each.leaving]
        idle = [each for each in others if each.loaded and each.idle]
        if leaving:
            await leaving[0].left()
        elif idle:
            await min(idle, key=lambda each: each.keep_alive.used_at).unload()
        return bool(leaving or idle)

    def _others(self, handle: EngineHandle) -> list[EngineHandle]:
        return [each for each in self._handles.values() if each is not handle]

    def _too_many(self, handle: EngineHandle) -> bool:
        most = self._options.max_models
        return most is not None and sum(each.awake for each in self._others(handle)) >= most

    def _free(self, handle: EngineHandle) -> int:
        """Count the bytes a new engine may take: the machine's, less what loaded ones have yet to touch."""
        return self._available() - sum(self._untouched(each) for each in self._others(handle) if each.awake)

    def _untouched(self, handle: EngineHandle) -> int:
        promised = handle.info.memory_bytes if handle.loaded else self._needs.get(handle.name, 0)
        return max(promised - resident_bytes(handle.pid), 0)

    def _no_room(self, handle: EngineHandle, need: int, free: int) -> CapacityExceeded:
        if self._too_many(handle):
            most = self._options.max_models
            message = f"{handle.name} would be one model more than the {most} allowed at once"
        else:
            message = f"{handle.name} needs {show_bytes(need)} with its cache; {show_bytes(max(free, 0))} are available"
        # In the hint, which a client's key never sees: its scope may not hold them.
        busy = self.loaded_names()
        if not busy:
            return CapacityExceeded(message, "free memory, or choose a smaller model")
        return CapacityExceeded(
            message, f"{busy}; ask again when one is idle, or unload one: freehold stop MODEL"
        )
