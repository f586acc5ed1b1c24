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
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from freehold._native import BLOCK_TOKENS
from freehold.engine.cache.disk import DiskCache
from freehold.engine.cache.prefix import Node, PrefixTree, key_of
from freehold.engine.cache.windows import Slots
from freehold.engine.sequence import Sequence

LOAD_S = 0.02  # seconds that one sequence may read from disk in a step while others wait
KEPT_BLOCKS = 8  # full blocks from which on a prompt is kept on disk: shorter ones are computed in a blink


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold `tokens` positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockManager:
    """Hands out `count` blocks, and with `slots` the room for what window layers keep of them."""

    def __init__(self, count: int, slots: Slots | None = None) -> None:
        self.count = count
        self.slots = slots
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._nodes: list[Node | None] = [None] * count
        self._tree = PrefixTree()
        # Cached blocks, the longest unused first. A sequence that lets go does so from its end, so a block always
        # comes before the one it was computed after: the first is a leaf, and evicting costs no search.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._copies: list[tuple[int, int]] = []
        self._slot_copies: list[tuple[int, int]] = []
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
        path, whole = self._good(self._tree.walk(salt, seq.tokens, limit))
        return len(path) * BLOCK_TOKENS + (self._nearest(seq, path, limit)[1] if whole else 0)

    def reserve(self, seq: Sequence) -> bool:
        """Set aside what window layers need of a sequence until it is released; False if too little is left."""
        if self.slots is None or seq.slots:
            return True
        seq.slots = self.slots.reserve(blocks_for(len(seq.tokens) + seq.left))
        return seq.slots > 0

    def reservable(self, seq: Sequence, released: Iterable[Sequence]) -> bool:
        """Tell whether `reserve` would succeed once other sequences were released."""
        if self.slots is None or seq.slots:
            return True
        return self.slots.missing(blocks_for(len(seq.tokens) + seq.left)) <= sum(s.slots for s in released)

    def adopt(self, seq: Sequence, hurry: bool = False) -> bool:
        """Let a sequence of which nothing was computed share what is known of its tokens, its last one excepted.

        The last token is computed anew, as its logits are wanted. Of a block that agrees in part it gets a copy.
        False, only with `hurry`: the disk has more than is read while others wait; call it again in the next step.
        """
        salt, limit = seq.request.salt, len(seq.tokens) - 1
        path, whole = self._good(self._tree.walk(salt, seq.tokens, limit))
        for node in path[len(seq.block_table) :]:  # all of them, unless the disk had more
            self._hold(node.block)
            seq.block_table.append(node.block)
        seq.num_computed_tokens = len(path) * BLOCK_TOKENS
        self._slide(seq)
        complete = self._load(seq, path, limit // BLOCK_TOKENS, LOAD_S if hurry else math.inf)
        seq.num_computed_tokens = len(path) * BLOCK_TOKENS
        source, same = self._nearest(seq, path, limit)
        if complete and whole and source is not None and self._has_slot(source.block) and self.available:
            seq.block_table.append(self._copy_of(source.block))
            seq.num_computed_tokens += same
            self._slide(seq)
        if not seq.generated:
            seq.num_cached_tokens = seq.num_computed_tokens
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
        seq.block_table += [self._take() for _ in range(blocks_for(tokens) - len(seq.block_table))]
        self._slide(seq)
        return True

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Return how many blocks `grow` would take: new ones, and one for the copy of a block that is shared."""
        return max(blocks_for(tokens) - len(seq.block_table), 0) + (not self._is_private(seq))

    def stretch(self, seq: Sequence, tokens: int) -> int:
        """Give `seq` blocks for up to `tokens` positions; return how many of them have room now."""
        while len(seq.block_table) < blocks_for(tokens) and self.available:
            seq.block_table.append(self._take())
        self._slide(seq)
        return min(tokens, len(seq.block_table) * BLOCK_TOKENS)

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int = 0) -> None:
        """Provide what a step writes for `count` positions from `first` on, and for draft tokens behind them."""
        if self.slots is not None:
            self.slots.fill(seq.block_table[first // BLOCK_TOKENS : blocks_for(first + count + drafts)])

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share what is computed of the parent, as far as their tokens agree, its last one excepted."""
        assert not child.block_table
        same = parent.num_computed_tokens
        if child.tokens[:same] != parent.tokens[:same]:
            same = common_prefix(child.tokens, parent.tokens[:same])
        child.num_computed_tokens = min(same, len(child.tokens) - 1)
        if self.slots is not None:
            child.num_computed_tokens = self.slots.good(parent.block_table, child.num_computed_tokens)
            same = min(same, child.num_computed_tokens + 1)
        child.block_table = parent.block_table[: blocks_for(same)]
        for block in child.block_table:
            self._hold(block)
        self._slide(child)

    def publish(self, seq: Sequence, tokens: int) -> None:
        """Take the first `tokens` tokens of `seq` as computed, and let others share the full blocks among them.

        A block whose twin is in the tree already makes way for it. Costs a look where no block was completed.
        """
        seq.num_computed_tokens = tokens
        self._slide(seq)
        full = seq.num_computed_tokens // BLOCK_TOKENS
        first = full
        while first and self._nodes[seq.block_table[first - 1]] is None:
            first -= 1
        if first == full:
            return
        above = self._nodes[seq.block_table[first - 1]] if first else self._tree.root(seq.request.salt)
        for i in range(first, full):
            assert above is not None
            above = self._enter(seq, i, above)
        if first < len(seq.request.prompt) // BLOCK_TOKENS <= full:
            self._keep(seq, full)

    def release(self, seq: Sequence) -> None:
        """Let go of all blocks; what was published of them stays while there is room."""
        if self.slots is not None:
            for block in reversed(seq.block_table[slice(*seq.looks)]):
                self.slots.unlook(block)
            self.slots.unreserve(seq.slots)
            seq.slots, seq.looks = 0, (0, 0)
        for block in reversed(seq.block_table):
            self._drop(block)
        seq.block_table, seq.num_computed_tokens = [], 0

    def retire(self, seq: Sequence) -> None:
        """Let go of the blocks of a sequence that ended; also its last one stays, as far as it goes."""
        if seq.block_table:
            self.publish(seq, seq.num_computed_tokens)
            self._keep(seq, seq.num_computed_tokens // BLOCK_TOKENS)
            self._enter_rest(seq)
        self.release(seq)

    def take_copies(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the copies due before anything is computed: from block to block, and from slot to slot, in order."""
        copies, self._copies, self._slot_copies = (self._copies, self._slot_copies), [], []
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
            self._set_free(block)
        else:
            self._cached[block] = None

    def _set_free(self, block: int) -> None:
        self._free.append(block)
        if self.slots is not None:
            self.slots.forget(block)

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
            self._set_free(block)

    def _copy_of(self, source: int) -> int:
        """Take a block that will hold what `source` does; that may be the very one, if it was the last to be had."""
        if source in self._cached:
            self._cached.move_to_end(source)
        slot = -1
        if self.slots is not None:
            self.slots.touch(source)
            slot = self.slots.of(source)
        block = self._take()
        if block != source:
            self._copies.append((source, block))
        if self.slots is not None and slot >= 0:
            self.slots.fill([block])  # perhaps with the source's own, if that was the last to be had
            if self.slots.of(block) != slot:
                self._slot_copies.append((slot, self.slots.of(block)))
        return block

    # --- what window layers look at ----------------------------------------------------------------

    def _slide(self, seq: Sequence) -> None:
        """Let a sequence look at the blocks from its window's first on, and no longer at those before."""
        if self.slots is None:
            return
        low, high = seq.looks
        first, end = self.slots.first(seq.num_computed_tokens), len(seq.block_table)
        if (first, end) != (low, high):
            for block in seq.block_table[max(first, high) : end]:
                self.slots.look(block)
            for block in seq.block_table[low : min(first, high)]:
                self.slots.unlook(block)
            seq.looks = first, end

    def _replace(self, seq: Sequence, i: int, block: int) -> None:
        """Let a block that holds the same take another's place in a sequence that holds both."""
        old, seq.block_table[i] = seq.block_table[i], block
        if self.slots is not None:
            if seq.looks[0] <= i < seq.looks[1]:
                self.slots.look(block)
                self.slots.unlook(old)
            self.slots.hand(old, block)
        self._drop(old)

    def _has_slot(self, block: int) -> bool:
        return self.slots is None or self.slots.of(block) >= 0

    def _good(self, path: list[Node]) -> tuple[list[Node], bool]:
        """Return the part of a path that may be taken over, and whether that is all of it."""
        if self.slots is None:
            return path, True
        tokens = self.slots.good([node.block for node in path], len(path) * BLOCK_TOKENS)
        return path[: tokens // BLOCK_TOKENS], tokens == len(path) * BLOCK_TOKENS

    # --- writing -----------------------------------------------------------------------------------

    def _is_private(self, seq: Sequence) -> bool:
        """Tell whether the block that is written next is nobody else's; blocks after it always are."""
        at = min(seq.num_computed_tokens, len(seq.tokens) - 1) // BLOCK_TOKENS
        if at >= len(seq.block_table):
            return True
        return self._holders[seq.block_table[at]] == 1 and self._nodes[seq.block_table[at]] is None

    def _make_private(self, seq: Sequence) -> None:
        if self._is_private(seq):
            return
        at = min(seq.num_computed_tokens, len(seq.tokens) - 1) // BLOCK_TOKENS
        block = seq.block_table[at]
        node = self._nodes[block]
        if self._holders[block] == 1 and node is not None and not node.children:
            self._forget(block)
        else:
            self._replace(seq, at, self._copy_of(block))

    # --- the tree ----------------------------------------------------------------------------------

    def _nearest(self, seq: Sequence, path: list[Node], limit: int) -> tuple[Node | None, int]:
        at = len(path) * BLOCK_TOKENS
        return self._tree.nearest(seq.request.salt, path, seq.tokens[at : min(at + BLOCK_TOKENS, limit)])

    def _enter(self, seq: Sequence, i: int, above: Node) -> Node:
        """Put a full block of `seq` under a node, or take the one that is there already."""
        block = seq.block_table[i]
        key = key_of(seq.tokens[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS])
        twin = above.children.get(key)
        if twin is not None:
            self._hold(twin.block)
            self._replace(seq, i, twin.block)
            return twin
        return self._insert(above, key, block)

    def _enter_rest(self, seq: Sequence) -> None:
        """Put the part of a block that a sequence ends with into the tree, unless that holds it already."""
        full, rest = divmod(seq.num_computed_tokens, BLOCK_TOKENS)
        if not rest or self._nodes[seq.block_table[full]] is not None:
            return
        above = self._nodes[seq.block_table[full - 1]] if full else self._tree.root(seq.request.salt)
        assert above is not None
        key = key_of(seq.tokens[full * BLOCK_TOKENS : seq.num_computed_tokens])
        if not self._tree.covers(above, key):
            self._insert(above, key, seq.block_table[full])

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
        keys = (key_of(seq.tokens[at : at + BLOCK_TOKENS]) for at in starts)  # as many as the disk has blocks
        for content in self._disk.read(seq.request.salt, keys, len(path)):
            above = path[-1] if path else self._tree.root(seq.request.salt)
            at = len(path) * BLOCK_TOKENS
            key = key_of(seq.tokens[at : at + BLOCK_TOKENS])
            node = above.children.get(key)  # one that lost its slot, and gets it back
            if node is None and not self.available:
                return True
            self._disk.pool.copy(*self.take_copies())  # before what they are copies of is written over
            if node is None:
                seq.block_table.append(self._take())
                node = self._insert(above, key, seq.block_table[-1])
            else:
                self._hold(node.block)
                seq.block_table.append(node.block)
            self._fill(seq, node, content)
            path.append(node)
            self.disk_tokens += BLOCK_TOKENS
            if monotonic() > until:
                return len(path) == whole
        return True

    def _fill(self, seq: Sequence, node: Node, content: NDArray[np.uint8]) -> None:
        """Write what the disk had into the last block of a sequence."""
        assert self._disk is not None
        slot = -1
        if self.slots is not None:
            seq.num_computed_tokens = (len(seq.block_table) - 1) * BLOCK_TOKENS
            self._slide(seq)
            self.slots.fill([node.block])
            slot = self.slots.of(node.block)
        self._disk.pool.write_block(node.block, content, slot)
        node.kept = True

    def _content(self, node: Node) -> NDArray[np.uint8] | None:
        """Return the bytes of a node's block, from another thread; None if it lost them, perhaps meanwhile."""
        disk, slot = self._disk, self.slots.of(node.block) if self.slots is not None else -1
        if disk is None or not self._has_slot(node.block):
            return None
        content = disk.pool.read_block(node.block, slot)
        same = self.slots is None or self.slots.of(node.block) == slot
        return content if same and self._nodes[node.block] is node else None

    def _keep(self, seq: Sequence, full: int) -> None:
        """Have the first `full` blocks of `seq` written unless they are on disk, or too few to matter."""
        if self._disk is None or full < KEPT_BLOCKS:
            return
        nodes = [node for block in seq.block_table[:full] if (node := self._nodes[block]) is not None]
        first = full
        while first and not nodes[first - 1].kept:
            first -= 1
        if first < full:
            self._disk.keep(seq.request.salt, nodes, first, self._content)


def common_prefix(a: Ordered[int], b: Ordered[int]) -> int:
    """Return how many leading items two lists share."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same
