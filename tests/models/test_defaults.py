"""Sampling defaults come from the model's author where stated, and say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile
from freehold.run.formats import Metadata, open_gguf, open_model_file
from freehold.run.store.parameters import FREEHOLD, FREEHOLD_DEFAULTS, sampling_defaults
from tests.vectors.files import write_gguf, write_safetensors


@pytest.fixture
def hf_file(tmp_path: Path) -> Any:
    return open_model_file(write_safetensors("qwen2", tmp_path / "model"))


def test_generation_config_is_read_with_its_origin(hf_file: Any):
    found = sampling_defaults(hf_file)
    assert found["temperature"] == (0.7, "generation_config.json: temperature")
    assert found["top_k"] == (20, "generation_config.json: top_k")
    assert found["min_p"] == (FREEHOLD_DEFAULTS["min_p"], FREEHOLD)


def test_do_sample_false_means_greedy(hf_file: Any):
    hf_file.generation_config = Metadata({"do_sample": False, "temperature": 0.9}, "generation_config.json")
    assert sampling_defaults(hf_file)["temperature"] == (0.0, "generation_config.json: do_sample")


def test_value_out_of_range_is_refused_by_name(hf_file: Any):
    hf_file.generation_config = Metadata({"top_p": 7.0}, "generation_config.json")
    with pytest.raises(BadModelFile, match="top_p"):
        sampling_defaults(hf_file)


def test_gguf_sampling_keys_are_read(tmp_path: Path):
    opened = open_gguf(write_gguf("qwen2", tmp_path / "model.gguf"))
    assert sampling_defaults(opened)["temperature"] == (FREEHOLD_DEFAULTS["temperature"], FREEHOLD)
    opened.metadata = Metadata({**opened.metadata, "general.sampling.temp": 0.5}, "model.gguf")
    assert sampling_defaults(opened)["temperature"] == (0.5, "general.sampling.temp")


@pytest.mark.parametrize(
    "name, temperature, top_k",
    [
        ({"general.basename": "Qwen2.5-Coder", "general.size_label": "0.5B"}, 0.7, 20),
        ({"general.name": "Gemma 3 270m", "general.basename": "gemma-3"}, 1.0, 64),
        ({"general.name": "Meta Llama 3.1 8B Instruct"}, 0.6, 0),
        ({"general.name": "Somebody's own"}, FREEHOLD_DEFAULTS["temperature"], 0),
    ],
)
def test_family_s_recommendation_fills_a_file_that_states_nothing(
    tmp_path: Path, name: dict[str, str], temperature: float, top_k: int
):
    opened = open_gguf(write_gguf("qwen2", tmp_path / "model.gguf"))
    rest = {k: v for k, v in opened.metadata.items() if k not in ("general.name", "general.basename")}
    opened.metadata = Metadata({**rest, **name}, "model.gguf")
    found = sampling_defaults(opened)
    assert found["temperature"][0] == temperature and found["top_k"][0] == top_k
    assert found["repetition_penalty"] == (1.0, FREEHOLD)
    origin = found["temperature"][1]
    assert (origin == FREEHOLD) == (name == {"general.name": "Somebody's own"})


def test_a_file_s_own_word_wins_over_its_family(tmp_path: Path):
    opened = open_gguf(write_gguf("qwen2", tmp_path / "model.gguf"))
    own = {"general.name": "Gemma 3 270m", "general.sampling.temp": 0.3}
    opened.metadata = Metadata({**opened.metadata, **own}, "model.gguf")
    found = sampling_defaults(opened)
    assert found["temperature"] == (0.3, "general.sampling.temp") and found["top_k"][1] == FREEHOLD
