"""What a folder, a GGUF, a name of the store or of the catalogue says about a model, without any engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from freehold.base.config import load_settings
from freehold.base.errors import BadModelFile, ModelNotFound, UsageError
from freehold.outgrow import flags as schema
from freehold.outgrow.planning import wording
from freehold.outgrow.planning.facts import deployed, nodes_on, of_path, quantisation
from tests.formats.gguf_writer import SMALL_METADATA, SMALL_TENSORS, Value, write_gguf


def write_model(
    folder: Path,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    template: str = "{{ messages }}{{ tools }}",
    auto_map: dict | None = None,
    **config,
) -> Path:
    """Write a folder with a config.json and one tensor of a tiny Qwen2."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "model_type": "qwen2",
        "hidden_size": heads * 32,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8192,
        **config,
    }
    if auto_map:
        said["auto_map"] = auto_map
    (folder / "config.json").write_text(json.dumps(said))
    tokens = {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    write_tensors(folder / "model.safetensors", {"model.embed_tokens.weight": (64, heads * 32)})
    return folder


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], kind: str = "BF16", width: int = 2) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(at))


def test_a_folder_says_heads_family_template_and_bytes(tmp_path):
    model = of_path(write_model(tmp_path / "my-model"))
    assert (model.name, model.heads, model.kv_heads, model.head_size) == ("my-model", 4, 2, 32)
    assert model.family == "qwen2.5" and model.template and model.tools and model.thinks is False
    assert model.anatomy.context == 8192 and model.anatomy.weight_bytes == 64 * 128 * 2
    assert model.source == str((tmp_path / "my-model").resolve()) and model.here


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_code_of_its_own_is_found_in_any_of_its_files_however_deep(tmp_path, name):
    folder = write_model(tmp_path)
    assert of_path(folder).own_code == ""
    said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**said, "inner": [{"auto_map": {"AutoModel": ["m.X", None]}}]}))
    assert of_path(folder).own_code == f"{name}: auto_map names m.X"


@pytest.mark.parametrize(
    "said, word, quant",
    [
        ({"quant_method": "fp8"}, "fp8", "FP8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", "INT4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq", "INT4-32"),
        ({"quant_method": "mxfp4"}, "mxfp4", "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt", "NVFP4"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            "compressed-tensors",
            "INT4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "compressed-tensors",
            "FP8",
        ),
    ],
)  # fmt: skip
def test_how_weights_are_packed_is_read_from_config_json(said, word, quant):
    assert quantisation({"quantization_config": said}) == (word, quant)


def test_weights_packed_in_whole_numbers_count_as_what_they_hold(tmp_path):
    folder = write_model(tmp_path, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})
    write_tensors(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.qweight": (128, 16)}, "I32", 4)
    anatomy = of_path(folder).anatomy
    assert (
        anatomy.quant == "INT4" and anatomy.weights == 128 * 16 * 8 and anatomy.weight_bytes == 128 * 16 * 4
    )


def test_blocks_that_share_scales_are_counted_along_the_width_that_is_sliced(tmp_path):
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = write_model(
        tmp_path, quantization_config=fp8, intermediate_size=2560, moe_intermediate_size=1536
    )
    assert of_path(folder).blocks == 12
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    assert (
        of_path(write_model(tmp_path / "awq", quantization_config=awq, intermediate_size=29568)).blocks == 231
    )
    assert of_path(write_model(tmp_path / "wide")).blocks == 0


def test_types_that_our_readers_refuse_are_counted_by_their_bytes(tmp_path):
    folder = write_model(tmp_path)
    write_tensors(folder / "model.safetensors", {"x": (64, 64)}, "F8_E5M2", 1)
    assert of_path(folder).anatomy.weight_bytes >= 64 * 64


def test_a_folder_that_is_none_says_what_is_missing(tmp_path):
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        of_path(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadModelFile, match="holds no JSON object"):
        of_path(tmp_path)


def test_a_name_of_the_catalogue_is_what_the_hub_has(tmp_path):
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    model = deployed(settings, "Qwen/Qwen3-8B", name="mine")
    assert (model.name, model.source, model.family, model.here) == ("mine", "Qwen/Qwen3-8B", "qwen3", False)
    assert model.kv_heads == 8 and model.anatomy.quant == "BF16"
    with pytest.raises(ModelNotFound):
        deployed(settings, "qwen33:8b")


def test_boxes_of_hardware_are_said_once():
    assert (nodes_on("2x8xh100").rig.name, nodes_on("2x8xh100").count) == ("8xh100", 2)
    assert nodes_on("8xh100", 2) == nodes_on("2 x 8xh100") and not nodes_on("h100").here
    with pytest.raises(UsageError, match="2 boxes, and 3"):
        nodes_on("2x8xh100", 3)


def test_a_fine_tunes_name_goes_before_its_bases_shape():
    assert wording.family(("DeepSeek-R1-Distill-Qwen-7B",), "", "qwen2") == "deepseek-r1-distill"
    assert wording.family(("my-model",), "", "qwen2") == "qwen2.5"
    assert wording.family(("Qwen/Qwen3-Coder-30B",), "Qwen3", "qwen3_moe") == "qwen3-coder"
    assert wording.family(("notqwen3",), "", "unheard") == ""


def test_every_parser_name_is_in_its_engines_registry():
    flags = {
        "vllm": ("--tool-call-parser", "--reasoning-parser"),
        "sglang": ("--tool-call-parser", "--reasoning-parser"),
        "trtllm": ("--tool_parser", "--reasoning_parser"),
    }
    for family, engines in ((each.key, each.engines) for each in wording._families()):
        for engine, names in engines.items():
            known = schema.nearest(engine, "")
            for flag, name in zip(flags[engine], (names.tool, names.reasoning), strict=True):
                spec = known.find(flag)
                assert spec and (not name or name in spec.choices), (family, engine, flag, name)


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "generation_config.json", "params.json"])
def test_code_of_its_own_is_found_in_files_that_are_rarely_there(tmp_path, name):
    folder = write_model(tmp_path)
    (folder / name).write_text(json.dumps({"auto_map": None, "inner": {"auto_map": {"A": "m.X"}}}))
    assert of_path(folder).own_code == f"{name}: auto_map names m.X"


def test_what_no_model_has_is_refused_before_it_is_read_whole(tmp_path):
    folder = write_model(tmp_path)
    deep = folder / "deep_config.json"
    for text in ('{"a":' * 400 + "1" + "}" * 400, '{"a":' * 100_000):
        deep.write_text(text)
        with pytest.raises(BadModelFile, match="deep_config"):
            of_path(folder)
    deep.unlink()
    template = folder / "chat_template.jinja"
    with template.open("wb") as file:
        file.truncate(1 << 33)  # a hole: it takes no disk
    with pytest.raises(BadModelFile, match="more than"):
        of_path(folder)
    template.unlink()
    os.mkfifo(template)
    with pytest.raises(BadModelFile, match="not a plain file"):
        of_path(folder)


@pytest.mark.parametrize(
    "pooling, role",
    [(None, "generator"), (0, "generator"), (1, "embedder"), (3, "embedder"), (4, "reranker")],
)
def test_a_gguf_that_pools_gives_vectors_or_scores(tmp_path, pooling, role):
    pools = {} if pooling is None else {"llama.pooling_type": Value(4, pooling)}
    file = write_gguf(tmp_path / "m.gguf", SMALL_METADATA | pools, SMALL_TENSORS)
    model = of_path(file)
    assert model.anatomy.role == role and model.gives_text == (role == "generator")
