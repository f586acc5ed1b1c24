"""Blocks of the KV cache are copied, read and written whole, over all layers, and never beyond the cache."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

LAYERS = [(2, 16, 16), (1, 24, 8), (3, 5, 3)]
every_type = pytest.mark.parametrize("kv_type", ["f16", "f32", "q8"])


def filled(kv_type: str, blocks: int = 5) -> tuple[native.KvCache, list[np.ndarray]]:
    cache = native.KvCache(LAYERS, blocks, kv_type)
    rng = np.random.default_rng(1)
    contents = [rng.integers(0, 256, cache.bytes_per_block, dtype=np.uint8) for _ in range(blocks)]
    for i, content in enumerate(contents):
        cache.write_block(i, content)
    return cache, contents


@every_type
def test_block_reads_back_as_it_was_written(kv_type: str):
    cache, contents = filled(kv_type)
    for i, content in enumerate(contents):
        assert np.array_equal(cache.read_block(i), content)


@every_type
def test_copies_are_made_in_order(kv_type: str):
    cache, contents = filled(kv_type)
    cache.copy([(0, 1), (1, 2), (3, 0), (4, 4)])
    expected = [3, 0, 0, 3, 4]
    for i, source in enumerate(expected):
        assert np.array_equal(cache.read_block(i), contents[source])


@pytest.mark.parametrize("block", [-1, 5, 1 << 40])
def test_block_that_is_not_there_is_refused_and_nothing_is_copied(block: int):
    cache, contents = filled("f16")
    for call in (
        lambda: cache.read_block(block),
        lambda: cache.write_block(block, contents[0]),
        lambda: cache.copy([(0, 1), (block, 2)]),
        lambda: cache.copy([(0, 1), (2, block)]),
    ):
        with pytest.raises(UsageError, match=f"no block {block}; there are 5"):
            call()
    assert np.array_equal(cache.read_block(1), contents[1])


@pytest.mark.parametrize("change", [-1, 1])
def test_block_of_another_size_is_refused(change: int):
    cache, _ = filled("f16")
    size = cache.bytes_per_block
    with pytest.raises(UsageError, match=f"{size} bytes, got {size + change}"):
        cache.write_block(0, np.zeros(size + change, np.uint8))


def test_window_layers_lie_in_their_pool_and_travel_with_their_block():
    cache = native.KvCache(LAYERS, 5, "f16", windows=[0, 8, 8], window_blocks=2)
    assert (cache.window_blocks, cache.bytes_per_block + cache.bytes_per_window_block) == (
        2,
        native.KvCache(LAYERS, 5, "f16").bytes_per_block,
    )
    whole = np.arange(cache.bytes_per_block + cache.bytes_per_window_block, dtype=np.uint32).astype(np.uint8)
    cache.write_block(3, whole, window_block=1)
    assert np.array_equal(cache.read_block(3, window_block=1), whole)
    cache.copy([(3, 0)], [(1, 0)])
    assert np.array_equal(cache.read_block(0, window_block=0), whole)
    for call in (
        lambda: cache.read_block(3),
        lambda: cache.write_block(3, whole, window_block=2),
        lambda: cache.copy([], [(0, 2)]),
    ):
        with pytest.raises(UsageError, match=r"no window block .*; there are 2"):
            call()


@pytest.mark.parametrize(
    ("windows", "window_blocks"), [([], 1), ([8, 8], 1), ([0, 0, 0], 1), ([8, 8, 8], 6), ([8, 8, 8], -1)]
)
def test_window_pools_without_a_window_or_in_wrong_number_are_refused(windows: list[int], window_blocks: int):
    with pytest.raises(UsageError, match="window blocks"):
        native.KvCache(LAYERS, 5, "f16", windows=windows, window_blocks=window_blocks)
