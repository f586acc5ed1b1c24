"""Which replica a simulated request goes to: in turn, to the least loaded, or to the one that knows its beginning.

Knows counts of outstanding requests and ids of blocks. Path: simulation.simulate -> policy -> RoutingPolicy.choose
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from freehold.backends.replicas.affinity import PrefixRing, pick
from freehold.config import nearest
from freehold.errors import UsageError

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
    """To the replica whose place on the ring a beginning hashes to, unless it is too busy: what a deployment does."""

    def __init__(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._ring = PrefixRing()
        self._last: dict[int, float] = {}
        self._turn = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the ring's choice among `ids`; without blocks the least loaded."""
        if self._ids != tuple(ids):
            self._ids, self._ring = tuple(ids), PrefixRing(ids)
        number = pick(self._ring, _key(blocks), {i: load(i) for i in ids}, lambda i: self._last.get(i, 0.0))
        assert number is not None
        self._turn += 1
        self._last[number] = self._turn
        return number


def _key(blocks: Sequence[int]) -> int | None:
    """Return the key of a prompt's beginning; None where nothing is known of it."""
    if not blocks:
        return None
    return int.from_bytes(blake2b(",".join(map(str, blocks[:KEY_BLOCKS])).encode(), digest_size=8).digest())


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
