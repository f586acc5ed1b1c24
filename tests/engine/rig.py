"""A pool of blocks with a tiny model behind it, stepped by hand, and the books that must always balance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.engine.cache.blocks import BlockManager, blocks_for
from freehold.engine.cache.disk import DiskCache, dependencies
from freehold.engine.cache.prefix import Node
from freehold.engine.cache.windows import Slots
from freehold.engine.runner import ModelRunner
from freehold.engine.schedule.scheduler import ScheduledChunk
from freehold.engine.sequence import Request, Sequence
from freehold.layers import longest_window
from freehold.models.load import LoadedModel
from freehold.types import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def sequence(tokens: list[int], tenant: str = "") -> Sequence:
    return Sequence(Request(tuple(tokens), GREEDY, 0, 10, tenant=tenant), list(tokens))


class Rig:
    """Steps sequences as the engine does, and gives the logits after each one's newest computed token."""

    def __init__(
        self,
        model: LoadedModel,
        count: int,
        disk: Path | None = None,
        slots: int = 0,
        max_num_batched_tokens: int = 512,
    ) -> None:
        window = longest_window(model.layers)
        self.blocks = BlockManager(
            count, Slots(slots, count, window, max_num_batched_tokens) if slots else None
        )
        self.runner = ModelRunner(model, self.blocks, 512, model.threads)
        self.disk = None
        if disk is not None:
            self.disk = DiskCache(disk, dependencies(model, "f16", bool(slots)), self.runner.cache)
            self.blocks.attach(self.disk)

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

    def run(self, batch: list[ScheduledChunk]) -> list[np.ndarray]:
        """Compute rows that have blocks."""
        for work in batch:
            self.blocks.prepare(work.seq, work.first, work.count, len(work.draft))
        rows = self.runner.run(batch, choose=False)
        for work in batch:
            self.blocks.publish(work.seq, work.first + work.count)
        return rows

    def alone(self, tokens: list[int]) -> np.ndarray:
        """Compute tokens from nothing, and leave nothing behind."""
        seq = sequence(tokens)
        assert self.blocks.grow(seq, len(tokens))
        row = self.runner.run([ScheduledChunk(seq, 0, len(tokens))], choose=False)[0][-1]
        self.blocks.release(seq)
        return row


def check_books(blocks: BlockManager, live: list[Sequence]) -> None:
    """Every block is free, cached or live; holders are counted right; the tree and the pool agree."""
    holders = [0] * blocks.count
    for seq in live:
        assert len(set(seq.block_table)) == len(seq.block_table) >= blocks_for(seq.num_computed_tokens)
        for block in seq.block_table:
            holders[block] += 1
    assert holders == blocks._holders
    free, cached = set(blocks._free), set(blocks._cached)
    assert len(free) == len(blocks._free) and not free & cached
    assert free | cached == {b for b, n in enumerate(holders) if not n}
    assert (blocks.live, blocks.cached) == (sum(map(bool, holders)), len(cached))
    nodes = {node.block: node for root in blocks._tree._roots.values() for node in below(root)}
    assert len(nodes) == blocks._tree.nodes
    assert nodes == {b: node for b, node in enumerate(blocks._nodes) if node is not None}
    assert not free & nodes.keys() and cached <= nodes.keys()
    assert all(root.children for root in blocks._tree._roots.values())
    order = {block: i for i, block in enumerate(blocks._cached)}
    for block in cached:  # a leaf is always first in line
        assert all(order[child.block] < order[block] for child in nodes[block].children.values())

    if blocks.slots is not None:
        check_slots(blocks.slots, live)


def check_slots(slots: Slots, live: list[Sequence]) -> None:
    """Every slot is free or some block's; who looks is counted right, and finds what it looks at."""
    lookers = [0] * len(slots._lookers)
    for seq in live:
        assert seq.looks == (
            (slots.first(seq.num_computed_tokens), len(seq.block_table)) if seq.block_table else (0, 0)
        )
        for block in seq.block_table[slice(*seq.looks)]:
            lookers[block] += 1
        assert all(
            slots.of(b) >= 0
            for b in seq.block_table[
                slots.first(seq.num_computed_tokens) : blocks_for(seq.num_computed_tokens)
            ]
        )
    assert lookers == slots._lookers
    held = {block: slots.of(block) for block in range(len(lookers)) if slots.of(block) >= 0}
    assert sorted([*slots._free, *held.values()]) == list(range(slots.count))
    assert set(slots._idle) == {block for block in held if not lookers[block]}
    assert slots._reserved == sum(seq.slots for seq in live) <= slots.count


def below(node: Node) -> list[Node]:
    """List the nodes under one, and check how they hang."""
    assert node.keys == sorted(node.children)
    out = []
    for key, child in node.children.items():
        assert child.parent is node and child.key == key and 0 < len(key) <= 4 * SIZE
        assert not child.children or len(key) == 4 * SIZE
        out += [child, *below(child)]
    return out
