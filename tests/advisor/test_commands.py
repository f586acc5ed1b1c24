"""Every line that advice can print, for every model and engine, checked against what is known to be there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import quants
from freehold.base.catalog.model import Model
from freehold.base.errors import ModelNotFound
from freehold.choose.advisor.engines import engines, line
from freehold.choose.advisor.places import quants_of

FLAGS = json.loads((Path(__file__).parent.parent / "vectors" / "serve_flags.json").read_text())
LLAMA_FLAGS = {"-hf": True, "-c": True}
MLX_FLAGS = {"--model": True, "--hf-path": True, "-q": False, "--q-bits": True, "--mlx-path": True}


def lines(engine: str) -> list[tuple[Model, str, str]]:
    found = []
    for model in catalog.models():
        for mix in quants.mixes():
            made = line(model, mix.name, engine, devices=2, context=8192)
            assert bool(made.command) != bool(made.why_none), (model.id, mix.name, engine)
            if made.command:
                found.append((model, mix.name, made.command))
    return found


def split_flags(words: list[str], known: dict[str, bool]) -> tuple[list[str], dict[str, str]]:
    """Return the plain words and the flags with their values; an unknown flag fails."""
    plain: list[str] = []
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            assert word in known, word
            given[word] = next(rest) if known[word] else ""
        else:
            plain.append(word)
    return plain, given


def test_llama_server_lines_name_a_file_that_is_known():
    for model, quant, command in lines("llama.cpp"):
        words, given = split_flags(shlex.split(command), LLAMA_FLAGS)
        assert words == ["llama-server"]
        repo, _, tag = given["-hf"].partition(":")
        assert tag == quant and any(r.repo == repo and quant in r.quants for r in model.repos), command


def test_our_own_lines_name_what_the_store_finds():
    found = lines("freehold")
    assert found
    for model, _, command in found:
        words, flags = split_flags(shlex.split(command), {"--context": True, "--model": True})
        verbs = {"generator": "run", "transcriber": "transcribe"}
        assert words[:2] == ["freehold", verbs.get(model.role, "embed")]
        name = flags["--model"] if model.role == "transcriber" else words[2]
        if "/" not in name:
            assert catalog.find(name).model == model.id
        else:
            assert name.partition(":")[0] in {r.repo for r in model.repos}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_servers_get_flags_that_they_have_and_weights_as_published(engine: str):
    found = lines(engine)
    assert found
    for model, _, command in found:
        words, given = split_flags(shlex.split(command.replace("python -m ", "")), FLAGS[engine]["flags"])
        assert model.hub and model.id in (*words, *given.values())
        rounds = {"vllm": "fp8_per_tensor", "sglang": "fp8"}.get(engine)
        assert given.get("--quantization", rounds) == rounds  # what freehold deploy plans


def test_mlx_lines_convert_what_is_published_and_serve_it():
    for model, _, command in lines("mlx"):
        *made, served = command.split(" && ")
        _, given = split_flags(shlex.split(served), MLX_FLAGS)
        target = given["--model"]
        if made:
            given = split_flags(shlex.split(made[0]), MLX_FLAGS)[1]
            assert given["--mlx-path"] == target
            target = given["--hf-path"]
        assert target == model.id and model.hub


def test_every_engine_has_a_line_for_some_model():
    assert all(lines(e.name) for e in engines())


def test_a_line_of_a_model_without_a_gguf_says_so():
    model = next(m for m in catalog.models() if not any(r.format == "gguf" for r in m.repos))
    made = line(model, "Q4_K_M", "llama.cpp")
    assert not made.command and "no repository with a GGUF" in made.why_none
    with pytest.raises(ModelNotFound):
        catalog.find(model.id)


@pytest.mark.parametrize(
    ("model_id", "tried"),
    [
        ("openai/gpt-oss-120b", ("MXFP4",)),
        ("moonshotai/Kimi-K2.6", ("INT4-32", "Q4_K_M")),
        ("deepseek-ai/DeepSeek-V4-Pro", ("MXFP4-FP8", "Q4_K_M")),
        ("deepseek-ai/DeepSeek-V3.1", ("FP8", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "INT4")),
        ("Qwen/Qwen3-8B", ("BF16", "FP8", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "INT4")),
    ],
)
def test_advice_begins_with_what_the_lab_publishes(model_id: str, tried: tuple[str, ...]):
    assert quants_of(catalog.model(model_id)) == tried


def test_a_command_for_many_users_has_room_for_each():
    model = catalog.model("qwen3:8b")
    one = line(model, "Q4_K_M", "llama.cpp", context=8192).command
    many = line(model, "Q4_K_M", "llama.cpp", context=8192, users=10).command
    assert one.endswith(" -c 8192") and many.endswith(" -c 81920 -np 10")
    ours = line(model, "Q4_K_M", "freehold", context=8192, users=10).command
    assert ours == "freehold serve qwen3:8b --context 8192"
