"""What a layer keeps: bytes per token and per sequence, and what a prefix hit needs of it."""

from __future__ import annotations

import pytest

from freehold.base.layers import KINDS, LayerSpec, Reuse, kept_bytes, longest_window, recurrent_bytes


@pytest.mark.parametrize(
    ("kind", "reuse"),
    [
        ("full", Reuse.ALL),
        ("window", Reuse.WINDOW),
        ("latent", Reuse.ALL),
        ("compressed", Reuse.ALL),
        ("mamba2", Reuse.STATE),
        ("deltanet", Reuse.STATE),
        ("linear", Reuse.STATE),
        ("shortconv", Reuse.STATE),
        ("plain", Reuse.NOTHING),
    ],
)
def test_a_prefix_hit_needs_what_the_kind_says(kind: str, reuse: Reuse):
    assert kind in KINDS and LayerSpec(kind).reuse is reuse
    assert LayerSpec(kind).recurrent == (reuse is Reuse.STATE)


def test_states_do_not_grow_with_the_sequence_and_keys_do():
    layers = (LayerSpec("full", 2, 4, 64), LayerSpec("shortconv", 3, conv=100), LayerSpec("mamba2", state=10))
    assert kept_bytes(layers, 1000) == 2 * 4 * 128 * 1000 * 2
    assert recurrent_bytes(layers) == (3 * 100 + 10) * 4


def test_only_sliding_windows_bound_what_is_kept():
    compressed = LayerSpec("compressed", 1, 1, 8, stride=4, window=64)
    assert longest_window([compressed]) == 0
    assert longest_window([compressed, LayerSpec("window", 1, 1, 8, window=16), LayerSpec("full")]) == 16
    assert kept_bytes([LayerSpec("window", 1, 1, 8, window=16)], 1000) == kept_bytes(
        [LayerSpec("full", 1, 1, 8)], 16
    )
