"""The references themselves: the generator has not drifted, and the written files hold the same values."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from freehold.base.errors import UnsupportedModel
from freehold.run.models.tiny.make import declared
from tests.vectors import files, weights

GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).parents[2]
# Weights that a file holds in another order or form than they were drawn in do not lie on the grid of Q8_0.
AS_DRAWN = [
    name
    for name, tiny in weights.FAMILIES.items()
    if tiny.gguf
    and all(isinstance(n, str) for _, _, spec in declared(tiny) for n in (*spec.hf[:1], *spec.gguf[:1]))
]


@pytest.mark.parametrize("family", weights.FAMILIES)
def test_golden_file_was_made_from_these_weights(family):
    with np.load(GOLDEN / f"{family}.npz") as golden:
        assert int(golden["weights_crc32"]) == weights.digest(family)
        assert json.loads(str(golden["config"])) == weights.FAMILIES[family].hf
        assert np.array_equal(golden["ids"], weights.token_ids(family))
        assert golden["full"].shape == (weights.LENGTH, weights.VOCAB)
        assert golden["full"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_safetensors_hold_the_exact_weights(tmp_path, dtype):
    files.write_safetensors("qwen2", tmp_path, dtype=dtype)
    stored = load_file(tmp_path / "model.safetensors")
    made = weights.tensors("qwen2")
    assert stored.keys() == made.keys()
    assert all(np.array_equal(stored[name].astype(np.float32), made[name]) for name in made)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", AS_DRAWN)
def test_gguf_holds_the_exact_weights_in_four_types(tmp_path, family, dtype):
    path = files.write_gguf(family, tmp_path / "tiny.gguf", dtype=dtype)
    made = files.gguf_tensors(family)
    stored = gguf.GGUFReader(path).tensors
    assert [t.name for t in stored] == list(made)
    for tensor in stored:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(made[tensor.name].shape)
        assert np.array_equal(value, made[tensor.name]), tensor.name


def test_family_without_a_gguf_form_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="gemma3-scalar"):
        files.write_gguf("gemma3-scalar", tmp_path / "tiny.gguf")


def test_vocabulary_spells_every_utf8_byte():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(files.tokenizer_json()))
    text = "the naïve 数 🙂 \x00\r\n\x7f end"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|im_start|>").ids == [files.IM_START]


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).with_name("greedy").glob("*.json")), ids=lambda p: p.stem
)
def test_greedy_reference_decides_nine_steps_in_ten(path):
    prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 20
    for entry in prompts:
        assert entry["prompt"] and len(entry["tokens"]) == len(entry["second"]) == len(entry["margin"]) <= 64
        assert len(entry["tokens"]) == 64 or entry["ended"]
    margins = [margin for entry in prompts for margin in entry["margin"]]
    assert sum(margin >= 0.5 for margin in margins) >= 0.9 * len(margins)


def test_the_table_of_models_holds_every_tiny_model_and_no_error_beyond_a_thousandth():
    rows = json.loads((ROOT / "docs" / "reference" / "families.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == sorted(weights.FAMILIES)
    assert max(error for row in rows for error in row["errors"].values()) <= 1e-3
