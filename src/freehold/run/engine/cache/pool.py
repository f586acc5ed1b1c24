"""The pool of cache blocks: free, used by live sequences, or cached in the prefix tree for later prompts.

Knows blocks, how many hold them, and the tree's nodes; knows no sequence. A block is free, or live (sequences hold
it), or cached (no sequence does, and the tree knows its tokens). Cached blocks are taken back when no free one is
left, the longest unused first.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence as Ordered

from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache import CacheKind


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


# --- the tree of prefixes: which blocks of the cache hold which tokens ------------------------------
# A node is one block, and the path to it from its root spells the tokens before it, so a block is found only
# after the very tokens its keys and values were computed after. Every salt has a root of its own: one
# tenant's tokens never lead to another's blocks.

TOKEN_BYTES = 4
WHOLE = BLOCK_TOKENS * TOKEN_BYTES  # bytes in the key of a node whose block is full
_WHOLE_KEY = struct.Struct(f">{BLOCK_TOKENS}I")


def key_of(tokens: Ordered[int]) -> bytes:
    """Spell tokens as bytes that compare as the tokens do: four each, the highest first."""
    if len(tokens) == BLOCK_TOKENS:
        return _WHOLE_KEY.pack(*tokens)
    return struct.pack(f">{len(tokens)}I", *tokens)


def agreeing(a: bytes, b: bytes) -> int:
    """Return how many leading tokens two keys share."""
    n = min(len(a), len(b))
    differing = int.from_bytes(a[:n]) ^ int.from_bytes(b[:n])
    return (n - (differing.bit_length() + 7) // 8) // TOKEN_BYTES


class Node:
    """A block, the tokens in it, and the blocks that were computed after it."""

    __slots__ = ("block", "children", "kept", "key", "keys", "parent")

    def __init__(self, parent: Node | None, key: bytes, block: int) -> None:
        self.parent = parent  # None at a root, whose key is its salt
        self.key = key
        self.block = block
        self.kept = 0  # 1 << part for each part of it that is on disk; the thread that writes it sets them
        self.children: dict[bytes, Node] = {}
        self.keys: list[
            bytes
        ] = []  # of the children, sorted: those that agree longest with a key are next to it


class PrefixTree:
    """Nodes under a root for each salt. Only leaves are removed; a root goes with its last child."""

    def __init__(self) -> None:
        self._roots: dict[bytes, Node] = {}
        self.nodes = 0  # roots not counted

    def root(self, salt: str) -> Node:
        """Return the root of a salt, made if there is none, to insert below it."""
        key = salt.encode()
        return self._roots.setdefault(key, Node(None, key, -1))

    def walk(self, salt: str, tokens: Ordered[int], limit: int) -> list[Node]:
        """Return the nodes of the full blocks that the first `limit` tokens spell, in order."""
        node, path = self._roots.get(salt.encode()), []
        for end in range(BLOCK_TOKENS, limit + 1, BLOCK_TOKENS):
            if node is None:
                break
            node = node.children.get(_WHOLE_KEY.pack(*tokens[end - BLOCK_TOKENS : end]))
            if node is not None:
                path.append(node)
        return path

    def nearest(self, salt: str, path: list[Node], tokens: Ordered[int]) -> tuple[Node | None, int]:
        """Return the node after `path` that begins most as `tokens` do, and how many of them it holds."""
        node = path[-1] if path else self._roots.get(salt.encode())
        if node is None or not tokens:
            return None, 0
        key = key_of(tokens[:BLOCK_TOKENS])
        at = bisect_left(node.keys, key)
        beside = node.keys[max(at - 1, 0) : at + 1]
        best = max(beside, key=lambda other: agreeing(key, other), default=b"")
        same = agreeing(key, best)
        return (node.children[best], same) if same else (None, 0)

    def covers(self, parent: Node, key: bytes) -> bool:
        """Tell whether a child holds these tokens, and perhaps more."""
        at = bisect_left(parent.keys, key)
        return at < len(parent.keys) and parent.keys[at].startswith(key)

    def part_of(self, parent: Node, key: bytes) -> Node | None:
        """Return the child that holds the beginning of these tokens and no more."""
        at = bisect_left(parent.keys, key)
        if at and key.startswith(parent.keys[at - 1]):
            return parent.children[parent.keys[at - 1]]
        return None

    def insert(self, parent: Node, key: bytes, block: int) -> Node:
        """Put a block under a node; nothing there may have the same tokens."""
        assert key not in parent.children and (parent.parent is None or len(parent.key) == WHOLE)
        node = parent.children[key] = Node(parent, key, block)
        insort(parent.keys, key)
        self.nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Take a leaf out."""
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[node.key]
        del parent.keys[bisect_left(parent.keys, node.key)]
        self.nodes -= 1
        if not parent.children and parent.parent is None:
            del self._roots[parent.key]
