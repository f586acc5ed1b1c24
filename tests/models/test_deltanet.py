"""Traps of gated DeltaNet and its families: orders of heads, gates, what configs say, what is left out with a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.base.layers import kept_bytes, recurrent_bytes
from freehold.choose.advisor import file_anatomy
from freehold.choose.advisor.file_anatomy import SizeKeys
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families import kimi_linear, olmo_hybrid, qwen3next, qwen35
from freehold.run.models.family import Cut, Layer
from freehold.run.models.oracle.arithmetic import DeltaVerbs
from freehold.run.models.parts.attention import Attention
from freehold.run.models.parts.deltanet import DeltaNet, DeltaSizes
from tests.engine import hybrids
from tests.vectors.files import safetensors_bytes

POOL = native.Threads(2)
F32 = np.float32


# --- the ops -----------------------------------------------------------------------------------------


class Mixer:
    """gated_delta of a plan by itself, over rows given as they are: q, k, v, decay, beta."""

    def __init__(self, rows: np.ndarray, widths: tuple[int, int, int], options: dict[str, Any]) -> None:
        self.rows, state = len(rows), options.pop("state")
        cache = native.KvCache([(0, 0, 0)], 1, "f32", states=[(0, state)], slots=3)
        self.plan = native.Plan(POOL, cache, self.rows)
        x = self.plan.embed(packed(rows))
        ends = np.cumsum(widths)
        eye = np.eye(rows.shape[1], dtype=F32)
        parts = [packed(eye[end - width : end]) for end, width in zip(ends, widths, strict=True)]
        qkv, decay, beta = self.plan.linear(x, parts, [None] * 3)
        self.plan.hidden(self.plan.gated_delta(0, [qkv], decay, beta, **options))
        self.plan.finish()

    def run(self, *pieces: tuple[int, int]) -> np.ndarray:
        """Give the outputs of all rows, cut into pieces: each its end, and the slot that it writes."""
        out = np.zeros((self.rows, self.plan.hidden_width), F32)
        at, read = 0, -1
        for end, slot in pieces:
            rows = np.arange(at, end, dtype=np.int32)
            self.plan.run(
                rows, rows, rows * 0, np.zeros((1, 1), np.int32), np.zeros(0, np.int32),
                hidden_rows=rows - at, hidden=out[at:end], pieces=np.array([[0, at, end, read, slot]], np.int32),
            )  # fmt: skip
            at, read = end, slot
        return out


def packed(values: np.ndarray) -> native.Matrix:
    values = np.ascontiguousarray(values, F32)
    width = -(-values.shape[1] // 32) * 32
    wide = np.pad(values, ((0, 0), (0, width - values.shape[1])))
    return native.Matrix.pack(wide.view(np.uint8).reshape(-1), "F32", *wide.shape, POOL)


def mixer(
    heads: int = 4, key_heads: int = 2, keys: int = 16, columns: int = 24, by_key: bool = False, **more: Any
) -> tuple[Mixer, list[np.ndarray], dict[str, Any]]:
    """Return a mixer of random rows, the rows in parts, and the op's options."""
    rng = np.random.default_rng(2)
    widths = (2 * key_heads * keys + heads * columns, heads * (keys if by_key else 1), heads)
    spare = -sum(widths) % 32
    rows = rng.standard_normal((30, sum(widths) + spare)).astype(F32)
    options = {
        "a": -np.exp(rng.uniform(0, 1, heads)).astype(F32),
        "bias": rng.standard_normal(widths[1]).astype(F32) - 2,
        "key_heads": key_heads,
        "keys": keys,
        **more,
    }
    state = heads * keys * -(-columns // 16) * 16
    parts = np.split(rows, np.cumsum(widths), axis=1)[:3]
    return Mixer(rows, widths, options | {"state": state}), parts, options


def oracle(parts: list[np.ndarray], options: dict[str, Any]) -> np.ndarray:
    verbs = DeltaVerbs()
    verbs._states = {}
    return verbs.gated_delta(0, [parts[0]], *parts[1:], **options)


@pytest.mark.parametrize("more", [{}, {"tiled": True}, {"beta_scale": 2.0}], ids=str)
def test_the_op_agrees_with_its_meaning(more: dict[str, Any]):
    run, parts, options = mixer(**more)
    assert np.abs(run.run((30, 0)) - oracle(parts, options)).max() <= 1e-5


def test_a_decay_for_each_key_agrees_with_its_meaning():
    run, parts, options = mixer(heads=2, by_key=True)
    assert np.abs(run.run((30, 0)) - oracle(parts, options)).max() <= 1e-5


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("pieces", [[(7, 0), (30, 1)], [(1, 2), (2, 2), (3, 0), (30, 0)]])
def test_pieces_in_place_and_to_other_slots_give_the_bits_of_one(by_key: bool, pieces: list[tuple[int, int]]):
    run, _, _ = mixer(heads=2, by_key=by_key)
    assert np.array_equal(run.run((30, 0)), run.run(*pieces))


def test_heads_in_turns_are_grouped_heads_in_another_order():
    """A value head reads another key head in qwen35's GGUF than at the same place in safetensors."""
    run, parts, options = mixer()
    heads, columns = 4, 24
    turns = np.arange(heads).reshape(2, 2).T.ravel()  # grouped number of each head in turns
    qk, v = np.split(parts[0], [64], axis=1)
    v = v.reshape(30, heads, columns)[:, turns].reshape(30, -1)
    other = [np.concatenate([qk, v], 1), parts[1][:, turns], parts[2][:, turns]]
    moved = options | {"a": options["a"][turns], "bias": options["bias"][turns], "tiled": True}
    want = run.run((30, 0)).reshape(30, heads, columns)[:, turns].reshape(30, -1)
    assert np.abs(oracle(other, moved) - want).max() <= 1e-5
    assert np.abs(oracle(other, moved | {"tiled": False}) - want).max() > 0.01


def test_the_norm_of_heads_comes_before_the_gate():
    y, gate, weight = (
        np.random.default_rng(i).standard_normal(n).astype(F32) for i, n in ((1, 64), (2, 64), (3, 16))
    )
    plan = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), 1)
    eye = np.eye(128, dtype=F32)
    both = plan.embed(packed(np.concatenate([y, gate])[None]))
    own, other = plan.linear(both, [packed(eye[:64]), packed(eye[64:])], [None, None])
    plan.norm_gate(own, other, weight, 1e-5, act="silu")
    plan.hidden(own)
    plan.finish()
    out, one = np.zeros((1, 64), F32), np.zeros(1, np.int32)
    plan.run(one, one, one, np.zeros((1, 1), np.int32), one[:0], hidden_rows=one, hidden=out)
    heads = y.reshape(4, 16)
    want = heads / np.sqrt(np.mean(heads**2, 1, keepdims=True) + 1e-5) * weight
    assert np.abs(out[0] - want.ravel() * gate / (1 + np.exp(-gate))).max() <= 1e-5


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"keys": 15, "key_heads": 2}, "even width"),
        ({"key_heads": 3}, "3 key heads do not divide 4 value heads"),
        ({"bias": np.zeros(3, F32)}, "bias needs 4 values"),
        ({"qkv": 2}, "one buffer or three, got 2"),
        ({"state": 64}, "keeps 0 inputs and a state of 64"),
    ],
)
def test_an_op_that_does_not_fit_its_buffers_or_its_state_is_refused(more: dict[str, Any], named: str):
    options = {"a": -np.ones(4, F32), "bias": np.zeros(4, F32), "key_heads": 2, "keys": 16} | more
    state, copies = options.pop("state", 4 * 16 * 32), options.pop("qkv", 1)
    cache = native.KvCache([(0, 0, 0)], 1, "f32", states=[(0, state)], slots=1)
    plan = native.Plan(POOL, cache, 4)
    x = plan.embed(packed(np.zeros((4, 192), F32)))
    eye = np.eye(192, dtype=F32)
    qkv, decay, beta = plan.linear(x, [packed(eye[:160]), packed(eye[:4]), packed(eye[:4])], [None] * 3)
    with pytest.raises(FreeholdError, match=named):
        plan.gated_delta(0, [qkv] * copies, decay, beta, **options)


# --- where weights lie -------------------------------------------------------------------------------


def rows_of(part: Any, key: str) -> list[int]:
    (cut,) = part.tensors()[key].hf
    assert isinstance(cut, Cut) and cut.rows is not None
    return list(cut.rows)


def test_fused_projections_hold_a_key_head_after_another():
    """[q k v v z z] of the first key head, then of the second; [b b a a] likewise."""
    sizes = DeltaSizes(key_heads=2, value_heads=4, key_dim=2, value_dim=8, kernel=4)
    part = DeltaNet(hidden=32, sizes=sizes, eps=1e-6, stored="grouped")
    q, k, v, z = [0, 1], [2, 3], list(range(4, 20)), list(range(20, 36))
    second = 36
    assert rows_of(part, "qkv") == [
        *q, *(n + second for n in q), *k, *(n + second for n in k), *v, *(n + second for n in v)
    ]  # fmt: skip
    assert rows_of(part, "z") == [*z, *(n + second for n in z)]
    assert rows_of(part, "beta") == [0, 1, 4, 5] and rows_of(part, "alpha") == [2, 3, 6, 7]


def test_queries_and_their_gates_take_turns_head_by_head():
    part = Attention(hidden=32, heads=2, kv_heads=1, head_dim=16, eps=1e-6, rope=None, gated=True)
    assert rows_of(part, "q") == [*range(16), *range(32, 48)]
    assert rows_of(part, "q_gate") == [*range(16, 32), *range(48, 64)]


def test_norms_are_stored_around_zero_but_for_the_heads_of_a_delta_net():
    cfg = read(qwen3next.config_from_hf, NEXT)
    specs = {
        key: spec
        for i in range(4)
        for part in qwen3next.layer(cfg, i)
        for key, spec in part.tensors().items()
    }
    offsets = {key: spec.hf_offset for key, spec in specs.items() if key.endswith("norm")}
    assert offsets == {"attn_norm": 1, "ffn_norm": 1, "q_norm": 1, "k_norm": 1, "head_norm": 0}


def test_safetensors_hold_the_logarithm_of_the_decay_and_a_gguf_the_decay():
    sizes = DeltaSizes(key_heads=2, value_heads=4, key_dim=2, value_dim=8, kernel=4)
    spec = DeltaNet(hidden=32, sizes=sizes, eps=1e-6).tensors()["a"]
    (logarithm,) = spec.hf
    assert spec.gguf == ("ssm_a",) and isinstance(logarithm, Cut) and logarithm.take is not None
    assert np.allclose(logarithm.take(np.array([0, 1], F32)), [-1, -np.e])


# --- what configs say --------------------------------------------------------------------------------

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
NEXT = COMMON | EXPERTS | {"rope_theta": 1e7}
DENSE = COMMON | {"rope_parameters": {"rope_theta": 1e7, "mrope_section": [2, 1, 1]}}
OLMO = {k: v for k, v in COMMON.items() if k != "head_dim"}
KIMI = hybrids.CONFIGS["kda"]
QWEN35_GGUF = {
    "qwen35.block_count": 5,
    "qwen35.nextn_predict_layers": 1,
    "qwen35.embedding_length": 64,
    "qwen35.feed_forward_length": 96,
    "qwen35.context_length": 512,
    "qwen35.attention.head_count": 4,
    "qwen35.attention.head_count_kv": 2,
    "qwen35.attention.key_length": 32,
    "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen35.rope.dimension_count": 8,
    "qwen35.rope.dimension_sections": [2, 1, 1, 0],
    "qwen35.ssm.conv_kernel": 4,
    "qwen35.ssm.state_size": 16,
    "qwen35.ssm.group_count": 2,
    "qwen35.ssm.time_step_rank": 4,
    "qwen35.ssm.inner_size": 64,
}


LISTED = {"attention.recurrent_layers": [True, False, True, False, False]}


def read(reader: Any, config: dict[str, Any], **changed: Any) -> Any:
    return reader(Fields({**config, **changed}))


def read_gguf(**changed: Any) -> Any:
    changed = {f"qwen35.{key.replace('__', '.')}": value for key, value in changed.items()}
    return qwen35.dense_from_gguf(Fields({**QWEN35_GGUF, **changed}, "qwen35."), 256)


@pytest.mark.parametrize("reader", [qwen3next.config_from_hf, qwen35.mixed_from_hf])
def test_a_quarter_of_a_head_turns_where_no_config_says_how_much(reader: Any):
    assert read(reader, NEXT).rope.width == 8
    assert read(reader, NEXT, partial_rotary_factor=0.5).rope.width == 16
    assert read(reader, NEXT, rope_parameters={"partial_rotary_factor": 0.75}).rope.width == 24


def test_every_fourth_layer_attends_where_no_config_says_which():
    assert read(qwen35.dense_from_hf, DENSE).recurrent == (True, True, True, False)
    assert read(qwen35.dense_from_hf, DENSE, full_attention_interval=2).recurrent == (True, False) * 2
    kinds = ["full_attention", *["linear_attention"] * 3]
    assert read(qwen35.dense_from_hf, DENSE, layer_types=kinds).recurrent == (False, True, True, True)


def test_a_gguf_lists_its_recurrent_layers_and_counts_its_drafts_among_them():
    assert read_gguf().recurrent == (True, True, True, False)
    assert read_gguf(full_attention_interval=2).recurrent == (True, False) * 2
    listed = [True, False, True, True, False]
    assert read_gguf(attention__recurrent_layers=listed).recurrent == (True, False, True, True)


def test_value_heads_take_turns_in_a_qwen35_gguf_alone():
    assert read_gguf().tiled and not read(qwen35.dense_from_hf, DENSE).tiled
    assert not read(qwen3next.config_from_hf, NEXT).tiled


def test_chosen_experts_weights_are_divided_by_their_sum_unless_next_says_not():
    assert read(qwen35.mixed_from_hf, NEXT).mixture.routing.renormalise
    assert not read(qwen3next.config_from_hf, NEXT, norm_topk_prob=False).mixture.routing.renormalise
    assert read(qwen3next.config_from_hf, NEXT).mixture.shared_gate


def test_a_theta_of_null_turns_nothing_and_one_that_is_absent_turns():
    reader = olmo_hybrid.config_from_hf
    assert read(reader, OLMO, rope_parameters={"rope_theta": None, "rope_type": "default"}).rope is None
    assert read(reader, OLMO, rope_theta=None).rope is None
    assert read(reader, OLMO).rope.base == 10_000
    assert read(reader, OLMO, rope_parameters={"rope_theta": 5e5}).rope.base == 5e5


def test_betas_reach_two_unless_negative_eigenvalues_are_off():
    assert read(olmo_hybrid.config_from_hf, OLMO).beta_scale == 2
    assert read(olmo_hybrid.config_from_hf, OLMO, linear_allow_neg_eigval=False).beta_scale == 1


def test_kimi_numbers_its_layers_from_one_or_names_their_types():
    assert read(kimi_linear.config_from_hf, KIMI).recurrent == (True, False, True)
    kinds = ["full_attention", "linear_attention", "linear_attention"]
    assert read(kimi_linear.config_from_hf, KIMI, layer_types=kinds).recurrent == (False, True, True)


@pytest.mark.parametrize(
    ("reader", "config", "changed", "error", "named"),
    [
        (qwen35.dense_from_hf, DENSE, {"attn_output_gate": False}, UnsupportedModel, "attn_output_gate"),
        (qwen35.dense_from_hf, DENSE, {"attention_bias": True}, UnsupportedModel, "attention_bias"),
        (qwen35.dense_from_hf, DENSE, {"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        (
            qwen35.dense_from_hf,
            DENSE,
            {"layer_types": ["linear_attention", "mamba"] * 2},
            UnsupportedModel,
            "'mamba'",
        ),
        (qwen35.dense_from_hf, DENSE, {"layer_types": ["linear_attention"] * 3}, BadModelFile, "layer_types"),
        (
            qwen35.dense_from_hf,
            DENSE,
            {"linear_num_value_heads": 3},
            BadModelFile,
            "2 key heads do not divide 3",
        ),
        (qwen35.dense_from_hf, DENSE, {"linear_key_head_dim": 15}, UnsupportedModel, "key heads are 15 wide"),
        (qwen35.dense_from_hf, DENSE, {"linear_value_head_dim": 9}, UnsupportedModel, "DeltaNet width is 36"),
        (qwen35.dense_from_hf, DENSE, {"linear_conv_kernel_dim": 1}, BadModelFile, "linear_conv_kernel_dim"),
        (
            qwen35.dense_from_hf,
            DENSE,
            {"linear_key_head_dim": None},
            BadModelFile,
            "linear_key_head_dim is missing",
        ),
        (
            qwen35.dense_from_hf,
            COMMON,
            {"rope_parameters": {"mrope_section": [3, 1, 1]}},
            BadModelFile,
            "mrope_section",
        ),
        (
            qwen35.dense_from_hf,
            COMMON,
            {"rope_parameters": {"mrope_section": "2"}},
            BadModelFile,
            "mrope_section",
        ),
        (qwen35.mixed_from_hf, NEXT, {"mlp_only_layers": [1]}, UnsupportedModel, "mlp_only_layers"),
        (qwen35.mixed_from_hf, NEXT, {"num_experts_per_tok": 9}, BadModelFile, "9 of 8 experts"),
        (qwen3next.config_from_hf, NEXT, {"mlp_only_layers": "x"}, BadModelFile, "mlp_only_layers"),
        (kimi_linear.config_from_hf, KIMI, {"mla_use_nope": False}, UnsupportedModel, "mla_use_nope"),
        (
            kimi_linear.config_from_hf,
            KIMI,
            {"moe_router_activation_func": "softmax"},
            UnsupportedModel,
            "moe_router",
        ),
        (
            kimi_linear.config_from_hf,
            KIMI,
            {
                "linear_attn_config": {
                    "num_heads": 2,
                    "head_dim": 32,
                    "kda_layers": [1],
                    "full_attn_layers": [2],
                }
            },
            BadModelFile,
            "do not name each of 3 layers once",
        ),
        (
            kimi_linear.config_from_hf,
            KIMI,
            {"linear_attn_config": {"num_heads": 2, "head_dim": 32}},
            BadModelFile,
            "kda_layers is None",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    reader: Any, config: dict[str, Any], changed: dict[str, Any], error: type[FreeholdError], named: str
):
    with pytest.raises(error, match=named):
        read(reader, config, **changed)


@pytest.mark.parametrize("name", ["delta", "kda"])
def test_fit_counts_of_a_folder_what_the_engine_keeps(name: str, tmp_path: Path):
    layers, anatomy = hybrids.hybrid(name, tmp_path / name).layers, file_anatomy.from_file(tmp_path / name)
    assert anatomy.state_bytes == recurrent_bytes(layers) > 0
    assert anatomy.cache_bytes(100) == kept_bytes(layers, 100)


@pytest.mark.parametrize(
    "changed", [{}, {"full_attention_interval": 2}, {"ssm.inner_size": 96}, LISTED], ids=str
)
def test_fit_counts_of_a_gguf_what_the_engine_keeps_and_no_draft(changed: dict[str, Any]):
    keys = QWEN35_GGUF | {f"qwen35.{key}": value for key, value in changed.items()}
    cfg = qwen35.dense_from_gguf(Fields(keys, "qwen35."), 256)
    kept = [Layer(qwen35.layer(cfg, i)).keeps for i in range(cfg.layers)]
    found = file_anatomy.gguf_layers("qwen35", SizeKeys(keys, "qwen35."))
    assert recurrent_bytes(found) == recurrent_bytes(kept) and kept_bytes(found, 50) == kept_bytes(kept, 50)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ssm__inner_size": 62}, "ssm.inner_size is 62, which 4 heads"),
        ({"attention__recurrent_layers": [True, False]}, "recurrent_layers is"),
        ({"attention__recurrent_layers": [True, False, 2, True, True]}, "recurrent_layers is"),
        ({"rope__dimension_sections": [1, 1, 1, 0]}, "expected 4 pairs together"),
        ({"nextn_predict_layers": 5}, "which leaves no layer"),
        ({"ssm__group_count": 3}, "3 key heads do not divide 4"),
    ],
)
def test_keys_of_a_gguf_that_do_not_fit_are_named(changed: dict[str, Any], named: str):
    with pytest.raises(BadModelFile, match=named):
        read_gguf(**changed)


def test_a_wrapper_loads_its_text_half_and_says_what_it_leaves_out(tmp_path: Path):
    """Published Qwen3.5 files: names under model.language_model, a vision tower, layers that draft."""
    config = hybrids.CONFIGS["delta"]
    weights = hybrids._weights(config)
    named = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: values
        for name, values in weights.items()
    }
    extra = {
        "model.visual.blocks.0.norm1.weight": np.ones(8, F32),
        "mtp.fc.weight": np.ones((4, 8), F32),
    }
    text = {k: v for k, v in config.items() if k != "architectures"} | {"model_type": "qwen3_5_moe_text"}
    wrapper = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(wrapper))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(named | extra, "F32"))
    with open_model_file(tmp_path) as opened:
        source = read_source(opened)
    assert source.family.gguf_architecture == "qwen35moe"
    assert any("vision" in note for note in source.notes) and any(
        "further tokens" in note for note in source.notes
    )
