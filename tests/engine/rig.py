"""A pool of blocks with a tiny model behind it, stepped by hand, and the books that must always balance."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.base.types import SamplingParams
from freehold.run.engine.cache.blocks import BlockManager, blocks_for
from freehold.run.engine.cache.capacity import kinds_beside_full
from freehold.run.engine.cache.disk import DiskCache, KvPages, dependencies
from freehold.run.engine.cache.pool import BlockPool, Node
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.cache.window import SlidingWindow
from freehold.run.engine.runner import ModelRunner
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence
from freehold.run.models.load import LoadedModel

GREEDY = SamplingParams(temperature=0.0)


def sequence(tokens: list[int], tenant: str = "") -> Sequence:
    request = Request(tuple(tokens), GREEDY, 0, 10, stop_ids=frozenset([7]), tenant=tenant)
    return Sequence(request, list(tokens))


class Runner(Protocol):
    """What computes a step: ModelRunner, or a script."""

    def run(self, batch: list[ScheduledChunk], choose: bool = True) -> Ordered[np.ndarray]: ...


R = TypeVar("R", bound=Runner)


class Stepper(Generic[R]):
    """Steps sequences as the engine does, and gives the logits after each one's newest computed token."""

    blocks: BlockManager
    runner: R
    disk: DiskCache | None

    def step(self, *seqs: Sequence) -> list[np.ndarray]:
        """Compute all missing tokens of sequences that must find room."""
        for seq in seqs:
            assert self.blocks.reserve(seq)
            if not seq.block_table:
                self.blocks.adopt(seq)
            assert self.blocks.grow(seq, len(seq.tokens))
        rows = self.run(
            [
                ScheduledChunk(seq, seq.num_computed_tokens, len(seq.tokens) - seq.num_computed_tokens)
                for seq in seqs
            ]
        )
        return [row[-1] for row in rows]

    def run(self, batch: list[ScheduledChunk]) -> Ordered[np.ndarray]:
        """Compute rows that have blocks."""
        for chunk in batch:
            self.blocks.prepare(chunk.seq, chunk.first, chunk.count, len(chunk.draft))
        rows = self.runner.run(batch, choose=False)
        for chunk in batch:
            self.blocks.publish(chunk.seq, chunk.first + chunk.count)
        return rows


class Rig(Stepper[ModelRunner]):
    """Steps a tiny model."""

    def __init__(
        self,
        model: LoadedModel,
        count: int,
        disk: Path | None = None,
        window_blocks: int = 0,
        max_num_batched_tokens: int = 512,
    ) -> None:
        kinds = kinds_beside_full(model.layers, {"window": window_blocks}, count, max_num_batched_tokens)
        self.blocks = BlockManager(count, kinds)
        self.runner = ModelRunner(model, self.blocks, 512, model.threads)
        self.disk = None
        if disk is not None:
            self.pages = KvPages(self.runner.cache)
            self.disk = DiskCache(disk, dependencies(model, "f16", window_blocks > 0), self.pages.nbytes)
            self.blocks.attach(self.disk, self.pages)

    def alone(self, tokens: list[int]) -> np.ndarray:
        """Compute tokens from nothing, and leave nothing behind."""
        seq = sequence(tokens)
        assert self.blocks.grow(seq, len(tokens))
        row = self.runner.run([ScheduledChunk(seq, 0, len(tokens))], choose=False)[0][-1]
        self.blocks.release(seq)
        return row


def check_books(blocks: BlockManager, live: list[Sequence]) -> None:
    """Every block is free, cached or live; holders are counted right; the tree and the pool agree."""
    pool, holders = blocks.pool, [0] * blocks.count
    for seq in live:
        assert len(set(seq.block_table)) == len(seq.block_table) >= blocks_for(seq.num_computed_tokens)
        for block in seq.block_table:
            holders[block] += 1
    assert holders == pool.holders
    free, cached = set(pool._free), set(pool._cached)
    assert len(free) == len(pool._free) and not free & cached
    assert free | cached == {b for b, n in enumerate(holders) if not n}
    assert (blocks.live, blocks.cached) == (sum(map(bool, holders)), len(cached))
    nodes = {node.block: node for root in pool.tree._roots.values() for node in below(root)}
    assert len(nodes) == pool.tree.nodes
    assert nodes == {b: node for b, node in enumerate(pool.nodes) if node is not None}
    assert not free & nodes.keys() and cached <= nodes.keys()
    assert all(root.children for root in pool.tree._roots.values())
    order = {block: i for i, block in enumerate(pool._cached)}
    for block in cached:  # a leaf is always first in line
        assert all(order[child.block] < order[block] for child in nodes[block].children.values())
    for kind in blocks.kinds:
        if isinstance(kind, SlidingWindow):
            check_windows(kind, live)
        if isinstance(kind, Recurrent):
            check_states(kind, live, pool)


def check_windows(kind: SlidingWindow, live: list[Sequence]) -> None:
    """Every window block is free or some block's; what windows reach is counted right, and is there."""
    reached = [0] * len(kind._reached)
    assert all(seq in kind._seqs for seq in live if seq.block_table)
    for seq, reach in kind._seqs.items():
        first = kind.first(seq.num_computed_tokens)
        assert (reach.first, reach.end) == ((first, len(seq.block_table)) if seq.block_table else (0, 0))
        for block in seq.block_table[first:]:
            reached[block] += 1
        assert all(kind.place(b) >= 0 for b in seq.block_table[first : blocks_for(seq.num_computed_tokens)])
    assert reached == kind._reached
    held = {block: kind.place(block) for block in range(len(reached)) if kind.place(block) >= 0}
    assert sorted([*kind._free, *held.values()]) == list(range(kind.count))
    assert set(kind._idle) == {block for block in held if not reached[block]}
    assert kind._reserved == sum(reach.reserved for reach in kind._seqs.values()) <= kind.count


def check_states(kind: Recurrent, live: list[Sequence], pool: BlockPool) -> None:
    """Every slot is free, an idle snapshot or in use; users are counted right; no sequence can run out of slots."""
    users = [0] * kind.count
    assert all(seq in kind._seqs for seq in live if seq.block_table)
    for seq, state in kind._seqs.items():
        assert not state.writes and not state.taken and state.end < 0
        assert state.tokens == seq.num_computed_tokens and (state.slot >= 0) == (state.tokens > 0)
        for slot in state.slots():
            users[slot] += 1
    assert users == kind._users
    kept = {slot: block for block, (slot, _) in kind._kept.items()}
    assert len(kept) == len(kind._kept)
    assert kept == {slot: block for slot, block in enumerate(kind._block) if block >= 0}
    assert set(kind._idle) == {slot for slot in kept if not users[slot]}
    in_use = [slot for slot, n in enumerate(users) if n]
    assert sorted([*kind._free, *kind._idle, *in_use]) == list(range(kind.count))
    for block, (_, tokens) in kind._kept.items():
        node = pool.nodes[block]
        assert node is not None and len(node.key) == 4 * tokens
    without = sum(state.slot < 0 or users[state.slot] > 1 for state in kind._seqs.values())
    assert len(kind._free) + len(kind._idle) >= without


def below(node: Node) -> list[Node]:
    """List the nodes under one, and check how they hang."""
    assert node.keys == sorted(node.children)
    out = []
    for key, child in node.children.items():
        assert child.parent is node and child.key == key and 0 < len(key) <= 4 * SIZE
        assert not child.children or len(key) == 4 * SIZE
        out += [child, *below(child)]
    return out
