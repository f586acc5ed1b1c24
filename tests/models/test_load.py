"""A model file is believed in nothing: what does not fit the config, or is not known, is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, CapacityExceeded, UnsupportedModel
from freehold.run.engine import Engine, scoring
from freehold.run.formats import GGUFFile, Metadata, QuantType, Tensor, open_gguf, open_model_file
from freehold.run.models import load
from freehold.run.models.binding.bind import read_source
from freehold.run.models.load import load_model
from freehold.run.models.oracle.session import Oracle
from tests.vectors.files import write_gguf, write_safetensors

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf("llama", tmp_path_factory.mktemp("models") / "llama.gguf")


@pytest.fixture(scope="module")
def hf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


def edited(path: Path, edit: Edit) -> GGUFFile:
    """Open a GGUF and change what it says, as a liar would have written it."""
    opened = open_gguf(path)
    values, tensors = dict(opened.metadata), dict(opened.tensors)
    edit(values, tensors)
    opened.metadata = Metadata(values, "model.gguf")
    opened.tensors = MappingProxyType(tensors)
    return opened


def set_key(key: str, value: object) -> Edit:
    return lambda values, _: values.update({key: value})


def tensor(name: str, *shape: int) -> Tensor:
    raw = np.zeros(shape, np.float32).view(np.uint8).reshape(-1)
    return Tensor(name, QuantType.F32, shape, raw)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llama.block_count", 0, "1 to 1024"),
        ("llama.block_count", 1 << 60, "1 to 1024"),
        ("llama.block_count", "four", "integer"),
        ("llama.block_count", True, "integer"),
        ("llama.block_count", None, "missing"),
        ("llama.block_count", 5, "blk.4.attn_norm.weight is missing"),
        ("llama.attention.head_count", 3, "do not divide"),
        ("llama.attention.head_count", -4, "1 to"),
        ("llama.attention.head_count_kv", 3, "do not divide"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "finite"),
        ("llama.attention.layer_norm_rms_epsilon", 0.0, "1e-12"),
        ("llama.embedding_length", 96, "token_embd.weight has shape [256, 64]"),
        ("llama.feed_forward_length", 128, "ffn_gate.weight has shape [96, 64]"),
        ("llama.rope.freq_base", 0.0, "freq_base"),
        ("llama.rope.freq_base", float("inf"), "finite"),
        ("llama.rope.dimension_count", 7, "even"),
        ("llama.rope.dimension_count", 512, "even"),
        ("llama.context_length", 0, "context_length"),
        ("llama.expert_count", 8, "expert_used_count is missing"),
        ("llama.attention.head_count", np.array([4, 4, 2, 4], np.int32), "blk.2.attn_q.weight has shape"),
        ("llama.attention.head_count", np.array([4, 4, 4], np.int32), "4 values, one a layer"),
        ("llama.feed_forward_length", [96, 96, 0, 96], "from 1 to"),
        ("tokenizer.ggml.tokens", ["x"] * 300, "300 tokens and the embedding 256 rows"),
    ],
)
def test_absurd_value_is_refused_by_name(llama_path: Path, key: str, value: object, says: str):
    with pytest.raises(BadModelFile, match=None) as error:
        read_source(edited(llama_path, set_key(key, value)))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("general.architecture", "mamba9", "'mamba9'"),
        ("llama.rope.scaling.type", "longrope", "longrope"),
        ("llama.embedding_length", np.array([64, 96], np.int32), "differs from layer to layer"),
        ("llama.attention.value_length", 8, "value_length"),
    ],
)
def test_unsupported_feature_is_refused_by_name(llama_path: Path, key: str, value: object, says: str):
    with pytest.raises(UnsupportedModel) as error:
        read_source(edited(llama_path, set_key(key, value)))
    assert says in str(error.value)


def test_unknown_architecture_names_the_nearest_that_run(llama_path: Path):
    with pytest.raises(UnsupportedModel) as error:
        read_source(edited(llama_path, set_key("general.architecture", "deepseek4")))
    assert "deepseek2" in error.value.hint and "make-tiny --list" in error.value.hint
    assert len(error.value.hint) < 160  # the names of all would bury the reason
    with pytest.raises(UnsupportedModel) as error:
        read_source(edited(llama_path, set_key("general.architecture", "zzz")))
    assert error.value.hint == "freehold make-tiny --list shows the families that run"


def test_list_with_one_value_for_all_layers_counts_as_that_value(llama_path: Path):
    source = read_source(edited(llama_path, set_key("llama.feed_forward_length", np.full(4, 96, np.int32))))
    assert source.cfg.intermediate == (96,) * 4


def test_layers_of_different_sizes_are_read_and_computed(llama_path: Path):
    """As lists in a GGUF state them: key/value heads, query heads and intermediate size of each layer."""
    kv_heads, heads, widths = [2, 1, 4, 2], [4, 2, 4, 4], [96, 64, 32, 96]

    def edit(values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        rng = np.random.default_rng(3)
        values["llama.attention.head_count_kv"] = np.array(kv_heads, np.int32)
        values["llama.attention.head_count"] = heads
        values["llama.feed_forward_length"] = np.array(widths, np.int32)
        values["llama.attention.key_length"] = values["llama.attention.value_length"] = 16
        for i, (kv, q, wide) in enumerate(zip(kv_heads, heads, widths, strict=True)):
            shapes = {"attn_q": (16 * q, 64), "attn_k": (16 * kv, 64), "attn_v": (16 * kv, 64)}
            shapes |= {"attn_output": (64, 16 * q), "ffn_gate": (wide, 64), "ffn_up": (wide, 64)}
            for name, shape in (shapes | {"ffn_down": (64, wide)}).items():
                value = rng.standard_normal(shape, np.float32) * np.float32(0.15)
                name = f"blk.{i}.{name}.weight"
                tensors[name] = Tensor(name, QuantType.F32, shape, value.view(np.uint8).reshape(-1))

    model = load_model(edited(llama_path, edit), threads=1)
    assert [spec.kv_heads for spec in model.layers] == kv_heads
    ids = [5, 9, 17, 4, 33, 21, 8]
    got = scoring.logits(Engine(model, context=64, kv_type="f32"), ids)
    assert np.abs(got - Oracle(edited(llama_path, edit)).logits(ids)).max() <= 1e-3


def test_missing_tensor_is_refused_by_name(llama_path: Path):
    with pytest.raises(BadModelFile, match=r"blk\.2\.ffn_up\.weight is missing"):
        read_source(edited(llama_path, lambda _, tensors: tensors.pop("blk.2.ffn_up.weight") and None))


def test_tensor_the_architecture_does_not_have_is_refused_by_name(llama_path: Path):
    extra = tensor("blk.0.attn_sinks.weight", 4)
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_sinks\.weight"):
        read_source(edited(llama_path, lambda _, tensors: tensors.update({extra.name: extra})))


def test_tensor_of_wrong_rank_is_refused(llama_path: Path):
    flat = tensor("blk.0.attn_q.weight", 64 * 64)
    with pytest.raises(BadModelFile, match=r"shape \[4096\]"):
        read_source(edited(llama_path, lambda _, tensors: tensors.update({flat.name: flat})))


def test_file_without_output_head_uses_the_embedding(llama_path: Path):
    model = load_model(edited(llama_path, lambda _, tensors: tensors.pop("output.weight") and None))
    assert model.weights.ends["head"] is model.weights.ends["embed"]
    assert model.bytes_per_token == model.nbytes


def test_separate_output_head_wins_over_the_embedding(llama_path: Path):
    model = load_model(llama_path)
    assert model.weights.ends["head"] is not model.weights.ends["embed"]
    assert model.bytes_per_token < model.nbytes


def test_progress_ends_at_the_total(llama_path: Path):
    seen: list[tuple[int, int]] = []
    load_model(llama_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and len(seen) == 2 + 4 * 7


def test_matrices_packed_before_are_taken(llama_path: Path):
    first = load_model(llama_path)
    second = load_model(llama_path, packed=first.matrices)
    assert second.weights.layers[3]["down"] is first.weights.layers[3]["down"]


def test_model_beyond_memory_is_refused_with_both_sizes(llama_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "available_bytes", lambda: 1000)
    with pytest.raises(CapacityExceeded, match=r"needs .* kB .* 1\.0 kB are free"):
        load_model(llama_path)


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_every_type_loads_and_computes_near_the_oracle(dtype: str, tmp_path: Path):
    path = write_gguf("qwen2", tmp_path / "model.gguf", dtype=dtype)
    model = load_model(path)
    assert list(model.type_bytes) == [dtype]
    assert np.isfinite(Oracle(path).logits([5, 6, 7])).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["DeepseekV4ForCausalLM"]}, "'DeepseekV4ForCausalLM'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised safetensors"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic'"),
        ({"layer_types": ["chunked_attention"] * 4, "use_sliding_window": True}, "chunked_attention"),
    ],
)
def test_unsupported_config_is_refused_by_name(hf_path: Path, changes: dict[str, Any], says: str):
    opened: Any = open_model_file(hf_path)
    opened.config = Metadata({**opened.config, **changes}, "config.json")
    with pytest.raises(UnsupportedModel) as error:
        read_source(opened)
    assert says in str(error.value)


def test_safetensors_without_config_is_refused(hf_path: Path, tmp_path: Path):
    bare = tmp_path / "model.safetensors"
    bare.write_bytes((hf_path / "model.safetensors").read_bytes())
    with pytest.raises(BadModelFile, match=r"config\.json"):
        load_model(bare)


def test_vision_parts_of_a_gemma3_are_left_out_and_said_so(tmp_path: Path):
    path = write_safetensors("gemma3", tmp_path / "model")
    plain = Oracle(path)
    text = json.loads((path / "config.json").read_text())
    opened: Any = open_model_file(path)
    opened.config = Metadata(
        {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}, "config.json"
    )
    vision = tensor("vision_tower.patch.weight", 4, 4)
    named = {f"language_model.{name}": t for name, t in opened.tensors.items()}
    opened.tensors = MappingProxyType({**named, vision.name: vision})
    oracle = Oracle(opened)
    assert "vision" in oracle.source.notes[0]
    assert np.array_equal(oracle.logits([5, 6]), plain.logits([5, 6]))


def test_gemma3_of_27b_scales_queries_by_hidden_over_heads(tmp_path: Path):
    opened = open_gguf(write_gguf("gemma3", tmp_path / "model.gguf"))
    values = {**opened.metadata, "gemma3.block_count": 62}
    opened.metadata = Metadata(values, "model.gguf")
    layers = dict(opened.tensors)
    for i in range(7, 62):
        layers |= {
            n.replace("blk.0.", f"blk.{i}."): t for n, t in opened.tensors.items() if n.startswith("blk.0.")
        }
    opened.tensors = MappingProxyType(layers)
    assert read_source(opened).cfg.scale == (64 / 4) ** -0.5
