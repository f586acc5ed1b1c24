"""The pool of cache blocks: free, used by live sequences, or cached in the prefix tree for later prompts.

Knows blocks, how many hold them, and the tree's nodes; knows no sequence. A block is free, or live (sequences hold
it), or cached (no sequence does, and the tree knows its tokens). Cached blocks are taken back when no free one is
left, the longest unused first.
Path: BlockManager, DiskTier -> BlockPool.take, hold, drop, insert
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Ordered

from freehold.engine.cache.contract import CacheKind
from freehold.engine.cache.prefix import Node, PrefixTree


class BlockPool:
    """A pool of `count` blocks; each of `kinds` may store data for each block."""

    def __init__(self, count: int, kinds: Ordered[CacheKind]) -> None:
        self.count = count
        self.tree = PrefixTree()
        self.nodes: list[Node | None] = [None] * count
        self.holders = [0] * count  # sequences
        self.shared = 0  # blocks that several sequences hold
        self._kinds = kinds
        self._free = list(range(count - 1, -1, -1))
        # Cached blocks, the longest unused first. A sequence drops its blocks from the end, so a block always comes
        # before the one it was computed after: the first is a leaf, and evicting costs no search.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks that no sequence holds and the tree knows."""
        return len(self._cached)

    def hold(self, block: int) -> None:
        """Count one more sequence that holds a block of the tree."""
        if not self.holders[block]:
            del self._cached[block]
        self.holders[block] += 1
        self.shared += self.holders[block] == 2

    def drop(self, block: int) -> None:
        """Count one less; what the tree knows stays cached."""
        self.holders[block] -= 1
        if self.holders[block]:
            self.shared -= self.holders[block] == 1
            return
        if self.nodes[block] is None:
            self._set_free(block)
        else:
            self._cached[block] = None

    def take(self) -> int:
        """Take a free block for a sequence, or the cached one that was unused for longest."""
        if not self._free:
            self.forget(next(iter(self._cached)))
        block = self._free.pop()
        self.holders[block] = 1
        return block

    def copy_of(self, source: int) -> int:
        """Take a block that will hold what `source` does: `source` itself, if it was the last to be had."""
        if source in self._cached:
            self._cached.move_to_end(source)
        places = [kind.touch(source) for kind in self._kinds]
        block = self.take()
        for kind, place in zip(self._kinds, places, strict=True):
            kind.copy(place, block)
        return block

    def insert(self, above: Node, key: bytes, block: int) -> Node:
        """Put a block into the tree; one that holds a part of its tokens leaves it."""
        part = self.tree.part_of(above, key)
        node = self.nodes[block] = self.tree.insert(above, key, block)
        if part is not None:
            self.forget(part.block)
        return node

    def forget(self, block: int) -> None:
        """Take a leaf's block out of the tree."""
        node = self.nodes[block]
        assert node is not None
        self.tree.remove(node)
        self.nodes[block] = None
        for kind in self._kinds:
            kind.leave(block)
        if not self.holders[block]:
            del self._cached[block]
            self._set_free(block)

    def _set_free(self, block: int) -> None:
        self._free.append(block)
        for kind in self._kinds:
            kind.free(block)
