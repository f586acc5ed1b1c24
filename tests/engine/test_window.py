"""Window layers keep the positions that a window may still reach, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.cache.capacity import CacheBytes
from freehold.run.engine.cache.window import SlidingWindow, quota
from freehold.run.models.load import LoadedModel
from tests.engine.rig import Rig, sequence

GREEDY = SamplingParams(temperature=0.0)


def test_long_sequence_holds_its_window_alone(sliding: LoadedModel):
    rig = Rig(sliding, 16, window_blocks=quota(8, 64), max_num_batched_tokens=64)
    seq = sequence([5 + i % 90 for i in range(300)])
    for end in range(60, 301, 60):
        rig_tokens, seq.tokens = seq.tokens, seq.tokens[:end]
        rig.step(seq)
        seq.tokens = rig_tokens
        window = rig.blocks.kinds[1]
        assert isinstance(window, SlidingWindow) and sum(window._reached) <= quota(8, 0)


def test_idle_window_blocks_still_give_a_hit_until_another_needs_them(sliding: LoadedModel):
    rig = Rig(sliding, 16, window_blocks=quota(8, 64), max_num_batched_tokens=64)
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


def test_block_computed_again_gets_its_window_block_back(sliding: LoadedModel):
    rig = Rig(sliding, 16, window_blocks=quota(8, 64), max_num_batched_tokens=64)
    tokens = [5 + i % 90 for i in range(64)]
    for each in (tokens, [150] * 64, [151] * 64, [152] * 64, [153] * 64, tokens):
        seq = sequence(each)
        rig.step(seq)
        rig.blocks.retire(seq)
    assert rig.blocks.match(sequence([*tokens, 9])) == 64


def test_sequence_reserves_no_more_than_a_window_and_a_step():
    window = SlidingWindow(10, 100, 512, 64)
    first, second = sequence([1]), sequence([2])
    assert window.most == quota(512, 64) == 20
    assert window.reserve(first, 3) and window._reserved == 4
    assert not window.reserve(second, 50) and not window.reservable(second, 9, [])
    assert window.reservable(second, 9, [first])
    window.release(first)
    assert window.reserve(second, 9) and window._reserved == 10


@pytest.mark.parametrize("count", [1, 3, 8])
def test_good_part_of_a_prefix_ends_where_every_window_block_is_there(count: int):
    window = SlidingWindow(16, 16, 33, 32)  # it reaches into the block before the last
    for block in range(8):
        if block != count - 1:
            window.provide(block)
    tokens = window.usable(list(range(8)), 8 * SIZE)
    assert tokens == (8 * SIZE if count - 1 < window.first(8 * SIZE) else (count - 1) * SIZE)


def test_cache_of_a_windowed_model_takes_less_and_answers_the_same(sliding: LoadedModel):
    prompt = [5 + i % 90 for i in range(150)]
    wide = Engine(sliding, context=256, max_num_batched_tokens=16, speculate=False)
    tight = Engine(sliding, context=256, blocks=40, max_num_batched_tokens=16, speculate=False)
    bytes_ = CacheBytes.of(sliding, "f16", 16)
    assert bytes_.places(40) == {"window": 10} and tight.cache_bytes == bytes_.total(40) < 40 * (
        bytes_.block + bytes_.window_block
    )
    alone = [out.id for out in wide.generate(prompt, GREEDY, max_tokens=60)]
    for _ in range(2):  # the second time from the cache
        assert [out.id for out in tight.generate(prompt, GREEDY, max_tokens=60)] == alone
    assert tight.stats().cached_tokens > 0


def test_most_blocks_that_fit_are_found():
    bytes_ = CacheBytes(block=10, window_block=100, least=6)
    for room in (0, 109, 110, 660, 670, 5000):
        blocks = bytes_.blocks(room)
        assert bytes_.total(blocks) <= room < bytes_.total(blocks + 1)
