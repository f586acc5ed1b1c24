"""The pool of cache blocks: who holds which, and what is worth keeping of those that nobody holds.

Knows blocks, their holders and token ids; knows no pages and no arithmetic. A block is free, or live (sequences
hold it), or cached (nobody does, and the tree knows its tokens). Full blocks enter the tree as soon as they are
computed, so sequences that begin alike share them while they run; nobody writes a block that others may
read, but into a copy. Taking a block over equals computing it again bit for bit, since a position's keys
depend on the tokens up to it alone.
Path: Scheduler.schedule -> BlockManager.adopt, grow; Engine -> publish, retire; ModelRunner.run -> take_copies
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence as Ordered
from time import monotonic

from freehold._native import BLOCK_TOKENS
from freehold.engine.disk import DiskCache
from freehold.engine.prefix import Node, PrefixTree, key_of
from freehold.engine.sequence import Sequence

LOAD_S = 0.02  # seconds that one sequence may read from disk in a step while others wait
KEPT_BLOCKS = 8  # full blocks from which on a prompt is kept on disk: shorter ones are computed in a blink


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold `tokens` positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockManager:
    """Hands out `count` blocks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._nodes: list[Node | None] = [None] * count
        self._tree = PrefixTree()
        # Cached blocks, the longest unused first. A sequence that lets go does so from its end, so a block always
        # comes before the one it was computed after: the first is a leaf, and evicting costs no search.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._copies: list[tuple[int, int]] = []
        self._disk: DiskCache | None = None
        self.disk_tokens = 0  # read from disk so far

    def attach(self, disk: DiskCache) -> None:
        """Keep prompts on a disk too; its pool is the one whose blocks these are."""
        self._disk = disk

    def close(self) -> None:
        """Let the disk finish, and let go of its pool."""
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    @property
    def available(self) -> int:
        """Blocks no live sequence holds."""
        return len(self._free) + len(self._cached)

    @property
    def live(self) -> int:
        """Blocks that live sequences hold, each counted once."""
        return self.count - self.available

    @property
    def cached(self) -> int:
        """Blocks nobody holds and that begin somebody's next prompt, perhaps."""
        return len(self._cached)

    # --- a sequence's blocks -----------------------------------------------------------------------

    def match(self, seq: Sequence) -> int:
        """Return how many tokens `adopt` would find in memory now."""
        salt, limit = seq.request.salt, len(seq.tokens) - 1
        path = self._tree.walk(salt, seq.tokens, limit)
        return len(path) * BLOCK_TOKENS + self._nearest(seq, path, limit)[1]

    def adopt(self, seq: Sequence, hurry: bool = False) -> bool:
        """Let a sequence of which nothing was computed share what is known of its tokens, its last one excepted.

        The last token is computed anew, as its logits are wanted. Of a block that agrees in part it gets a copy.
        False, only with `hurry`: the disk has more than is read while others wait; call it again in the next step.
        """
        salt, limit = seq.request.salt, len(seq.tokens) - 1
        path = self._tree.walk(salt, seq.tokens, limit)
        for node in path[len(seq.table) :]:  # all of them, unless the disk had more
            self._hold(node.block)
            seq.table.append(node.block)
        complete = self._load(seq, path, limit // BLOCK_TOKENS, LOAD_S if hurry else math.inf)
        seq.computed = len(path) * BLOCK_TOKENS
        source, same = self._nearest(seq, path, limit)
        if complete and source is not None and self.available:
            seq.table.append(self._copy_of(source.block))
            seq.computed += same
        if not seq.generated:
            seq.cached = seq.computed
        return complete

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give `seq` blocks for its first `tokens` positions; False, and none given, if too few are left.

        Positions from its last computed one on are its own to write then, whoever shared that block.
        """
        need = self.missing(seq, tokens)
        if need == 0:
            return True
        if need > self.available:
            return False
        self._make_private(seq)
        seq.table += [self._take() for _ in range(blocks_for(tokens) - len(seq.table))]
        return True

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Return how many blocks `grow` would take: new ones, and one for the copy of a block that is shared."""
        return max(blocks_for(tokens) - len(seq.table), 0) + (not self._is_private(seq))

    def stretch(self, seq: Sequence, tokens: int) -> int:
        """Give `seq` blocks for up to `tokens` positions; return how many of them have room now."""
        while len(seq.table) < blocks_for(tokens) and self.available:
            seq.table.append(self._take())
        return min(tokens, len(seq.table) * BLOCK_TOKENS)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share what is computed of the parent, as far as their tokens agree, its last one excepted."""
        assert not child.table
        same = parent.computed
        if child.tokens[:same] != parent.tokens[:same]:
            same = common_prefix(child.tokens, parent.tokens[:same])
        child.table = parent.table[: blocks_for(same)]
        child.computed = min(same, len(child.tokens) - 1)
        for block in child.table:
            self._hold(block)

    def publish(self, seq: Sequence) -> None:
        """Let others share the full blocks of `seq` that are computed now.

        A block whose twin is in the tree already makes way for it. Costs a look where no block was completed.
        """
        full = seq.computed // BLOCK_TOKENS
        first = full
        while first and self._nodes[seq.table[first - 1]] is None:
            first -= 1
        if first == full:
            return
        above = self._nodes[seq.table[first - 1]] if first else self._tree.root(seq.request.salt)
        for i in range(first, full):
            assert above is not None
            above = self._enter(seq, i, above)
        if first < len(seq.request.prompt) // BLOCK_TOKENS <= full:
            self._keep(seq, full)

    def release(self, seq: Sequence) -> None:
        """Let go of all blocks; what was published of them stays while there is room."""
        for block in reversed(seq.table):
            self._drop(block)
        seq.table, seq.computed = [], 0

    def retire(self, seq: Sequence) -> None:
        """Let go of the blocks of a sequence that ended; also its last one stays, as far as it goes."""
        if seq.table:
            self.publish(seq)
            self._keep(seq, seq.computed // BLOCK_TOKENS)
            self._enter_rest(seq)
        self.release(seq)

    def take_copies(self) -> list[tuple[int, int]]:
        """Return the copies due before anything is computed, each from a block to a block, in order."""
        copies, self._copies = self._copies, []
        return copies

    # --- holders -----------------------------------------------------------------------------------

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._cached[block]
        self._holders[block] += 1

    def _drop(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if self._nodes[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _take(self) -> int:
        """Take a free block, or the cached one that was unused for longest."""
        if not self._free:
            self._forget(next(iter(self._cached)))
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _forget(self, block: int) -> None:
        """Take a leaf's block out of the tree."""
        node = self._nodes[block]
        assert node is not None
        self._tree.remove(node)
        self._nodes[block] = None
        if not self._holders[block]:
            del self._cached[block]
            self._free.append(block)

    def _copy_of(self, source: int) -> int:
        """Take a block that will hold what `source` does; that may be the very one, if it was the last to be had."""
        if source in self._cached:
            self._cached.move_to_end(source)
        block = self._take()
        if block != source:
            self._copies.append((source, block))
        return block

    # --- writing -----------------------------------------------------------------------------------

    def _is_private(self, seq: Sequence) -> bool:
        """Tell whether the block that is written next is nobody else's; blocks after it always are."""
        at = min(seq.computed, len(seq.tokens) - 1) // BLOCK_TOKENS
        if at >= len(seq.table):
            return True
        return self._holders[seq.table[at]] == 1 and self._nodes[seq.table[at]] is None

    def _make_private(self, seq: Sequence) -> None:
        if self._is_private(seq):
            return
        at = min(seq.computed, len(seq.tokens) - 1) // BLOCK_TOKENS
        block = seq.table[at]
        node = self._nodes[block]
        if self._holders[block] == 1 and node is not None and not node.children:
            self._forget(block)
        else:
            seq.table[at] = self._copy_of(block)
            self._drop(block)

    # --- the tree ----------------------------------------------------------------------------------

    def _nearest(self, seq: Sequence, path: list[Node], limit: int) -> tuple[Node | None, int]:
        at = len(path) * BLOCK_TOKENS
        return self._tree.nearest(seq.request.salt, path, seq.tokens[at : min(at + BLOCK_TOKENS, limit)])

    def _enter(self, seq: Sequence, i: int, above: Node) -> Node:
        """Put a full block of `seq` under a node, or take the one that is there already."""
        block = seq.table[i]
        key = key_of(seq.tokens[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS])
        twin = above.children.get(key)
        if twin is not None:
            self._hold(twin.block)
            seq.table[i] = twin.block
            self._drop(block)
            return twin
        return self._insert(above, key, block)

    def _enter_rest(self, seq: Sequence) -> None:
        """Put the part of a block that a sequence ends with into the tree, unless that holds it already."""
        full, rest = divmod(seq.computed, BLOCK_TOKENS)
        if not rest or self._nodes[seq.table[full]] is not None:
            return
        above = self._nodes[seq.table[full - 1]] if full else self._tree.root(seq.request.salt)
        assert above is not None
        key = key_of(seq.tokens[full * BLOCK_TOKENS : seq.computed])
        if not self._tree.covers(above, key):
            self._insert(above, key, seq.table[full])

    def _insert(self, above: Node, key: bytes, block: int) -> Node:
        """Put a block into the tree; one that holds a part of its tokens has no more to say there."""
        part = self._tree.part_of(above, key)
        node = self._nodes[block] = self._tree.insert(above, key, block)
        if part is not None:
            self._forget(part.block)
        return node

    # --- the disk ----------------------------------------------------------------------------------

    def _load(self, seq: Sequence, path: list[Node], whole: int, seconds: float) -> bool:
        """Read blocks after `path`, which they join, up to `whole`; False if there may be more and time is up."""
        if self._disk is None or len(path) == whole:
            return True
        until = monotonic() + seconds
        starts = range(0, whole * BLOCK_TOKENS, BLOCK_TOKENS)
        keys = (key_of(seq.tokens[at : at + BLOCK_TOKENS]) for at in starts)
        for content in self._disk.read(seq.request.salt, keys, len(path)):
            if not self.available:
                return True
            self._disk.pool.copy(self.take_copies())  # before what they are copies of is written over
            block = self._take()
            self._disk.pool.write_block(block, content)
            above = path[-1] if path else self._tree.root(seq.request.salt)
            at = len(path) * BLOCK_TOKENS
            path.append(self._insert(above, key_of(seq.tokens[at : at + BLOCK_TOKENS]), block))
            path[-1].kept = True
            seq.table.append(block)
            self.disk_tokens += BLOCK_TOKENS
            if monotonic() > until:
                return len(path) == whole
        return True

    def _keep(self, seq: Sequence, full: int) -> None:
        """Have the first `full` blocks of `seq` written unless they are on disk, or too few to matter."""
        if self._disk is None or full < KEPT_BLOCKS:
            return
        nodes = [node for block in seq.table[:full] if (node := self._nodes[block]) is not None]
        first = full
        while first and not nodes[first - 1].kept:
            first -= 1
        if first < full:
            self._disk.keep(seq.request.salt, nodes, first, lambda n: self._nodes[n.block] is n)


def common_prefix(a: Ordered[int], b: Ordered[int]) -> int:
    """Return how many leading items two lists share."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same
