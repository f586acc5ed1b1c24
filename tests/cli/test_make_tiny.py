"""`freehold make-tiny`: models that load, the same every time, of every registered family of decoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jinja2
import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from freehold.base.errors import UnsupportedModel
from freehold.choose.advisor.file_anatomy import from_file
from freehold.cli.main import cli
from freehold.run.formats import open_model_file
from freehold.run.models.binding.bind import family_of, gguf_family, read_source
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.families import registered
from freehold.run.models.family import Family
from freehold.run.models.tiny import make
from freehold.serve.reports.card import file_facts


def run(*args: str) -> str:
    done = CliRunner().invoke(cli, ["make-tiny", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_both_formats_hold_one_model(tmp_path: Path):
    made = json.loads(run("qwen3moe", "--out", str(tmp_path), "--json"))
    read = [read_source(open_model_file(Path(made[form]))) for form in ("gguf", "safetensors")]
    assert read[0].family is read[1].family
    assert [t.numpy().tolist() for t in read[0].matrices()] == [
        t.numpy().tolist() for t in read[1].matrices()
    ]


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_5-eyes",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen2_5_vl",
        "glm4v",
        "glm4v_moe",
        "paddleocr_vl",
        "internvl",
    ],
)
def test_both_formats_of_a_model_that_sees_hold_one_tower(name: str, tmp_path: Path):
    paths = json.loads(run(name, "--out", str(tmp_path), "--json"))
    assert Path(paths["mmproj"]).name == f"mmproj-{name}.gguf"
    towers = [read_tower(open_model_file(Path(paths[form]))) for form in ("mmproj", "safetensors")]
    gguf, folder = (each for each in towers if each is not None)
    assert gguf.cfg.eps == pytest.approx(folder.cfg.eps)
    for key in ("mean", "deviation"):  # a GGUF's numbers have 32 bits
        assert getattr(gguf.cfg.pixels, key) == pytest.approx(getattr(folder.cfg.pixels, key))
    assert replace(gguf.cfg, eps=folder.cfg.eps, pixels=folder.cfg.pixels) == folder.cfg
    for a, b in zip((gguf.ends, *gguf.layers), (folder.ends, *folder.layers), strict=True):
        assert a.keys() == b.keys()
        for key, bound in a.items():
            values = bound.tensor.numpy().reshape(bound.spec.shape)
            assert np.array_equal(values, b[key].tensor.numpy().reshape(bound.spec.shape)), key


def test_both_forms_of_a_whisper_hold_one_model(tmp_path: Path):
    paths = json.loads(run("whisper", "--out", str(tmp_path), "--json"))
    with (
        open_model_file(Path(paths["safetensors"])) as own,
        open_model_file(Path(paths["ctranslate2"])) as other,
    ):
        assert own.tensors.keys() == other.tensors.keys()
        for name, tensor in own.tensors.items():
            assert np.array_equal(tensor.numpy(), other.tensors[name].numpy()), name
    with pytest.raises(UnsupportedModel, match="a GGUF cannot express whisper"):
        run("whisper", "--out", str(tmp_path), "--format", "gguf")
    with pytest.raises(UnsupportedModel, match="qwen3 is not a speech model"):
        run("qwen3", "--out", str(tmp_path), "--format", "ctranslate2")


def test_a_model_of_text_alone_has_no_tower(tmp_path: Path):
    paths = json.loads(run("qwen3", "--out", str(tmp_path), "--json"))
    assert "mmproj" not in paths
    assert all(read_tower(open_model_file(Path(path))) is None for path in paths.values())
    with pytest.raises(UnsupportedModel, match="qwen3 has no tower"):
        make.write_mmproj(make.config("qwen3"), tmp_path / "mmproj.gguf")


@pytest.mark.parametrize("name", ["qwen3_5-eyes", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"])
def test_the_template_of_a_model_that_sees_writes_the_marks_that_its_config_names(name: str, tmp_path: Path):
    folder = Path(
        json.loads(run(name, "--out", str(tmp_path), "--format", "safetensors", "--json"))["safetensors"]
    )
    config, texts = (
        json.loads((folder / file).read_text()) for file in ("config.json", "tokenizer_config.json")
    )
    parts = [{"type": "text", "text": "see"}, {"type": "image"}, {"type": "text", "text": "?"}]
    template = jinja2.Template(texts["chat_template"], keep_trailing_newline=True)
    prompt = template.render(messages=[{"role": "user", "content": parts}], add_generation_prompt=True)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids
    marks = [config[key] for key in ("vision_start_token_id", "image_token_id", "vision_end_token_id")]
    assert [id for id in ids if id >= min(marks)] == marks
    plain = template.render(messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert plain == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["voxtral", "gemma4-ears", "gemma4_unified-ears"])
def test_a_model_that_hears_has_its_tower_in_both_forms(name: str, tmp_path: Path):
    paths = json.loads(run(name, "--out", str(tmp_path), "--json"))
    for form in ("mmproj", "safetensors"):
        with open_model_file(Path(paths[form])) as opened:
            source = read_tower(opened, hears=True)
        assert source is not None and source.tower.hears


def test_a_seed_draws_other_weights_and_none_the_same_ones(tmp_path: Path):
    for folder, seed in (("a", ()), ("b", ()), ("c", ("--seed", "7"))):
        run("llama", "--out", str(tmp_path / folder), "--format", "gguf", *seed)
    a, b, c = ((tmp_path / folder / "llama.gguf").read_bytes() for folder in "abc")
    assert a == b != c


def test_the_list_names_the_class_of_every_configuration():
    rows = [json.loads(line) for line in run("--list", "--json").splitlines()]
    assert [row["name"] for row in rows] == make.names()
    assert all(row["class"] for row in rows)


@pytest.mark.parametrize(
    "family",
    [f for f in registered() if not f.encoder and f.prefix is None],
    ids=lambda f: f.gguf_architecture,
)
def test_every_family_of_decoders_has_a_configuration(family: Family):
    made = [make.config(name) for name in make.names()]
    found = [family_of(tiny.hf)[0] for tiny in made] + [gguf_family(t.gguf)[0] for t in made if t.gguf]
    assert any(each is family for each in found)


def test_an_unknown_family_is_refused_with_the_nearest_name():
    done = CliRunner().invoke(cli, ["make-tiny", "qwen3mo"])
    assert done.exit_code != 0 and "qwen3moe" in str(getattr(done.exception, "hint", done.output))


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "kimi_linear", "phi4"])
def test_fit_and_show_name_the_context_that_the_engine_gives(name: str, tmp_path: Path):
    """YaRN stretches what a file was made for, and Kimi Linear states it under a key of its own."""
    for path in json.loads(run(name, "--out", str(tmp_path), "--json")).values():
        with open_model_file(Path(path)) as opened:
            given = read_source(opened).cfg.context
            assert from_file(Path(path)).context == file_facts(opened)["context"] == given


def test_show_says_which_tensor_keeps_a_file_from_loading(tmp_path: Path):
    path = Path(json.loads(run("qwen3moe", "--out", str(tmp_path), "--format", "gguf", "--json"))["gguf"])
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_down_exps.weight", b"blk.0.ffn_down_lost.weight"))
    with open_model_file(path) as opened:
        facts = file_facts(opened)
    assert not facts["runs"]
    assert facts["notes"] == ["it does not load: tensor blk.0.ffn_down_exps.weight is missing"]
