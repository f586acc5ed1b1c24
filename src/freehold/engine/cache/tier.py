"""Between the pool and the disk: which blocks of a prompt are worth writing, and where those that are read go.

Knows sequences, nodes, places and their bytes; knows no file. A block's content is what all paged kinds keep of it.
Path: BlockManager.adopt -> DiskTier.load -> DiskCache.read; BlockManager.publish, retire -> DiskTier.keep
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold._native import BLOCK_TOKENS
from freehold.engine.cache.contract import CacheKind, Copies
from freehold.engine.cache.disk import DiskCache
from freehold.engine.cache.pool import BlockPool
from freehold.engine.cache.prefix import Node, key_of
from freehold.engine.sequence import Sequence

U8 = NDArray[np.uint8]

LOAD_S = 0.02  # seconds that one sequence may read from disk in a step while others wait
KEPT_BLOCKS = 8  # full blocks from which on a prompt is kept on disk: shorter ones are computed in a blink


class Memory(Protocol):
    """What places lead to. A content is the bytes at one place of each kind, in order."""

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
        return self._cache.bytes_per_block + self._cache.bytes_per_slot

    def read(self, places: Ordered[int]) -> U8:
        """Return the content of a block."""
        return self._cache.read_block(*places)

    def write(self, places: Ordered[int], content: U8) -> None:
        """Fill a block."""
        self._cache.write_block(places[0], content, *places[1:])

    def copy(self, copies: Mapping[str, Copies]) -> None:
        """Make copies on write."""
        self._cache.copy(copies["full"], copies.get("window", ()))


class DiskTier:
    """Prompts of `pool` that are kept in `disk` too; the blocks' contents lie in `pages`."""

    def __init__(self, pool: BlockPool, kinds: Ordered[CacheKind], disk: DiskCache, pages: Memory) -> None:
        self.tokens = 0  # read from disk so far
        self._pool = pool
        self._kinds = kinds
        self._paged = [kind for kind in kinds if kind.paged]
        self._disk = disk
        self._pages: Memory | None = pages  # None: closed

    def close(self) -> None:
        """Let the disk finish what is quick, and let go of the memory."""
        self._disk.close()
        self._pages = None

    # --- reading -----------------------------------------------------------------------------------

    def load(self, seq: Sequence, path: list[Node], whole: int, seconds: float) -> bool:
        """Let `seq` hold the blocks of `path` whose pages are there, and read what follows, up to `whole` blocks.

        `path` ends then where that ends. False if there may be more and time is up.
        """
        blocks = [node.block for node in path]
        del path[self._paged_part(blocks) :]
        for block in blocks[len(seq.block_table) : len(path)]:
            self._pool.hold(block)
            seq.block_table.append(block)
        self._follow(seq, len(path))
        if self._pages is None or len(path) == whole:
            return True
        return self._read(self._pages, seq, path, whole, monotonic() + seconds)

    def _paged_part(self, blocks: list[int]) -> int:
        """Return how many of a prefix's blocks every paged kind can go on behind."""
        tokens, least = -1, len(blocks) * BLOCK_TOKENS
        while tokens != least:
            tokens = least
            least = min(kind.usable(blocks, tokens) for kind in self._paged)
        return tokens // BLOCK_TOKENS

    def _read(self, pages: Memory, seq: Sequence, path: list[Node], whole: int, until: float) -> bool:
        starts = range(0, whole * BLOCK_TOKENS, BLOCK_TOKENS)
        keys = (key_of(seq.tokens[at : at + BLOCK_TOKENS]) for at in starts)  # as many as the disk has blocks
        for content in self._disk.read(seq.request.salt, keys, len(path)):
            pages.copy({kind.name: kind.take_copies() for kind in self._paged})  # before one is written over
            node = self._node_after(seq, path)
            if node is None:
                return True
            self._follow(seq, len(path))
            places = [kind.provide(node.block) for kind in self._paged]
            pages.write(places, content)
            node.kept = True
            path.append(node)
            self.tokens += BLOCK_TOKENS
            self._follow(seq, len(path))
            if monotonic() > until:
                return len(path) == whole
        return True

    def _node_after(self, seq: Sequence, path: list[Node]) -> Node | None:
        """Give `seq` the block after `path`, which may be known without all its pages; None without a free one."""
        pool, at = self._pool, len(path) * BLOCK_TOKENS
        above = path[-1] if path else pool.tree.root(seq.request.salt)
        key = key_of(seq.tokens[at : at + BLOCK_TOKENS])
        node = above.children.get(key)
        if node is None and not pool.available:
            return None
        if node is None:
            node = pool.insert(above, key, pool.take())
        else:
            pool.hold(node.block)
        seq.block_table.append(node.block)
        return node

    def _follow(self, seq: Sequence, blocks: int) -> None:
        seq.num_computed_tokens = blocks * BLOCK_TOKENS
        for kind in self._kinds:
            if kind.follows:
                kind.follow(seq)

    # --- writing -----------------------------------------------------------------------------------

    def keep(self, seq: Sequence, full: int) -> None:
        """Have the first `full` blocks of `seq` written unless they are on disk, or too few to matter."""
        if self._pages is None or full < KEPT_BLOCKS:
            return
        nodes = [node for block in seq.block_table[:full] if (node := self._pool.nodes[block]) is not None]
        first = full
        while first and not nodes[first - 1].kept:
            first -= 1
        if first < full:
            self._disk.keep(seq.request.salt, nodes, first, self._content)

    def _content(self, node: Node) -> U8 | None:
        """Return the content of a node's block, from another thread; None if a kind lost it, perhaps meanwhile."""
        pages, places = self._pages, [kind.place(node.block) for kind in self._paged]
        if pages is None or min(places) < 0:
            return None
        content = pages.read(places)
        same = places == [kind.place(node.block) for kind in self._paged]
        return content if same and self._pool.nodes[node.block] is node else None
