"""The blocks of sequences: taken over from others, written by one sequence only, and published when computed.

Knows sequences, blocks and the tree of their tokens; knows no pages, and what layers keep only through the contract
of a kind. Full blocks enter the tree as soon as they are computed, so sequences with a common prefix share them while
they run; a block that others may see is not written, but a copy of it. Taking a block over equals computing it again
bit for bit, since a position's keys depend on the tokens up to it alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Ordered

from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache import I32, CacheKind, Copies, FullAttention
from freehold.run.engine.cache.disk import LOAD_S, DiskCache, DiskTier, Memory
from freehold.run.engine.cache.pool import BlockPool, Node, key_of
from freehold.run.engine.sequence import Sequence


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold `tokens` positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockManager:
    """`count` blocks for full attention, and `kinds` for what the other layers keep."""

    def __init__(self, count: int, kinds: Ordered[CacheKind] = ()) -> None:
        self.kinds: tuple[CacheKind, ...] = (FullAttention(count), *kinds)
        self.pool = BlockPool(count, self.kinds)
        self._following = tuple(kind for kind in self.kinds if kind.follows)
        self._tier: DiskTier | None = None

    def attach(self, disk: DiskCache, pages: Memory, states: Ordered[Memory] = ()) -> None:
        """Keep prompts on a disk too; `pages` is the memory of the paged kinds, `states` that of a kind of states."""
        self._tier = DiskTier(self.pool, self.kinds, disk, (pages, *states))

    def close(self) -> None:
        """Wait for disk writes to finish, then release their memory."""
        if self._tier is not None:
            self._tier.close()

    @property
    def count(self) -> int:
        """Blocks of the pool."""
        return self.pool.count

    @property
    def places(self) -> dict[str, int]:
        """Places in each kind's memory, by its name."""
        return {kind.name: kind.count for kind in self.kinds}

    @property
    def available(self) -> int:
        """Blocks that no live sequence holds."""
        return self.pool.available

    @property
    def live(self) -> int:
        """Blocks that live sequences hold, each counted once."""
        return self.pool.count - self.pool.available

    @property
    def cached(self) -> int:
        """Blocks that no sequence holds and a later prompt may begin with."""
        return self.pool.cached

    @property
    def disk_tokens(self) -> int:
        """Tokens whose blocks were read from disk so far."""
        return self._tier.tokens if self._tier is not None else 0

    @property
    def stats(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        counts = {"blocks": self.count, "blocks_live": self.live, "blocks_cached": self.cached}
        counts["blocks_shared"] = self.pool.shared
        for kind in self.kinds:
            if not kind.paged:
                counts |= {"states": kind.count, "states_live": kind.live, "states_cached": kind.cached}
        return counts | {"disk_tokens": self.disk_tokens}

    # --- admission ---------------------------------------------------------------------------------

    def match(self, seq: Sequence) -> int:
        """Return how many tokens `adopt` would find in memory now."""
        path = self.pool.tree.walk(seq.request.salt, seq.tokens, len(seq.tokens) - 1)
        return self._usable(*self._longest(seq, path))

    def reserve(self, seq: Sequence) -> bool:
        """Set aside what kinds need of a sequence until it is released; False if too little is left."""
        blocks = blocks_for(len(seq.tokens) + seq.left)
        return all(kind.reserve(seq, blocks) for kind in self._following)

    def reservable(self, seq: Sequence, released: Ordered[Sequence]) -> bool:
        """Tell whether `reserve` would succeed once other sequences were released."""
        blocks = blocks_for(len(seq.tokens) + seq.left)
        return all(kind.reservable(seq, blocks, released) for kind in self._following)

    def adopt(self, seq: Sequence, hurry: bool = False) -> bool:
        """Let a sequence of which nothing was computed share what is known of its tokens, its last one excepted.

        The last token is computed anew, as its logits are wanted. Of a block that agrees in part it gets a copy.
        False, only with `hurry`: the disk has more than is read while others wait; call it again in the next step.
        """
        limit = len(seq.tokens) - 1
        path = self.pool.tree.walk(seq.request.salt, seq.tokens, limit)
        seconds = LOAD_S if hurry else math.inf
        whole = min(limit, seq.request.portable) // BLOCK_TOKENS
        if self._tier is not None and not self._tier.load(seq, path, whole, seconds):
            return False
        blocks, tokens = self._longest(seq, path)
        self._take_over(seq, blocks, self._usable(blocks, tokens))
        if not seq.generated:
            seq.num_cached_tokens = seq.num_computed_tokens
        return True

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share what is computed of the parent, as far as their tokens agree, its last one excepted."""
        assert not child.block_table
        same = parent.num_computed_tokens
        if child.tokens[:same] != parent.tokens[:same]:
            same = common_prefix(child.tokens, parent.tokens[:same])
        tokens = self._usable(parent.block_table, min(same, len(child.tokens) - 1), parent)
        child.num_computed_tokens = tokens
        child.block_table = parent.block_table[: blocks_for(tokens)]
        for block in child.block_table:
            self.pool.hold(block)
        self._begin(child, parent.block_table, parent)

    def release(self, seq: Sequence) -> None:
        """Let go of all blocks; what was published of them stays while there is room."""
        for kind in self._following:
            kind.release(seq)
        for block in reversed(seq.block_table):
            self.pool.drop(block)
        seq.block_table, seq.num_computed_tokens = [], 0

    def retire(self, seq: Sequence) -> None:
        """Let go of the blocks of a sequence that ended; also its last one stays, as far as it goes."""
        if seq.block_table:
            self.publish(seq, seq.num_computed_tokens)
            self._enter_last(seq)
            self._keep(seq)
        self.release(seq)

    # --- a step ------------------------------------------------------------------------------------

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give `seq` blocks for its first `tokens` positions; False, and none given, if too few are left.

        Positions from its last computed one on are its own to write then, with a copy of a block that is shared.
        """
        need = self.missing(seq, tokens)
        if need == 0:
            return True
        if need > self.pool.available:
            return False
        self._make_private(seq)
        seq.block_table += [self.pool.take() for _ in range(blocks_for(tokens) - len(seq.block_table))]
        self._follow(seq)
        return True

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Return how many blocks `grow` would take: new ones, and one for the copy of a block that is shared."""
        return max(blocks_for(tokens) - len(seq.block_table), 0) + (not self._is_private(seq))

    def stretch(self, seq: Sequence, tokens: int) -> int:
        """Give `seq` blocks for draft tokens up to position `tokens`; return how many positions have room now."""
        if not all(kind.stretch(seq) for kind in self._following):
            return len(seq.tokens)
        while len(seq.block_table) < blocks_for(tokens) and self.pool.available:
            seq.block_table.append(self.pool.take())
        self._follow(seq)
        return min(tokens, len(seq.block_table) * BLOCK_TOKENS)

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int = 0) -> None:
        """Provide what a step writes for `count` positions from `first` on, and for draft tokens after them."""
        for kind in self._following:
            kind.prepare(seq, first, count, drafts)

    def take_copies(self) -> dict[str, Copies]:
        """Return the copies due before anything is computed, by kind: from place to place, in order."""
        return {kind.name: kind.take_copies() for kind in self.kinds if kind.paged}

    def tables(self, seqs: Ordered[Sequence], block_tables: I32) -> dict[str, I32]:
        """Return each kind's table for a step of these sequences."""
        return {kind.name: kind.table(seqs, block_tables) for kind in self.kinds}

    def publish(self, seq: Sequence, tokens: int, drafts: int = 0) -> None:
        """Take the first `tokens` tokens of `seq` as computed, and let others share the full blocks among them.

        A block whose twin is in the tree already is replaced by it. Costs a look where no block was completed. Of a
        step with `drafts`, blocks that only rejected ones needed are dropped: others may miss them.
        """
        good = tokens
        for kind in self._following:
            kept = kind.commit(seq, tokens)
            good = kept if kept < good else good
        seq.num_computed_tokens = good
        if good < tokens:
            self._go_back(seq, good, tokens)
        if drafts:
            self._hold(seq, seq.block_table, blocks_for(len(seq.tokens)))
        full, nodes, table = seq.num_computed_tokens // BLOCK_TOKENS, self.pool.nodes, seq.block_table
        first = full
        while first and nodes[table[first - 1]] is None:
            first -= 1
        if first == full:
            return
        above = nodes[table[first - 1]] if first else self.pool.tree.root(seq.request.salt)
        for i in range(first, full):
            assert above is not None
            above = self._enter(seq, i, above)
        if first < len(seq.request.prompt) // BLOCK_TOKENS <= full:
            self._keep(seq)

    # --- hits --------------------------------------------------------------------------------------

    def _longest(self, seq: Sequence, path: list[Node]) -> tuple[list[int], int]:
        """Return the blocks that agree longest with a sequence, the last perhaps in part, and the tokens that agree."""
        at, limit = len(path) * BLOCK_TOKENS, len(seq.tokens) - 1
        wanted = seq.tokens[at : min(at + BLOCK_TOKENS, limit)]
        source, same = self.pool.tree.nearest(seq.request.salt, path, wanted)
        return [node.block for node in (*path, source) if node is not None], at + same

    def _usable(self, blocks: Ordered[int], tokens: int, parent: Sequence | None = None) -> int:
        """Return how many of the tokens in `blocks` every kind can reuse."""
        while True:
            least = min(kind.usable(blocks, tokens, parent) for kind in self.kinds)
            if least == tokens:
                return tokens
            tokens = least

    def _take_over(self, seq: Sequence, blocks: list[int], tokens: int) -> None:
        """Let a sequence hold the blocks of `tokens` tokens, and a copy of the last one if it ends within that."""
        self._hold(seq, blocks, tokens // BLOCK_TOKENS)
        if tokens % BLOCK_TOKENS and not self.pool.available:
            tokens = self._usable(blocks, tokens // BLOCK_TOKENS * BLOCK_TOKENS)
            self._hold(seq, blocks, tokens // BLOCK_TOKENS)
        seq.num_computed_tokens = tokens
        self._begin(seq, blocks)
        if tokens % BLOCK_TOKENS:
            seq.block_table.append(self.pool.copy_of(blocks[tokens // BLOCK_TOKENS]))
            self._follow(seq)

    def _hold(self, seq: Sequence, blocks: list[int], count: int) -> None:
        """Let a sequence hold the first `count` of `blocks`, with which its table begins or ends early."""
        table = seq.block_table
        if len(table) > count:
            for kind in self._following:
                kind.shrink(seq, count)
            for block in reversed(table[count:]):
                self.pool.drop(block)
            del table[count:]
        for block in blocks[len(table) : count]:
            self.pool.hold(block)
            table.append(block)

    def _go_back(self, seq: Sequence, good: int, tokens: int) -> None:
        """Drop blocks after the first `good` tokens; below 0, begin again with what blocks up to `tokens` allow.

        One block stays in any case: a sequence without one has not begun.
        """
        again = good < 0
        seq.num_computed_tokens = self._usable(seq.block_table, tokens) if again else good
        self._hold(seq, seq.block_table, max(blocks_for(seq.num_computed_tokens), 1))
        if again:
            self._begin(seq, seq.block_table)
        else:
            self._follow(seq)

    def _begin(self, seq: Sequence, blocks: Ordered[int], parent: Sequence | None = None) -> None:
        for kind in self._following:
            kind.begin(seq, blocks, parent)
            kind.follow(seq)

    def _follow(self, seq: Sequence) -> None:
        for kind in self._following:
            kind.follow(seq)

    # --- writing -----------------------------------------------------------------------------------

    def _is_private(self, seq: Sequence) -> bool:
        """Tell whether no other sequence can see the block that is written next; blocks after it are private."""
        at = min(seq.num_computed_tokens, len(seq.tokens) - 1) // BLOCK_TOKENS
        if at >= len(seq.block_table):
            return True
        block = seq.block_table[at]
        return self.pool.holders[block] == 1 and self.pool.nodes[block] is None

    def _make_private(self, seq: Sequence) -> None:
        if self._is_private(seq):
            return
        at = min(seq.num_computed_tokens, len(seq.tokens) - 1) // BLOCK_TOKENS
        block = seq.block_table[at]
        node = self.pool.nodes[block]
        if self.pool.holders[block] == 1 and node is not None and not node.children:
            self.pool.forget(block)
        else:
            self._replace(seq, at, self.pool.copy_of(block))

    def _replace(self, seq: Sequence, i: int, block: int) -> None:
        """Put a block that holds the same into a table, in place of another, both of which the sequence holds."""
        old, seq.block_table[i] = seq.block_table[i], block
        for kind in self._following:
            kind.replace(seq, i, old)
        self.pool.drop(old)

    # --- the tree ----------------------------------------------------------------------------------

    def _enter(self, seq: Sequence, i: int, above: Node) -> Node:
        """Put a full block of `seq` under a node, or take the one that is there already."""
        key = key_of(seq.tokens[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS])
        node = above.children.get(key)
        if node is None:
            node = self.pool.insert(above, key, seq.block_table[i])
        else:
            self.pool.hold(node.block)
            self._replace(seq, i, node.block)
        for kind in self._following:
            kind.enter(seq, node.block, (i + 1) * BLOCK_TOKENS)
        return node

    def _enter_last(self, seq: Sequence) -> None:
        """Put the part of a block that a sequence ends with into the tree, unless that holds it already."""
        tokens, nodes = seq.num_computed_tokens, self.pool.nodes
        if not tokens:
            return
        last = (tokens - 1) // BLOCK_TOKENS
        block, start = seq.block_table[last], last * BLOCK_TOKENS
        if nodes[block] is None:
            above = nodes[seq.block_table[last - 1]] if last else self.pool.tree.root(seq.request.salt)
            assert above is not None
            key = key_of(seq.tokens[start:tokens])
            if self.pool.tree.covers(above, key):
                return
            self.pool.insert(above, key, block)
        for kind in self._following:
            kind.enter(seq, block, tokens, last=True)

    def _keep(self, seq: Sequence) -> None:
        if self._tier is not None:
            self._tier.keep(seq, min(seq.num_computed_tokens, seq.request.portable) // BLOCK_TOKENS)


def common_prefix(a: Ordered[int], b: Ordered[int]) -> int:
    """Return how many leading items two lists share."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same
