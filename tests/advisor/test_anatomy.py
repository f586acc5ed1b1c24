from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import quants
from freehold.base.catalog.model import Model
from freehold.base.errors import BadModelFile, UsageError
from freehold.base.layers import LayerSpec, kept_bytes, recurrent_bytes
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue, in_quant
from freehold.choose.advisor.file_anatomy import ROUNDINGS, from_file
from freehold.choose.advisor.fit import packed_bytes
from freehold.choose.advisor.interval import Interval
from freehold.run.formats import open_model_file
from freehold.run.formats.weight_types import LAYOUTS, QuantType, row_bytes
from freehold.run.models.binding.bind import read_source
from freehold.run.models.packing.packer import Rounding, packed_sizes, rounded_types
from tests.formats.gguf_writer import Entry, Value, write_gguf
from tests.models.golden import FORMS, write_model
from tests.vectors.weights import FAMILIES

U32, TEXT = 4, 8
LLAMA = Model(
    "a/b", "Llama 3.1", "Meta", "US", date(2026, 1, 1), ("x",), params_b=8.03, hidden=4096, vocab=128256
)
# bits per weight of Llama-3.1-8B by llama.cpp's tools/quantize/README.md
PUBLISHED = {
    "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_L": 4.2979, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818, "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip


def test_mixes_give_the_bits_a_weight_that_llama_cpp_prints():
    for quant, bits in PUBLISHED.items():
        found = from_catalogue(LLAMA, quant)
        assert found.weight_bytes * 8 / 8.03e9 == pytest.approx(bits, rel=0.003), quant


def test_bits_a_weight_are_those_of_the_block_layouts():
    for mix in quants.mixes():
        assert sum(mix.body.values()) == pytest.approx(1), mix.name
        for kind in {*mix.body, mix.embed, mix.head} & set(QuantType.__members__):
            layout = LAYOUTS[QuantType[kind]]
            assert quants.bits(kind) == layout.bytes * 8 / layout.elems, kind


def test_a_token_reads_a_row_of_the_embedding_and_its_experts_only():
    dense = from_catalogue(LLAMA, "BF16")
    assert dense.token_bytes == pytest.approx(2 * (8.03e9 - 4096 * 128256), rel=1e-5)
    assert dense.head_weights == 4096 * 128256
    moe = from_catalogue(catalog.model("Qwen/Qwen3-30B-A3B"), "BF16")
    assert moe.weights == 30_532_122_624
    assert moe.token_weights == pytest.approx(3_041_860_608, abs=20_000)


# bytes of tensors by the `total_size` of each repository's model.safetensors.index.json, in copies of it in public
# source files; and of GGUFs as llama-bench prints them, to a hundredth of a GiB
FILES = {
    ("meta-llama/Llama-3.1-8B-Instruct", "BF16"): 16_060_522_496,
    ("meta-llama/Llama-3.1-70B-Instruct", "BF16"): 141_107_412_992,
    ("Qwen/Qwen2.5-3B-Instruct", "BF16"): 6_171_877_376,
    ("Qwen/Qwen2.5-7B-Instruct", "BF16"): 15_231_233_024,
    ("Qwen/Qwen2.5-32B-Instruct", "BF16"): 65_527_752_704,
    ("Qwen/Qwen3-4B", "BF16"): 8_044_936_192,
    ("Qwen/Qwen3-8B", "BF16"): 16_381_470_720,
    ("Qwen/Qwen3-32B", "BF16"): 65_524_246_528,
    ("Qwen/Qwen3-30B-A3B", "BF16"): 61_064_245_248,
    ("google/gemma-3-4b-it", "BF16"): 8_600_158_944,
    ("microsoft/phi-4", "BF16"): 29_319_014_400,
    ("mistralai/Mistral-7B-Instruct-v0.3", "BF16"): 14_496_047_104,
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "BF16"): 93_405_585_408,
    ("openai/gpt-oss-20b", "MXFP4"): 13_761_264_768,
    ("sentence-transformers/all-MiniLM-L6-v2", "F32"): 90_868_376,
    ("Qwen/Qwen3.5-35B-A3B", "Q8_0"): round(34.36 * 2**30),
}


@pytest.mark.parametrize(("model_id", "quant"), list(FILES), ids=lambda v: v)
def test_a_model_weighs_what_its_published_files_do(model_id: str, quant: str):
    found = from_catalogue(catalog.model(model_id), quant).weight_bytes
    assert found == pytest.approx(FILES[model_id, quant], rel=0.01)


def test_a_model_published_in_few_bits_is_weighed_in_them():
    """GB of files by their pages: DeepSeek-R1 688.6, Kimi-K2.5 594 and a tower, V4-Flash 156 and a draft layer."""
    told = {
        "deepseek-ai/DeepSeek-R1": 688.6,
        "moonshotai/Kimi-K2.5": 595,
        "deepseek-ai/DeepSeek-V4-Flash": 160,
    }
    for model_id, gigabytes in told.items():
        model = catalog.model(model_id)
        assert from_catalogue(model, model.native).weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_experts_that_no_block_divides_are_stored_in_larger_types():
    """Gemma 4 26B's are 704 wide: its Q4_K_M has 15.63 GiB. Qwen3's are 768 wide, which blocks of 256 divide."""
    gemma = from_catalogue(catalog.model("google/gemma-4-26B-A4B-it"), "Q4_K_M")
    assert gemma.weight_bytes == pytest.approx(15.63 * 2**30, rel=0.01)
    assert {p.type for p in gemma.parts if p.role == "experts"} == {"Q4_K", "Q5_0", "Q8_0"}
    qwen = from_catalogue(catalog.model("Qwen/Qwen3-30B-A3B"), "Q4_K_M")
    assert {p.type for p in qwen.parts if p.role == "experts"} == {"Q4_K", "Q6_K"}


def test_a_gguf_is_weighed_without_towers_and_a_servers_weights_with_them():
    model = catalog.model("google/gemma-3-4b-it")
    assert from_catalogue(model, "Q8_0").weights == model.text_parameters
    assert from_catalogue(model, "BF16").weights == model.parameters
    tower = from_catalogue(model, "FP8").parts[-1]
    assert (tower.role, tower.type, tower.share) == ("towers", "BF16", 0)


def test_a_tied_head_that_a_file_stores_twice_is_loaded_once():
    model = catalog.model("Qwen/Qwen3-0.6B")
    assert model.parameters - model.text_parameters == model.hidden * model.vocab
    assert from_catalogue(model, "BF16").weights == model.text_parameters


def test_an_embedder_has_no_head():
    parts = {p.role: p.share for p in from_catalogue(catalog.model("BAAI/bge-m3"), "F32").parts}
    assert "head" not in parts and parts["embed"] < 1e-5 and parts["body"] == 1


def test_a_published_model_and_its_file_agree(tmp_path: Path):
    """Two layers of hidden 64 and vocab 128, tied, at Q8_0: every byte by hand."""
    anatomy = from_file(two_layers(tmp_path / "tiny.gguf"))
    body = 2 * (64 * 64 + 2 * 32 * 64)
    assert anatomy.weight_bytes == anatomy.token_bytes == (128 * 64 + body) * 34 // 32
    assert anatomy.weights == 128 * 64 + body
    assert (anatomy.quant, anatomy.context, anatomy.queries, anatomy.exact) == ("Q8_0", 512, 64, True)
    assert anatomy.layers == (LayerSpec("full", 2, 2, 16, 16),)
    assert anatomy.cache_bytes(100) == 2 * 2 * (16 + 16) * 2 * 100


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_a_files_layers_keep_what_its_family_says(family: str, form: str, tmp_path: Path):
    path = write_model(family, form, tmp_path)
    layers = [layer.keeps for layer in read_source(open_model_file(path)).network.layers]
    assert [from_file(path).cache_bytes(n) for n in (4, 100)] == [kept_bytes(layers, n) for n in (4, 100)]
    assert from_file(path).state_bytes == recurrent_bytes(layers)


WINDOWED = [name for name, tiny in FAMILIES.items() if "sliding_window" in tiny.hf]


@pytest.mark.parametrize("family", WINDOWED)
def test_a_config_without_its_window_is_weighed_with_the_one_that_its_class_takes(
    family: str, tmp_path: Path
):
    path = write_model(family, "hf", tmp_path)
    stated = json.loads((path / "config.json").read_text())
    del stated["sliding_window"]
    (path / "config.json").write_text(json.dumps(stated | {"max_position_embeddings": 8192}))
    try:
        layers = [layer.keeps for layer in read_source(open_model_file(path)).network.layers]
    except BadModelFile:  # a family that requires it
        return
    assert from_file(path).cache_bytes(8000) == kept_bytes(layers, 8000)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("family", ["qwen3", "qwen3moe", "phi3", "qwen3_5", "deepseek_v3", "nemotron_h"])
def test_rounded_weights_are_weighed_as_they_are_packed(family: str, rounding: Rounding, tmp_path: Path):
    path = write_model(family, "hf", tmp_path)
    source = read_source(open_model_file(path))
    packed = sum(packed_sizes(source, rounded_types(source, rounding)).values())
    weighed = from_file(path, rounding)
    assert weighed.quant == rounding
    assert packed_bytes(weighed) == pytest.approx(packed, rel=0.06)


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_an_indexers_keys_are_counted_where_layers_keep_them(family: str, form: str, tmp_path: Path):
    path = write_model(family, form, tmp_path)
    network = read_source(open_model_file(path)).network
    kept = [layer.keeps for layer in network.layers]
    anatomy = from_file(path)
    assert anatomy.index_topk == 10 and {spec.index for spec in anatomy.layers} <= {0, 32}
    assert kept_bytes(anatomy.layers, 4096) == kept_bytes(kept, 4096)


@pytest.mark.parametrize(
    "kinds", [{}, {"layer_types": None, "model_type": "mamba2"}, {"model_type": ["llama"]}]
)
def test_a_file_of_more_layers_than_any_family_takes_is_not_counted(kinds: dict[str, object], tmp_path: Path):
    path = write_model("llama", "hf", tmp_path)
    stated = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stated | {"num_hidden_layers": 1 << 39} | kinds))
    with pytest.raises(BadModelFile, match="num_hidden_layers is 549755813888; the limit is 1024"):
        from_file(path)


def test_window_state_and_latent_layers_are_counted_by_kind():
    layers = (
        LayerSpec("full", 2, 4, 64),
        LayerSpec("window", 6, 4, 64, window=512),
        LayerSpec("latent", 1, latent=512, rope=64),
        LayerSpec("deltanet", 3, state=1000, conv=100),
    )
    anatomy = Anatomy("x", "Q8_0", "y", (), layers, 8192, queries=256)
    assert anatomy.cache_by_kind(4096) == {
        "full": 2 * 4 * 128 * 4096 * 2,
        "window": 6 * 4 * 128 * 512 * 2,
        "latent": 576 * 4096 * 2,
        "state": 3 * (1000 + 100) * 4,
    }
    assert anatomy.cache_bytes(4096) == sum(anatomy.cache_by_kind(4096).values()) - anatomy.state_bytes
    assert anatomy.cache_by_kind(4096, conv_width=2)["state"] == 3 * (1000 * 4 + 100 * 2)
    assert Anatomy("x", "", "", (), (LayerSpec("window", 1, 1, 1, window=2),), 0, queries=1).attention_ops(
        3
    ) == 4 * (1 + 2 + 2)


def test_unknown_sizes_are_an_error_with_the_way_out():
    with pytest.raises(UsageError, match="number of parameters of a/b is not known"):
        from_catalogue(Model("a/b", "", "", "", date(2026, 1, 1), ("x",)), "Q8_0")
    with pytest.raises(UsageError) as caught:
        from_catalogue(LLAMA, "Q4_K_X")
    assert "Q4_K" in caught.value.hint


def test_intervals_scale_add_and_turn_over():
    speed = Interval.within(50, 1.25)
    assert (speed.low, speed.high, 45 in speed, 39 in speed) == (40, 62.5, True, False)
    assert str(speed) == "50.0 (40.0 to 62.5)"
    assert speed.inverse() == Interval(0.016, 0.02, 0.025)
    assert speed.times(2).plus(Interval.exactly(1)) == Interval(81, 101, 126)
    assert speed.as_json() == {"low": 40, "mid": 50, "high": 62.5, "level": 0.8}
    with pytest.raises(ValueError, match="no interval"):
        Interval(2, 1, 3)


def two_layers(path: Path) -> Path:
    def matrix(name: str, rows: int) -> Entry:
        return Entry(name, QuantType.Q8_0, (64, rows), bytes(row_bytes(QuantType.Q8_0, 64) * rows))

    names = [f"blk.{i}.{n}.weight" for i in range(2) for n in ("attn_q", "attn_k", "attn_v")]
    numbers = {"block_count": 2, "context_length": 512, "embedding_length": 64, "feed_forward_length": 64}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    metadata = {"general.architecture": Value(TEXT, "llama"), "general.file_type": Value(U32, 7)}
    metadata |= {f"llama.{k}": Value(U32, v) for k, v in numbers.items()}
    tensors = [matrix("token_embd.weight", 128), *(matrix(n, 64 if "_q" in n else 32) for n in names)]
    return write_gguf(path, metadata, tensors)


@pytest.mark.parametrize(
    "name, role, share, read_b",
    [  # 37 and 4.5 as their makers round them
        ("deepseek-ai/DeepSeek-R1", "experts", 8 / 256, 36.626),
        ("gemma4", "embed", 0, 4.699),
    ],
)
def test_what_a_token_does_not_read_is_experts_or_tables(name: str, role: str, share: float, read_b: float):
    found = from_catalogue(catalog.model(name), "Q8_0")
    rest = [p for p in found.parts if p.role == role and p.weights > 1e9]
    assert [p.share for p in rest] == pytest.approx([share], abs=1e-4)
    assert found.token_weights == pytest.approx(read_b * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "quant", "gigabytes"),
    [
        ("openai/gpt-oss-20b", "Q8_0", 12.1),
        ("openai/gpt-oss-20b", "Q4_K_M", 11.6),
        ("openai/gpt-oss-120b", "Q4_K_M", 62.8),
    ],
)
def test_quantised_gpt_oss_keeps_its_experts_as_published(name: str, quant: str, gigabytes: float):
    anatomy = from_catalogue(catalog.model(name), quant)
    assert {p.type for p in anatomy.parts if p.role == "experts"} == {"MXFP4"}
    assert anatomy.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)
    again = in_quant(from_catalogue(catalog.model(name), "MXFP4"), quant)  # as fit does from a file
    assert again.weight_bytes == pytest.approx(anatomy.weight_bytes, rel=0.005)
