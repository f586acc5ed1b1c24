"""What a GGUF loses of its model is made good by one rule: the catalogue, else a context where it is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base import catalog
from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes
from freehold.run.models.families import llama, starcoder2

MISTRAL: dict[str, Any] = {
    "embedding_length": 4096,
    "block_count": 32,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "feed_forward_length": 14336,
    "context_length": 32768,
    "rope.freq_base": 1e4,
}
MINISTRAL = {"block_count": 36, "feed_forward_length": 12288, "context_length": 131072, "rope.freq_base": 1e8}


def read(**changes: Any) -> Sizes:
    return llama.config_from_gguf(Fields({**MISTRAL, **changes}), 32000)


def test_a_first_mistral_gets_its_window_from_the_catalogue_and_says_so():
    cfg = read()
    assert cfg.windows == (4096,) * 32
    assert cfg.context == 32768
    (note,) = cfg.notes
    assert "4,096" in note and "mistralai/Mistral-7B-Instruct-v0.1" in note


def test_a_later_mistral_of_another_base_has_no_window():
    cfg = read(**{"rope.freq_base": 1e6})
    assert not any(cfg.windows) and not cfg.notes


def test_a_window_that_the_file_states_is_its_own():
    assert read(**{"attention.sliding_window": 64}).windows == (64,) * 32


UNKNOWN = {"block_count": 30, "embedding_length": 3072, "attention.head_count": 24}


def test_a_shape_that_nothing_knows_is_exact_up_to_the_window_that_it_may_have_lost():
    cfg = read(**UNKNOWN)
    assert cfg.context == 4096 and not any(cfg.windows)
    (note,) = cfg.notes
    assert "does not state whether it has a sliding window" in note and "4,096" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"rope.freq_base": 5e5},  # Llama 3's: made for long contexts
        {"context_length": 8192},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        {"attention.sliding_window": 64},
    ],
)
def test_a_shape_that_nothing_knows_keeps_its_context_where_no_window_is_to_be_expected(
    changes: dict[str, Any],
):
    cfg = read(**UNKNOWN, **changes)
    assert cfg.context == changes.get("context_length", 32768) and not cfg.notes


def test_a_shape_of_the_catalogue_without_a_window_keeps_its_context():
    yi = catalog.model("01-ai/Yi-6B", Path("/nowhere/catalogue.toml"))
    (layers,) = yi.layers
    keys = {"embedding_length": yi.hidden, "block_count": layers.count, "attention.head_count": 32}
    cfg = read(**keys, **{"attention.head_count_kv": layers.kv_heads})
    assert cfg.context == 32768 and not cfg.notes


def test_windows_that_no_config_states_cut_the_context_to_where_they_make_no_difference():
    cfg = read(**MINISTRAL)
    assert cfg.context == 32768 and not any(cfg.windows)
    assert "exact" in cfg.notes[0] and "Ministral" in cfg.notes[0]


@pytest.mark.parametrize(("context", "exact", "notes"), [(16384, 4096, 1), (4096, 4096, 0), (512, 512, 0)])
def test_a_starcoder2_is_exact_up_to_the_window_that_its_file_does_not_state(
    context: int, exact: int, notes: int
):
    keys = {**MISTRAL, "context_length": context, "attention.layer_norm_epsilon": 1e-5}
    cfg = starcoder2.config_from_gguf(Fields(keys), 32000)
    assert (cfg.context, len(cfg.notes)) == (exact, notes)
