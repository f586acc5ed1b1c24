"""Window layers keep what may still be looked at, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.engine import Engine
from freehold.engine.cache.capacity import CacheBytes
from freehold.engine.cache.windows import Slots, quota
from freehold.models.load import LoadedModel
from freehold.types import SamplingParams
from tests.engine.rig import Rig, sequence

GREEDY = SamplingParams(temperature=0.0)


def test_long_sequence_looks_at_its_window_alone(sliding: LoadedModel):
    rig = Rig(sliding, 16, slots=quota(8, 64), max_num_batched_tokens=64)
    seq = sequence([5 + i % 90 for i in range(300)])
    for end in range(60, 301, 60):
        rig_tokens, seq.tokens = seq.tokens, seq.tokens[:end]
        rig.step(seq)
        seq.tokens = rig_tokens
        assert rig.blocks.slots is not None
        assert sum(rig.blocks.slots._lookers) <= quota(8, 0)


def test_slots_left_idle_still_give_a_hit_until_another_needs_them(sliding: LoadedModel):
    slots = quota(8, 64)
    rig = Rig(sliding, 16, slots=slots, max_num_batched_tokens=64)
    first, other = [5 + i % 90 for i in range(64)], [100 + i % 50 for i in range(64)]
    for tokens in (first, other):
        seq = sequence(tokens)
        rig.step(seq)
        rig.blocks.retire(seq)
    known = sequence([*first, 9])
    assert rig.blocks.match(known) == 64  # both fit
    for i in range(4):
        seq = sequence([150 + i] * 64)
        rig.step(seq)
        rig.blocks.retire(seq)
    assert rig.blocks.match(known) == 0  # its blocks are there, but not what window layers need of them
    assert np.array_equal(rig.step(known)[0], Rig(sliding, 16).alone(known.tokens))


def test_block_computed_again_gets_its_slot_back(sliding: LoadedModel):
    rig = Rig(sliding, 16, slots=quota(8, 64), max_num_batched_tokens=64)
    tokens = [5 + i % 90 for i in range(64)]
    for each in (tokens, [150] * 64, [151] * 64, [152] * 64, [153] * 64, tokens):
        seq = sequence(each)
        rig.step(seq)
        rig.blocks.retire(seq)
    assert rig.blocks.match(sequence([*tokens, 9])) == 64


def test_sequence_reserves_no_more_than_a_window_and_a_step():
    slots = Slots(10, 100, 512, 64)
    assert slots.most == quota(512, 64) == 20
    assert slots.missing(3) == 0 and slots.reserve(3) == 4
    assert slots.missing(50) == 14 and slots.reserve(50) == 0
    slots.unreserve(4)
    assert slots.reserve(9) == 10


@pytest.mark.parametrize("count", [1, 3, 8])
def test_good_part_of_a_prefix_ends_where_every_window_block_is_there(count: int):
    slots = Slots(
        16, 16, window=33, max_num_batched_tokens=32
    )  # a window reaches into the block before the last
    slots.fill(b for b in range(8) if b != count - 1)
    tokens = slots.good(list(range(8)), 8 * SIZE)
    assert tokens == (8 * SIZE if count - 1 < slots.first(8 * SIZE) else (count - 1) * SIZE)


def test_cache_of_a_windowed_model_takes_less_and_answers_the_same(sliding: LoadedModel):
    prompt = [5 + i % 90 for i in range(150)]
    wide = Engine(sliding, context=256, max_num_batched_tokens=16, speculate=False)
    tight = Engine(sliding, context=256, blocks=40, max_num_batched_tokens=16, speculate=False)
    bytes_ = CacheBytes.of(sliding, "f16", 16)
    assert bytes_.slots(40) == 10 and tight.cache_bytes == bytes_.total(40) < 40 * (
        bytes_.block + bytes_.slot
    )
    alone = [out.id for out in wide.generate(prompt, GREEDY, max_tokens=60)]
    for _ in range(2):  # the second time from the cache
        assert [out.id for out in tight.generate(prompt, GREEDY, max_tokens=60)] == alone
    assert tight.stats().cached_tokens > 0


def test_most_blocks_that_fit_are_found():
    bytes_ = CacheBytes(block=10, slot=100, least=6)
    for room in (0, 109, 110, 660, 670, 5000):
        blocks = bytes_.blocks(room)
        assert bytes_.total(blocks) <= room < bytes_.total(blocks + 1)
