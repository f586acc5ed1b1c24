"""Traps of Mamba-2 and its hybrids: step limits, patterns, sizes that do not fit, where the gate stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.base.layers import kept_bytes, recurrent_bytes
from freehold.choose.advisor import file_anatomy
from freehold.choose.advisor.file_anatomy import SizeKeys, from_file
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import gguf_family, read_source
from freehold.run.models.families import falcon_h1, granitehybrid, jamba, mamba, mamba2, nemotron_h
from freehold.run.models.family import Cut, Layer
from freehold.run.models.oracle.arithmetic import RecurrentVerbs
from freehold.run.models.parts.attention import Attention
from freehold.run.models.parts.mamba import Mamba1, Mamba2, MambaSizes, SelectiveSizes
from freehold.run.models.parts.moe import Moe
from freehold.run.models.tiny import make
from tests.engine.hybrids import hybrid
from tests.models.golden import write_model

SIZES = MambaSizes(heads=8, head_dim=16, states=16, groups=2, kernel=4)
COMMON = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 4, "max_position_embeddings": 512}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
MIXERS = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_conv": 4}
MAMBA2 = COMMON | {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "conv_kernel": 4}
GRANITE = COMMON | ATTENTION | MIXERS | {
    "intermediate_size": 32,
    "shared_intermediate_size": 96,
    "num_local_experts": 0,
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
}  # fmt: skip
FALCON = COMMON | ATTENTION | MIXERS | {"intermediate_size": 96, "mamba_d_ssm": 128}
NEMOTRON = COMMON | ATTENTION | {
    "hybrid_override_pattern": "M-*E",
    "head_dim": 16,
    "intermediate_size": 96,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
}  # fmt: skip
READERS = {
    "mamba2": (mamba2.config_from_hf, MAMBA2),
    "granite": (granitehybrid.config_from_hf, GRANITE),
    "falcon": (falcon_h1.config_from_hf, FALCON),
    "nemotron": (nemotron_h.config_from_hf, NEMOTRON),
}
NEMOTRON_GGUF = {
    "block_count": 4,
    "embedding_length": 64,
    "context_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": [0, 0, 2, 0],
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "feed_forward_length": [0, 32, 0, 32],
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 64,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
}


def read(family: str, **changed: Any) -> Any:
    reader, config = READERS[family]
    return reader(Fields({**config, **changed}))


def read_gguf(**changed: Any) -> Any:
    return nemotron_h.config_from_gguf(Fields({**NEMOTRON_GGUF, **changed}), 256)


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize("limit", [None, [0.0, math.inf], [0, {"__float__": "Infinity"}]])
def test_steps_without_limits_are_read_in_every_spelling(family: str, limit: Any):
    assert read(family, time_step_limit=limit).layers == 4


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize("limit", [[0.001, math.inf], [0.0, 100.0], [0.001, 0.1]])
def test_steps_with_limits_are_refused(family: str, limit: list[float]):
    """transformers applies them to a prompt and not to single tokens: no forward pass has both results."""
    with pytest.raises(UnsupportedModel, match="only step sizes without limits are supported"):
        read(family, time_step_limit=limit)


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize("limit", ["none", [0.0], {"low": 0}])
def test_limits_of_another_form_are_a_damaged_file(family: str, limit: Any):
    with pytest.raises(BadModelFile, match="time_step_limit"):
        read(family, time_step_limit=limit)


@pytest.mark.parametrize(
    ("family", "changed", "error", "named"),
    [
        ("mamba2", {"use_bias": True}, UnsupportedModel, "use_bias"),
        ("mamba2", {"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ("mamba2", {"rms_norm": False}, UnsupportedModel, "rms_norm"),
        ("mamba2", {"num_heads": 4}, BadModelFile, "4 Mamba heads of 16 are 64 wide; the config says 128"),
        ("mamba2", {"head_dim": 8, "num_heads": 16}, UnsupportedModel, "Mamba heads are 8 wide"),
        ("mamba2", {"n_groups": 3}, BadModelFile, "3 Mamba groups do not divide 8 heads"),
        ("mamba2", {"state_size": 1024}, BadModelFile, "state_size is 1024"),
        ("mamba2", {"conv_kernel": 1}, BadModelFile, "conv_kernel is 1"),
        ("granite", {"layer_types": ["mamba"] * 3}, BadModelFile, "layer_types"),
        ("granite", {"layer_types": ["mamba", "rwkv"] * 2}, UnsupportedModel, "'rwkv'"),
        ("granite", {"position_embedding_type": "alibi"}, UnsupportedModel, "position_embedding_type"),
        ("granite", {"mamba_proj_bias": True}, UnsupportedModel, "mamba_proj_bias"),
        ("granite", {"residual_multiplier": 0.0}, BadModelFile, "residual_multiplier"),
        ("granite", {"mamba_expand": 3}, BadModelFile, "the config says 192"),
        ("falcon", {"ssm_multipliers": [1.0] * 4}, BadModelFile, "ssm_multipliers"),
        ("falcon", {"mlp_multipliers": [1.0, "x"]}, BadModelFile, "mlp_multipliers.1"),
        ("falcon", {"mamba_rms_norm": True}, UnsupportedModel, "mamba_norm_before_gate"),
        ("falcon", {"projectors_bias": True}, UnsupportedModel, "projectors_bias"),
        ("falcon", {"mamba_d_ssm": 64}, BadModelFile, "128 wide; the config says 64"),
        ("nemotron", {"hybrid_override_pattern": "MXE*"}, UnsupportedModel, "'X'"),
        ("nemotron", {"hybrid_override_pattern": "M-*"}, BadModelFile, "has 3 layers; num_hidden_layers"),
        ("nemotron", {"hybrid_override_pattern": ""}, BadModelFile, "hybrid_override_pattern"),
        ("nemotron", {"hybrid_override_pattern": None}, BadModelFile, "layers_block_type"),
        ("nemotron", {"mlp_hidden_act": "silu"}, UnsupportedModel, "mlp_hidden_act"),
        ("nemotron", {"sliding_window": 8}, UnsupportedModel, "sliding_window"),
        ("nemotron", {"num_experts_per_tok": 9}, BadModelFile, "9 of 8 experts"),
        ("nemotron", {"moe_latent_size": 24}, UnsupportedModel, "latent"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    family: str, changed: dict[str, Any], error: type[FreeholdError], named: str
):
    with pytest.raises(error, match=named):
        read(family, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"expert_used_count": [0, 2, 0, 4]},
        {"expert_feed_forward_length": [0, 32, 0, 64]},
    ],
)
def test_experts_of_sizes_that_differ_by_block_are_refused_by_name(changed: dict[str, list[int]]):
    """Puzzle models of Nemotron 3."""
    with pytest.raises(UnsupportedModel, match=f"{next(iter(changed))} differs from layer to layer"):
        read_gguf(**changed)


def test_a_gguf_tells_the_pattern_by_heads_and_widths():
    cfg = read_gguf()
    kinds = [type(nemotron_h.layer(cfg, i)[0]).__name__ for i in range(4)]
    assert kinds == ["Mamba2", "LoneMoe", "Attention", "LoneMoe"]
    with pytest.raises(UnsupportedModel, match="layer 1 has heads and an MLP"):
        read_gguf(**{"attention.head_count_kv": [0, 2, 2, 0]})


def test_lists_of_a_gguf_count_the_layers_that_are_left_out():
    longer = {
        "block_count": 5,
        "attention.head_count_kv": [0, 0, 2, 0, 2],
        "feed_forward_length": [0, 32, 0, 32, 32],
    }
    cfg = read_gguf(nextn_predict_layers=1, **longer)
    assert cfg.layers == 4 and cfg.mixture.sparse == (False, True, False, True)


def test_a_pattern_of_names_reads_as_one_of_letters():
    names = ["linear_attention", "mlp", "full_attention", "moe"]
    assert read("nemotron") == read("nemotron", hybrid_override_pattern=None, layers_block_type=names)
    cfg = read("nemotron")
    assert cfg.kv_heads == (0, 0, 2, 0) and cfg.intermediate == (0, 96, 0, 0)


def test_attention_of_a_hybrid_has_no_positions_unless_the_config_says_so():
    assert read("nemotron").rope is None and read("granite").rope is None
    assert read("granite", position_embedding_type="nope").rope is None
    assert read("granite", position_embedding_type="rope").rope is not None


def test_a_gguf_whose_hybrid_has_positions_is_refused():
    meta = NEMOTRON_GGUF | {"feed_forward_length": 96, "expert_count": 0, "rope.scaling.finetuned": True}
    with pytest.raises(UnsupportedModel, match=r"rope\.scaling\.finetuned is true"):
        granitehybrid.config_from_gguf(Fields(meta), 256)
    cfg = granitehybrid.config_from_gguf(Fields(meta | {"rope.scaling.finetuned": False}), 256)
    assert cfg.rope is None and cfg.kv_heads == (0, 0, 2, 0)


def test_a_granite_of_attention_alone_needs_no_mixer():
    cfg = read("granite", layer_types=["attention"] * 4, mamba_n_heads=None)
    assert cfg.mamba is None and cfg.kv_heads == (2,) * 4


def test_nothing_bounds_the_context_of_mixers_alone():
    config = {key: value for key, value in MAMBA2.items() if key != "max_position_embeddings"}
    assert mamba2.config_from_hf(Fields(config)).context == 1 << 20


def test_safetensors_hold_the_logarithm_of_the_decay_and_a_gguf_the_decay():
    spec = Mamba2(hidden=64, sizes=SIZES, eps=1e-5).tensors()["a"]
    (stored,), (logarithm,) = spec.gguf, spec.hf
    assert isinstance(stored, Cut) and isinstance(logarithm, Cut)
    assert stored.take is not None and logarithm.take is not None
    values = np.linspace(0, 2, 8, dtype=np.float32)
    assert stored.shape == (8, 1) and logarithm.shape == (8,)
    assert np.array_equal(logarithm.take(values), stored.take(-np.exp(values)[:, None]))


def test_one_projection_is_cut_into_gate_inputs_and_steps():
    specs = Mamba2(hidden=64, sizes=SIZES, eps=1e-5).tensors()
    rows = [cut.rows for key in ("z", "mix", "dt") for cut in specs[key].gguf if isinstance(cut, Cut)]
    assert [row for part in rows if part is not None for row in part] == list(range(128 + 192 + 8))


def test_a_factor_of_rows_multiplies_each_by_its_own():
    cfg = read("falcon", ssm_multipliers=[2.0, 3.0, 5.0, 7.0, 11.0], ssm_in_multiplier=0.5)
    (cut,) = falcon_h1.layer(cfg, 0)[0].tensors()["mix"].hf
    assert isinstance(cut, Cut) and cut.take is not None
    got = cut.take(np.ones(cut.shape, np.float32))
    want = np.repeat(np.array([1.5, 2.5, 3.5], np.float32), (128, 16, 16))
    assert np.array_equal(got, np.broadcast_to(want[:, None], got.shape))


def test_weights_that_may_hold_a_factor_take_no_adapter():
    found = [part.tensors() for part in falcon_h1.layer(read("falcon"), 0)]
    assert not any(found[0][key].adaptable for key in ("q", "k", "v", "o", "out"))
    assert not found[1]["gate"].adaptable and found[1]["up"].adaptable


def test_a_gguf_without_a_head_says_that_a_factor_is_lost(tmp_path: Path):
    with open_model_file(write_model("falcon_h1-norm", "gguf", tmp_path)) as opened:
        (note,) = read_source(opened).notes
    assert "lost what logits are multiplied by" in note


@pytest.mark.parametrize("name", ["mamba2", "nemotron", "falcon"])
def test_fit_counts_of_a_folder_what_the_engine_keeps(name: str, tmp_path: Path):
    layers, anatomy = hybrid(name, tmp_path / name).layers, from_file(tmp_path / name)
    assert anatomy.state_bytes == recurrent_bytes(layers) > 0
    assert anatomy.cache_bytes(100) == kept_bytes(layers, 100)


def test_fit_counts_no_state_for_layers_of_experts_alone():
    found = file_anatomy.gguf_layers("nemotron_h_moe", SizeKeys(NEMOTRON_GGUF, ""))
    cfg = read_gguf()
    kept = [Layer(nemotron_h.layer(cfg, i)).keeps for i in range(4)]
    assert recurrent_bytes(found) == recurrent_bytes(kept)
    assert kept_bytes(found, 50) == kept_bytes(kept, 50)


@pytest.mark.parametrize("weight", [None, np.linspace(0.5, 2, 64, dtype=np.float32)])
def test_the_gate_comes_before_the_norm_of_each_group(weight: np.ndarray | None):
    """DeltaNet's norm comes first; of groups it would be another number."""
    pool, table = native.Threads(1), np.random.default_rng(3).standard_normal((8, 128)).astype(np.float32)
    plan = native.Plan(pool, native.KvCache([(1, 32, 32)], 1, "f32"), 8)
    packed = native.Matrix.pack(table.view(np.uint8).reshape(-1), "F32", 8, 128, pool)
    halves = np.eye(128, dtype=np.float32)
    y, z = plan.linear(
        plan.embed(packed),
        [
            native.Matrix.pack(half.view(np.uint8).reshape(-1), "F32", 64, 128, pool)
            for half in np.split(halves, 2)
        ],
        [None, None],
    )
    plan.gate_norm(y, z, weight, 1e-5, 2)
    plan.hidden(y)
    plan.finish()
    rows, out = np.arange(8, dtype=np.int32), np.zeros((8, 64), np.float32)
    none = np.zeros(0, np.int32)
    plan.run(rows, rows, rows * 0, np.zeros((1, 1), np.int32), none, hidden_rows=rows, hidden=out)
    y, z = np.split(table, 2, axis=1)
    want = (y * z / (1 + np.exp(-z))).reshape(8, 2, 32)
    if weight is not None:
        want = want / np.sqrt(np.mean(want**2, axis=-1, keepdims=True) + 1e-5) * weight.reshape(2, 32)
    assert np.abs(out - want.reshape(8, 64)).max() <= 1e-5
    again = y.copy()
    RecurrentVerbs().gate_norm(again, z, weight, 1e-5, 2)
    assert np.abs(out - again).max() <= 1e-5


# --- Mamba-1 -----------------------------------------------------------------------------------------


def selective(name: str, **changed: Any) -> Any:
    reader = jamba.config_from_hf if name.startswith("jamba") else mamba.config_from_hf
    return reader(Fields(make.config(name).hf | changed))


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba", "jamba-dense"])
def test_both_formats_state_the_same_mixers(name: str, tmp_path: Path):
    sizes: list[Any] = []
    for form in ("hf", "gguf"):
        (folder := tmp_path / form).mkdir()
        source = read_source(open_model_file(write_model(name, form, folder)))
        sizes.append(
            (source.cfg.mamba, [type(part) for layer in source.network.layers for part in layer.parts])
        )
    assert sizes[0] == sizes[1]


def test_a_rank_of_auto_is_a_sixteenth_of_the_hidden_width():
    assert selective("mamba", time_step_rank="auto").mamba.rank == 4
    assert selective("mamba", time_step_rank="auto", hidden_size=768).mamba.rank == 48


def test_a_rank_is_filled_up_where_nothing_normalises_it():
    """The 130M has a rank of 48, and 32 does not divide it."""
    sizes = SelectiveSizes(inner=64, states=4, rank=48, kernel=4)
    part = Mamba1(hidden=64, sizes=sizes, eps=1e-5)
    specs = part.tensors()
    assert specs["r"].shape == (64, 64) and specs["dt"].shape == (64, 64)
    cut = specs["dt"].hf[0]
    assert (
        isinstance(cut, Cut)
        and cut.take is not None
        and not cut.take(np.ones((64, 48), np.float32))[:, 48:].any()
    )
    with pytest.raises(UnsupportedModel, match="a rank of 48 that is normalised"):
        Mamba1(hidden=64, sizes=sizes, eps=1e-5, inner_norm="bare")


def test_a_jambas_layers_follow_their_periods():
    cfg = selective("jamba", num_hidden_layers=8)
    kinds = [[type(part) for part in jamba.layer(cfg, i)] for i in range(8)]
    assert [Attention in kind for kind in kinds] == [i % 4 == 2 for i in range(8)]
    assert [Moe in kind for kind in kinds] == [i % 2 == 1 for i in range(8)]
    assert selective("jamba-dense").mixture is None


def test_a_jamba_whose_gguf_counts_one_expert_has_none():
    plain = make.config("jamba-dense").gguf or {}
    family, keys = gguf_family(plain | {"jamba.expert_count": 1, "jamba.expert_used_count": 1})
    assert family is jamba.MIXED and family.config_from_gguf(keys, 256).mixture is None


@pytest.mark.parametrize(
    ("name", "changed", "error", "named"),
    [
        ("mamba", {"use_bias": True}, UnsupportedModel, "use_bias"),
        ("mamba", {"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ("mamba", {"time_step_rank": "many"}, BadModelFile, "time_step_rank"),
        ("mamba", {"state_size": 1024}, BadModelFile, "state_size is 1024"),
        ("jamba", {"mamba_proj_bias": True}, UnsupportedModel, "mamba_proj_bias"),
        ("jamba", {"attn_layer_offset": 4}, BadModelFile, "attn_layer_offset is 4"),
        ("jamba", {"expert_layer_offset": 2}, BadModelFile, "expert_layer_offset is 2"),
        ("jamba", {"num_experts_per_tok": 5}, BadModelFile, "5 of 4 experts"),
    ],
)
def test_what_a_mamba1_does_not_compute_is_refused_by_its_key(
    name: str, changed: dict[str, Any], error: type[FreeholdError], named: str
):
    with pytest.raises(error, match=named):
        selective(name, **changed)


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba", "jamba-dense"])
def test_fit_keeps_of_a_mamba1_what_the_engine_keeps(name: str, form: str, tmp_path: Path):
    path = write_model(name, form, tmp_path)
    layers = [layer.keeps for layer in read_source(open_model_file(path)).network.layers]
    anatomy = from_file(path)
    assert kept_bytes(anatomy.layers, 100) == kept_bytes(layers, 100)
    assert recurrent_bytes(anatomy.layers) == recurrent_bytes(layers) > 0
