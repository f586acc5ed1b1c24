"""The disk tier of the cache: chooses which blocks of a prompt to write, and loads blocks back into the pool.

Knows sequences, nodes, places and their bytes; knows no file. A block's content is the data
of all paged kinds; a recurrent state is stored apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache.contract import CacheKind, Copies
from freehold.run.engine.cache.disk import PAGES, STATE, DiskCache
from freehold.run.engine.cache.pool import BlockPool, Node, key_of
from freehold.run.engine.sequence import Sequence

U8 = NDArray[np.uint8]

LOAD_S = 0.02  # seconds that one sequence may read from disk in a step while others wait
KEPT_BLOCKS = 8  # full blocks from which a prompt is kept on disk: shorter ones are computed faster


class Memory(Protocol):
    """Memory that places index. A content is the bytes at one place of each kind, in order."""

    @property
    def nbytes(self) -> int: ...
    def read(self, places: Ordered[int]) -> U8: ...
    def write(self, places: Ordered[int], content: U8) -> None: ...
    def copy(self, copies: Mapping[str, Copies]) -> None: ...


class KvPages(Memory):
    """The pages of full attention, and of sliding windows where those have blocks of their own."""

    def __init__(self, cache: native.KvCache) -> None:
        self._cache = cache

    @property
    def nbytes(self) -> int:
        """Bytes of a block's content."""
        return self._cache.bytes_per_block + self._cache.bytes_per_window_block

    def read(self, places: Ordered[int]) -> U8:
        """Return the content of a block."""
        return self._cache.read_block(*places)

    def write(self, places: Ordered[int], content: U8) -> None:
        """Fill a block."""
        self._cache.write_block(places[0], content, *places[1:])

    def copy(self, copies: Mapping[str, Copies]) -> None:
        """Make copies on write."""
        self._cache.copy(copies["full"], copies.get("window", ()))


class StateSlots(Memory):
    """The states of recurrent layers."""

    def __init__(self, cache: native.KvCache) -> None:
        self._cache = cache

    @property
    def nbytes(self) -> int:
        """Bytes of a slot's states."""
        return self._cache.bytes_per_slot

    def read(self, places: Ordered[int]) -> U8:
        """Return the states in a slot."""
        return self._cache.read_state(places[0])

    def write(self, places: Ordered[int], content: U8) -> None:
        """Fill a slot."""
        self._cache.write_state(places[0], content)

    def copy(self, copies: Mapping[str, Copies]) -> None:
        """Do nothing: a state that something else reads is not written over."""


class DiskTier:
    """Prompts of `pool` that are kept in `disk` too; `memories`: of the paged kinds, and of states if there are any."""

    def __init__(
        self, pool: BlockPool, kinds: Ordered[CacheKind], disk: DiskCache, memories: Ordered[Memory]
    ) -> None:
        self.tokens = 0  # read from disk so far
        self._pool = pool
        self._kinds = kinds
        self._paged = [kind for kind in kinds if kind.paged]
        self._stateful = [kind for kind in kinds if not kind.paged]
        self._disk = disk
        self._memories: list[Memory] = [*memories]  # none: closed
        assert len(memories) == 1 + len(self._stateful)

    def close(self) -> None:
        """Let the disk finish what is quick, and let go of the memory."""
        self._disk.close()
        self._memories = []

    # --- reading -----------------------------------------------------------------------------------

    def load(self, seq: Sequence, path: list[Node], whole: int, seconds: float) -> bool:
        """Let `seq` hold the blocks of `path` whose pages are there, and read what follows, up to `whole` blocks.

        `path` ends then where that ends. False if there may be more and time is up.
        """
        if not self._memories:
            return True
        salt, blocks = seq.request.salt, [node.block for node in path]
        known = _usable(self._kinds, blocks)
        if self._stateful:  # pages are worth reading up to the last state
            whole = self._disk.last_state(salt, _keys(seq, whole), known)
            if whole == known:
                return True
        del path[_usable(self._paged, blocks) :]
        for block in blocks[len(seq.block_table) : len(path)]:
            self._pool.hold(block)
            seq.block_table.append(block)
        self._follow(seq, len(path))
        complete = len(path) >= whole or self._read_pages(seq, path, whole, monotonic() + seconds)
        if complete and self._stateful:
            self._read_state(salt, path, [*_keys(seq, min(whole, len(path)))], known)
        return complete

    def _read_pages(self, seq: Sequence, path: list[Node], whole: int, until: float) -> bool:
        memory = self._memories[PAGES]
        for content in self._disk.read(seq.request.salt, _keys(seq, whole), len(path)):
            memory.copy({kind.name: kind.take_copies() for kind in self._paged})  # before one is written over
            node = self._node_after(seq, path)
            if node is None:
                return True
            self._follow(seq, len(path))
            memory.write([kind.provide(node.block) for kind in self._paged], content)
            node.kept |= 1 << PAGES
            path.append(node)
            self.tokens += BLOCK_TOKENS
            self._follow(seq, len(path))
            if monotonic() > until:
                return len(path) == whole
        return True

    def _node_after(self, seq: Sequence, path: list[Node]) -> Node | None:
        """Give `seq` the block after `path`, which may be known without all its pages; None without a free one."""
        above = path[-1] if path else self._pool.tree.root(seq.request.salt)
        key = _key(seq, len(path))
        node = above.children.get(key)
        if node is not None:
            self._pool.hold(node.block)
        elif self._pool.available:
            node = self._pool.insert(above, key, self._pool.take())
        else:
            return None
        seq.block_table.append(node.block)
        return node

    def _read_state(self, salt: str, path: list[Node], keys: list[bytes], known: int) -> None:
        """Read the last intact state after one of `keys`, if it lies beyond the `known` blocks."""
        while (at := self._disk.last_state(salt, keys, known)) > known:
            content, node = self._disk.read_state(salt, keys[:at]), path[at - 1]
            if content is not None:
                self._memories[STATE].write([kind.provide(node.block) for kind in self._stateful], content)
                node.kept |= 1 << STATE
                return
            del keys[at - 1 :]

    def _follow(self, seq: Sequence, blocks: int) -> None:
        seq.num_computed_tokens = blocks * BLOCK_TOKENS
        for kind in self._kinds:
            if kind.follows:
                kind.follow(seq)

    # --- writing -----------------------------------------------------------------------------------

    def keep(self, seq: Sequence, full: int) -> None:
        """Have the first `full` blocks of `seq` written unless they are on disk, or too few to matter."""
        if not self._memories or full < KEPT_BLOCKS:
            return
        nodes = [node for block in seq.block_table[:full] if (node := self._pool.nodes[block]) is not None]
        first = len(nodes)
        while first and not nodes[first - 1].kept >> PAGES & 1:
            first -= 1
        if self._stateful:
            first = next((i for i, node in enumerate(nodes[:first]) if self._has_new_state(node)), first)
        if first < len(nodes):
            self._disk.keep(seq.request.salt, [*_keys(seq, len(nodes))], nodes, first, self._content)

    def _has_new_state(self, node: Node) -> bool:
        return not node.kept >> STATE & 1 and all(kind.place(node.block) >= 0 for kind in self._stateful)

    def _content(self, node: Node, part: int) -> U8 | None:
        """Return a node's pages or state, from another thread; None if a kind lost it, perhaps meanwhile."""
        kinds = self._stateful if part == STATE else self._paged
        places = [kind.place(node.block) for kind in kinds]
        if not self._memories or min(places) < 0:
            return None
        content = self._memories[part].read(places)
        same = places == [kind.place(node.block) for kind in kinds]
        return content if same and self._pool.nodes[node.block] is node else None


def _usable(kinds: Iterable[CacheKind], blocks: list[int]) -> int:
    """Return how many full blocks all `kinds` can reuse."""
    tokens, least = -1, len(blocks) * BLOCK_TOKENS
    while tokens != least:
        tokens = least
        least = min(kind.usable(blocks, tokens) for kind in kinds)
    return tokens // BLOCK_TOKENS


def _key(seq: Sequence, block: int) -> bytes:
    return key_of(seq.tokens[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS])


def _keys(seq: Sequence, count: int) -> Iterator[bytes]:
    """Yield the keys of a sequence's first blocks as the disk has them: no more are made than it has blocks.

    They are the same in every process: pictures are spelled by what they are, not by their ids.
    """
    pictures = seq.request.pictures
    if pictures is None:
        return (_key(seq, block) for block in range(count))
    return (pictures.key(seq.tokens, block * BLOCK_TOKENS, BLOCK_TOKENS) for block in range(count))
