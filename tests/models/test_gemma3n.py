"""Gemma 3n: what its configs say of cut gates, streams and shared keys, and what a file may leave unsaid."""

from __future__ import annotations

import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Metadata
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families.gemma3n import FAMILY, AltUpLayer
from freehold.run.models.oracle.session import Oracle
from tests.models.golden import error, golden, write_model
from tests.models.test_mixtures import reopened
from tests.models.test_stated import from_gguf, from_hf
from tests.vectors.files import write_gguf

NORMAL_95 = 1.6448536


def test_half_of_the_gates_are_cut_at_their_mean_which_is_not_no_cut():
    cfg = from_hf("gemma3n", activation_sparsity_pattern=[0.5, 0.0, 0.3, 0.95])
    assert cfg.above[:2] == (0.0, None) and cfg.above[2] < 0
    assert cfg.above[3] == pytest.approx(NORMAL_95)


def test_a_gguf_says_minus_infinity_where_no_gate_is_cut():
    cfg = from_gguf("gemma3n", activation_sparsity_scale=[-math.inf, 0.0, -1.0, NORMAL_95])
    assert cfg.above == (None, 0.0, -1.0, NORMAL_95)


def test_ten_layers_are_cut_where_no_pattern_is_stated_and_none_of_a_shallow_model():
    bare = ("activation_sparsity_pattern", "layer_types")
    deep = from_hf("gemma3n", without=bare, num_hidden_layers=12, intermediate_size=96)
    assert [v is not None for v in deep.above] == [True] * 10 + [False] * 2
    assert set(from_hf("gemma3n", without=bare, num_kv_shared_layers=0).above) == {None}


def test_a_gguf_without_cuts_is_refused_and_one_without_a_softcap_has_the_class_s(tmp_path: Path):
    path = write_model("gemma3n", "gguf", tmp_path)
    with pytest.raises(BadModelFile, match=r"gemma3n\.activation_sparsity_scale is missing"):
        read_source(reopened(path, **{"gemma3n.activation_sparsity_scale": None}))
    assert read_source(reopened(path, **{"gemma3n.final_logit_softcapping": None})).cfg.softcap == 30.0


def test_layers_share_the_keys_of_the_last_of_their_kind():
    cfg = from_hf("gemma3n")
    parts = [layer.parts[0] for layer in FAMILY.layers(cfg)]
    assert [part.attention.source for part in parts if isinstance(part, AltUpLayer)] == [None, None, 0, 1]
    with pytest.raises(BadModelFile, match="3 layers share keys"):
        from_hf("gemma3n", num_kv_shared_layers=3)


def test_what_streams_cannot_be_is_refused_by_its_key():
    with pytest.raises(BadModelFile, match="altup_active_idx is 4; expected an integer from 0 to 3"):
        from_hf("gemma3n", altup_active_idx=4)
    with pytest.raises(UnsupportedModel, match="altup_correct_scale is false"):
        from_hf("gemma3n", altup_correct_scale=False)
    with pytest.raises(UnsupportedModel, match="laurel_rank width is 24"):
        from_hf("gemma3n", laurel_rank=24)


def test_tokens_beyond_the_table_of_layers_read_its_first_row(tmp_path: Path):
    """Published files have embeddings of layers for fewer tokens than words; golden logits judge it too."""
    ids, _ = golden("gemma3n-active")
    path = write_model("gemma3n-active", "hf", tmp_path)
    rows = open_model_file(path).tensors["model.embed_tokens_per_layer.weight"].shape[0]
    assert rows == 192 and sum(i >= rows for i in ids) > 5
    oracle = Oracle(path)
    assert error(oracle.logits(ids), "gemma3n-active") < 1e-4


def test_coefficients_of_streams_stay_floats_in_a_quantised_file(tmp_path: Path):
    """Converters of eight bits quantise the router; it is decoded, and computed in floats."""
    source = read_source(open_model_file(write_gguf("gemma3n", tmp_path / "m.gguf", dtype="Q8_0")))
    for key in ("router", "predict", "correct"):
        bound = source.layers[0][key]
        assert not bound.is_matrix and np.isfinite(bound.tensor.numpy()).all()


def test_towers_of_pictures_and_sounds_are_left_out_and_said_so(tmp_path: Path):
    opened: Any = open_model_file(write_model("gemma3n", "hf", tmp_path))
    text = dict(opened.config)
    wrapper = {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n"}
    opened.config = Metadata({**wrapper, "text_config": text, "audio_config": {}}, "config.json")
    named = {name.replace("model.", "model.language_model.", 1): t for name, t in opened.tensors.items()}
    towers = ("audio_tower.conv", "vision_tower.patch", "embed_audio.table", "embed_vision.table")
    other = opened.tensors["model.norm.weight"]
    opened.tensors = MappingProxyType({**named, **{f"model.{tower}.weight": other for tower in towers}})
    source = read_source(opened)
    assert source.cfg.streams == 4 and "vision" in source.notes[0]
