"""The default context is the model's own, cut to memory and said so; one asked for is kept or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import machine
from freehold.base.errors import CapacityExceeded, ContextOverflow, UsageError
from freehold.base.layers import LayerSpec
from freehold.run.engine import Engine
from freehold.run.engine.cache import capacity
from freehold.run.engine.cache.capacity import (
    MOST_BLOCKS,
    CacheBytes,
    bytes_per_block,
    choose_context,
    kinds_beside_full,
)
from freehold.run.models.load import LoadedModel


def with_memory(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(capacity, "available_bytes", lambda: count)


def test_cache_bytes_follow_the_type(model: LoadedModel):
    values = 32 * sum(spec.values_per_token for spec in model.layers)
    assert bytes_per_block(model, "f16") == 2 * values
    assert bytes_per_block(model, "f32") == 4 * values
    scales = 32 * sum(2 * 4 * spec.kv_heads for spec in model.layers)
    assert bytes_per_block(model, "q8") == values + scales  # widths here are multiples of sixteen


def test_unknown_cache_type_names_the_known_ones(model: LoadedModel):
    with pytest.raises(UsageError, match="kv_type is 'q8_0'; expected f16, q8 or f32"):
        Engine(model, context=64, kv_type="q8_0")  # pyright: ignore[reportArgumentType]


def test_default_context_is_the_models_own(model: LoadedModel):
    assert choose_context(model, None) == (512 if model.context == 512 else model.context, "the model's own")


def test_default_context_is_cut_to_a_share_of_memory_and_says_so(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    with_memory(monkeypatch, 20 * bytes_per_block(model))
    context, note = choose_context(model, None)
    assert context == 320 and "cut from the model's 512" in note and "50%" in note


def test_no_room_for_a_small_context_is_an_error(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    with_memory(monkeypatch, 4 * bytes_per_block(model))
    with pytest.raises(CapacityExceeded, match="at least 256"):
        choose_context(model, None)


def test_context_beyond_memory_is_refused_with_the_numbers(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    with_memory(monkeypatch, 10 * bytes_per_block(model))
    with pytest.raises(CapacityExceeded, match=r"512 tokens takes") as error:
        choose_context(model, 512)
    assert "--context 288" in error.value.hint


def test_context_beyond_the_models_own_is_refused(model: LoadedModel):
    with pytest.raises(ContextOverflow, match=r"1,024 tokens was asked for; tiny was made for 512"):
        choose_context(model, 1024)


@pytest.mark.parametrize("wrong", [0, -5, True])
def test_absurd_context_is_refused(model: LoadedModel, wrong: int):
    with pytest.raises(UsageError):
        Engine(model, context=wrong)


def test_control_group_limits_memory_and_counts_its_file_cache_as_free(tmp_path: Path):
    assert machine.cgroup_available_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max")
    (tmp_path / "memory.current").write_text("1000000")
    assert machine.cgroup_available_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("3000000")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    assert machine.cgroup_available_bytes(tmp_path) == 2_400_000


def test_processor_quota_limits_threads(tmp_path: Path):
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000")
    assert machine.cpu_quota(tmp_path) == 1.5
    assert machine.default_threads() >= 1


def test_states_take_as_many_bytes_as_blocks_and_four_at_least():
    sizes = CacheBytes(block=100, window_block=0, least=0, state=1000)
    assert sizes.places(10) == {"recurrent": 4} and sizes.total(10) == 10 * 100 + 4 * 1000
    assert sizes.places(200) == {"recurrent": 20} and sizes.total(200) == 2 * 200 * 100
    layers = [LayerSpec("full", kv_heads=1, head_dim=32), LayerSpec("deltanet", count=3, state=64)]
    assert [kind.name for kind in kinds_beside_full(layers, sizes.places(10), 10, 512)] == ["recurrent"]


def test_a_hybrid_of_few_attention_layers_has_states_for_many_streams(monkeypatch: pytest.MonkeyPatch):
    """Its blocks take few bytes; as many bytes of states would be four, and eight streams took turns."""
    sizes = CacheBytes(block=100, window_block=0, least=0, state=1000, least_states=32)
    assert sizes.places(8) == {"recurrent": 32} and sizes.total(8) == 8 * 100 + 32 * 1000
    for have, states in ((8_000, 4), (80_000, 10), (8_000_000, 32)):
        monkeypatch.setattr(capacity, "available_bytes", lambda have=have: have)
        assert capacity._least_states(1000) == states


def test_a_model_of_recurrent_layers_alone_has_the_same_states_at_any_context():
    sizes = CacheBytes(block=0, window_block=0, least=0, state=1000, least_states=6)
    assert sizes.places(8) == sizes.places(1 << 20) == {"recurrent": 6}
    assert sizes.blocks(6000) == MOST_BLOCKS and sizes.blocks(5999) == 0
