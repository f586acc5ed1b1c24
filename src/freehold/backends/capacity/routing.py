"""Which replica a simulated request goes to: in turn, to the least loaded, or to the one that knows its beginning.

Knows counts of outstanding requests and ids of blocks. Path: simulation.simulate -> policy -> RoutingPolicy.choose
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from freehold.config import nearest
from freehold.errors import UsageError

BOUND = 1.25  # of the mean load: what a replica may have before requests with its prefixes go elsewhere
FREE = 4  # requests that a replica may have whatever the mean: a batch of few costs little more than one
KEY_BLOCKS = 3  # of a prompt's beginning that decide where it goes; fewer are often one system prompt


class RoutingPolicy(Protocol):
    """Chooses among `count` replicas; `load(i)` is how many requests the i-th has."""

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the id of the replica, one of `ids`, that a request whose prompt has these blocks goes to."""
        ...


class RoundRobin:
    """In turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the next one."""
        self._next += 1
        return ids[(self._next - 1) % len(ids)]


class LeastLoaded:
    """To the one with the fewest outstanding requests, in turn among equals."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the least loaded."""
        self._turn += 1
        turn, count = self._turn, len(ids)
        best, least = ids[0], None
        for n in range(count):
            i = ids[(n + turn) % count]
            have = load(i)
            if least is None or have < least:
                best, least = i, have
        return best


class PrefixAffinity:
    """To the replica that its beginning hashes to (highest random weight), the next one while that has too many.

    A replica leaves the choice only where it has more than BOUND times the mean and its place is taken by the next of
    the same order, so that adding or removing one moves only the beginnings that were its own.
    """

    def __init__(self) -> None:
        self._else = LeastLoaded()

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the first of the beginning's order that is not over the bound; without blocks the least loaded."""
        if not blocks:
            return self._else.choose(blocks, ids, load)
        loads = {i: load(i) for i in ids}
        most = BOUND * (sum(loads.values()) + 1) / len(ids)
        key = ",".join(map(str, blocks[:KEY_BLOCKS]))
        order = sorted(ids, key=lambda i: blake2b(f"{i}:{key}".encode(), digest_size=8).digest())
        return next((i for i in order if loads[i] + 1 <= max(most, FREE)), order[0])


POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix": PrefixAffinity,
}


def policy(name: str) -> RoutingPolicy:
    """Return a new policy. Raises UsageError with the nearest name."""
    if name in POLICIES:
        return POLICIES[name]()
    near = nearest(name, list(POLICIES))
    raise UsageError(
        f"no routing is called {name!r}", f"did you mean {near}?" if near else f"known: {', '.join(POLICIES)}"
    )
