"""Mixtures of experts: what a token reads, what a batch must not change, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import kept_bytes
from freehold.base.types import SamplingParams
from freehold.choose.advisor.file_anatomy import from_file, of_expert
from freehold.run.engine import Engine, scoring
from freehold.run.formats import Metadata, QuantType, Tensor, open_model_file
from freehold.run.models.binding.bind import read_source, refusal
from freehold.run.models.load import load_model
from freehold.run.models.lora import load_adapter
from freehold.run.models.oracle.session import Oracle
from tests.engine.pumping import pumped
from tests.models.golden import BOUND, FORMS, golden, native_logits, write_model
from tests.vectors import weights
from tests.vectors.adapters import ATTENTION, MLP, Case, pairs, write_peft
from tests.vectors.files import safetensors_bytes, write_gguf, write_safetensors

MIXTURES = ["mixtral", "qwen2moe", "qwen3moe", "olmoe"]
# Sigmoid routers, corrections, sparse mixers, sinks and windows, chunks and weighed inputs, factors, shared experts.
OTHERS = ["dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "hunyuan_v1_moe", "llama4", "minimax_m2", "phimoe"]
OTHERS += ["afmoe", "exaone_moe", "laguna", "mellum", "qwen3_vl_moe"]  # a token reads nothing of its tower
OTHERS += ["cohere2_moe", "mimo_v2_flash", "step3p7"]


def reopened(path: Path, tensors: dict[str, Tensor] | None = None, /, **keys: Any) -> Any:
    """Open a model file with other metadata, or other tensors."""
    opened: Any = open_model_file(path)
    if path.is_dir():
        opened.config = Metadata({**opened.config, **keys}, "config.json")
    else:
        opened.metadata = Metadata({**opened.metadata, **keys}, "model.gguf")
    if tensors is not None:
        opened.tensors = MappingProxyType(tensors)
    return opened


@pytest.mark.parametrize("family", [*MIXTURES, *OTHERS])
def test_sixteen_mixed_streams_are_what_each_is_alone(family: str, tmp_path: Path):
    form = "hf" if family == "llama4" else "gguf"  # a GGUF of it states no chunk
    model = load_model(write_model(family, form, tmp_path), threads=2)
    asks = [
        ([5 + (7 * i + j * j) % 200 for j in range(3 + 5 * i)], SamplingParams(temperature=i % 2, seed=i))
        for i in range(16)
    ]

    def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> Any:
        return engine.generate(prompt, params, max_tokens=24, logprobs=2)

    alone = [list(answer(Engine(model, context=128), *ask)) for ask in asks]
    engine = Engine(model, context=128, blocks=40, max_num_batched_tokens=48)
    running = [answer(engine, *ask) for ask in asks]
    assert pumped(engine, running) == alone


def test_a_token_reads_the_chosen_experts_alone(tmp_path: Path):
    model = load_model(write_model("qwen2moe", "gguf", tmp_path), threads=1)
    experts = sum(m.rows * m.cols for name, m in model.matrices.items() if "_exps" in name)
    others = sum(m.rows * m.cols for name, m in model.matrices.items() if "_exps" not in name)
    assert experts == 4 * 8 * 3 * 32 * 64
    embedding = weights.VOCAB * 64
    assert model.weights_per_token == others - embedding + experts * 2 // 8
    assert model.bytes_per_token < model.nbytes


@pytest.mark.parametrize(
    ("family", "form"),
    [(name, form) for name, form in FORMS if name in {*MIXTURES, *OTHERS} and form != "legacy"],
)
def test_fit_counts_the_weights_that_the_engine_multiplies(family: str, form: str, tmp_path: Path):
    path = write_model(family, form, tmp_path)
    anatomy, model = from_file(path), load_model(path, threads=1)
    assert sum(p.weights * p.share for p in anatomy.parts if p.role not in ("norms", "embed")) == (
        pytest.approx(
            model.weights_per_token, abs=4 * 64
        )  # a GGUF holds the shared expert's gate as a vector
    )
    assert sum(spec.count for spec in anatomy.layers) == len(model.layers)
    assert anatomy.cache_bytes(100) == kept_bytes(model.layers, 100)
    assert refusal(anatomy.structure) == ""


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_fit_keeps_of_a_window_what_the_engine_keeps(family: str, tmp_path: Path):
    path = tmp_path / "model.gguf"
    architecture = weights.FAMILIES[family].architecture
    write_gguf(family, path, keys={f"{architecture}.attention.sliding_window": 16})
    anatomy, model = from_file(path), load_model(path, threads=1)
    assert {spec.window for spec in model.layers} == {16}
    assert anatomy.cache_bytes(100) == kept_bytes(model.layers, 100)


def test_experts_that_a_file_holds_apart_are_read_like_stacked_ones(tmp_path: Path):
    """As GGUFs of Mixtral did in early 2024: `blk.0.ffn_gate.3.weight`."""
    path = write_gguf("mixtral", tmp_path / "model.gguf")
    tensors: dict[str, Tensor] = {}
    for name, tensor in open_model_file(path).tensors.items():
        if "_exps" not in name:
            tensors[name] = tensor
            continue
        for e, raw in enumerate(tensor.raw.reshape(tensor.shape[0], -1)):
            each = name.replace("_exps", f".{e}")
            tensors[each] = Tensor(each, tensor.type, tensor.shape[1:], raw)
    assert sum(of_expert(name) for name in tensors) == 4 * 3 * 4
    apart = Oracle(reopened(path, tensors))
    assert np.array_equal(apart.logits([5, 6, 7]), Oracle(path).logits([5, 6, 7]))
    del tensors["blk.2.ffn_up.3.weight"]
    with pytest.raises(BadModelFile, match=r"blk\.2\.ffn_up\.3\.weight is missing"):
        read_source(reopened(path, tensors))


def test_the_count_of_experts_is_read_as_transformers_writes_it_back(tmp_path: Path):
    path = write_safetensors("qwen3moe", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["num_local_experts"] = config.pop("num_experts")
    (path / "config.json").write_text(json.dumps(config))
    assert read_source(open_model_file(path)).cfg.mixture.experts == 8


@pytest.mark.parametrize(
    ("family", "form", "key", "value", "says"),
    [
        ("olmoe", "hf", "clip_qkv", 8.0, "clip_qkv is 8.0: clipped"),
        ("olmoe", "gguf", "olmoe.attention.clamp_kqv", 8.0, "clamp_kqv is 8.0"),
        ("qwen2moe", "hf", "use_sliding_window", True, "use_sliding_window"),
        ("qwen3moe", "gguf", "qwen3moe.expert_count", 0, "dense models of the architecture qwen3moe"),
        ("qwen3moe", "hf", "moe_intermediate_size", 40, "the expert width is 40"),
    ],
)
def test_variants_that_are_not_computed_are_refused_by_name(
    family: str, form: str, key: str, value: object, says: str, tmp_path: Path
):
    with pytest.raises(UnsupportedModel) as error:
        read_source(reopened(write_model(family, form, tmp_path), **{key: value}))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("family", "form", "key", "value", "says"),
    [
        ("mixtral", "gguf", "llama.expert_used_count", 5, "5 of 4 experts"),
        ("mixtral", "gguf", "llama.expert_count", 1 << 40, "to 4096"),
        ("qwen3moe", "gguf", "qwen3moe.expert_count", 16, "blk.0.ffn_gate_inp.weight has shape [8, 64]"),
        ("qwen3moe", "hf", "num_experts", 16, "mlp.gate.weight has shape [8, 64]"),
        ("qwen3moe", "hf", "mlp_only_layers", [1], "layers.1.mlp.gate_proj.weight is missing"),
        ("qwen3moe", "hf", "mlp_only_layers", "all", "expected a list of layers"),
        (
            "mixtral",
            "gguf",
            "llama.expert_feed_forward_length",
            1 << 20,
            "2 experts of a token are 2097152 wide",
        ),
        ("mixtral", "hf", "intermediate_size", 1 << 20, "2 experts of a token are 2097152 wide"),
    ],
)
def test_sizes_that_the_tensors_contradict_are_an_error(
    family: str, form: str, key: str, value: object, says: str, tmp_path: Path
):
    with pytest.raises(BadModelFile) as error:
        read_source(reopened(write_model(family, form, tmp_path), **{key: value}))
    assert says in str(error.value)


def test_a_quantised_router_is_refused_by_its_name(tmp_path: Path):
    path = write_model("mixtral", "gguf", tmp_path)
    tensors = dict(open_model_file(path).tensors)
    name = "blk.1.ffn_gate_inp.weight"
    tensors[name] = Tensor(name, QuantType.Q8_0, (4, 64), np.zeros(4 * 68, np.uint8))
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_gate_inp\.weight has type Q8_0; only floats"):
        read_source(reopened(path, tensors))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_narrow_floats_give_the_golden_logits_too(dtype: str, tmp_path: Path):
    """The weights have no bits below either type's."""
    model = load_model(write_safetensors("qwen2moe", tmp_path / "model", dtype=dtype), threads=1)
    ids, full = golden("qwen2moe")
    assert np.abs(native_logits(model, ids, [len(ids)], kv_type="f32") - full).max() <= BOUND


# --- adapters --------------------------------------------------------------------------------------


def test_an_adapter_of_attention_computes_what_the_merged_model_does(tmp_path: Path):
    case = Case("qwen3moe", r=4, targets=ATTENTION)
    merged = weights.tensors("qwen3moe")
    for module, (a, b) in pairs(case).items():
        merged[f"{module}.weight"] = merged[f"{module}.weight"] + np.float32(case.alpha / case.r) * (b @ a)
    other = write_safetensors("qwen3moe", tmp_path / "merged")
    (other / "model.safetensors").write_bytes(safetensors_bytes(merged, "F32"))
    model = load_model(write_safetensors("qwen3moe", tmp_path / "model"), threads=1)
    adapter = load_adapter(write_peft(case, tmp_path / "adapter"), model, "made-up")
    ids = weights.token_ids("qwen3moe").tolist()
    got = scoring.logits(Engine(model, context=64, kv_type="f32"), ids, adapter=adapter)
    assert np.abs(got - Oracle(other).logits(ids)).max() <= BOUND


@pytest.mark.parametrize(("targets", "named"), [(MLP, "mlp.experts.0.gate_proj"), (("gate",), "mlp.gate")])
def test_adapters_of_experts_and_routers_are_refused_by_name(
    targets: tuple[str, ...], named: str, tmp_path: Path
):
    model = load_model(write_model("qwen3moe", "hf", tmp_path), threads=1)
    with pytest.raises(UnsupportedModel) as error:
        load_adapter(write_peft(Case("qwen3moe", r=4, targets=targets), tmp_path / "adapter"), model, "x")
    assert named in error.value.message
