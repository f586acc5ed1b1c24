"""Stand-in providers and hops for the tests of this room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from freehold.route.providers.hop import Hop
from tests.providers.standin import StandIn


@pytest.fixture
def standin() -> Iterator[StandIn]:
    """A stand-in of its own for one test."""
    with StandIn() as server:
        yield server


@pytest.fixture
def hopping() -> Callable[[Callable[[Hop], Coroutine[Any, Any, Any]]], Any]:
    """Return a function that runs a coroutine function with a Hop, and closes it."""

    def run(work: Callable[[Hop], Coroutine[Any, Any, Any]]) -> Any:
        async def all_of_it() -> Any:
            hop = Hop()
            try:
                return await work(hop)
            finally:
                await hop.close()

        return asyncio.run(all_of_it())

    return run
