"""Adapters: what peft computes from the same files, in both formats on both bases; and what is refused, by name."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold import _native as native
from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.run.engine import Engine, scoring
from freehold.run.formats.lora import CONFIG, MAX_RANK, WEIGHTS, open_lora
from freehold.run.models.family import Turns
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.lora import load_adapter, pack_pairs
from freehold.run.models.tiny import make
from tests.models.golden import BOUND, GOLDEN, write_model
from tests.vectors.adapters import CASES, Case, adaptable, peft_config, write_for, write_gguf, write_peft

FORMS = [
    (name, base, form)
    for name, case in CASES.items()
    for base in ("hf", "gguf")
    for form in ("peft", "gguf")
    if form == "peft" or not case.settings  # a GGUF has one alpha for all ranks
]


def written(case: Case, form: str, folder: Path, dtype: str = "F32") -> Path:
    if form == "peft":
        return write_peft(case, folder / "adapter", dtype=dtype)
    return write_gguf(case, folder / "adapter.gguf", dtype=dtype)


def logits(model: LoadedModel, ids: list[int], path: Path, chunk: int = 512) -> np.ndarray:
    engine = Engine(model, context=64, kv_type="f32", max_num_batched_tokens=chunk, speculate=False)
    return scoring.logits(engine, ids, adapter=load_adapter(path, model, "made-up"))


@pytest.mark.parametrize(("name", "base", "form"), FORMS)
def test_base_and_adapter_compute_what_peft_computes_of_the_merged(
    name: str, base: str, form: str, tmp_path: Path
):
    case = CASES[name]
    with np.load(GOLDEN / f"lora-{name}.npz") as data:
        ids, full = data["ids"].tolist(), data["full"]
    model = load_model(write_model(case.family, base, tmp_path), threads=1)
    path = written(case, form, tmp_path)
    whole = logits(model, ids, path)
    assert np.abs(whole - full).max() <= BOUND
    assert np.array_equal(logits(model, ids, path, chunk=7), whole)


LAID_OTHERWISE = ("glm4v",)  # whose GGUF refuses adapters of q and k, as families/glm4.py says


@pytest.mark.parametrize("name", [name for name in make.names() if make.config(name).gguf])
def test_an_adapter_changes_both_formats_of_a_model_alike(name: str, tmp_path: Path):
    """Llama's GGUF lays rotary rows in pairs and Qwen3.5's takes DeltaNet's heads in turns: an adapter must follow."""
    tiny = make.config(name)
    hf = load_model(make.write_safetensors(tiny, tmp_path / name), threads=1)
    gguf = load_model(make.write_gguf(tiny, tmp_path / "m.gguf"), threads=1)
    if not any(True for _ in adaptable(hf)):
        return
    path = write_for(hf, tmp_path / "adapter", dtype="F32", strength=0.3)
    ids = [5, 6, 7, 8, 9]
    if {each for each, _ in adaptable(hf)} != {each for each, _ in adaptable(gguf)}:
        assert name in LAID_OTHERWISE
        with pytest.raises(UnsupportedModel, match="not computed with adapters"):
            logits(gguf, ids, path)
        path = write_for(gguf, tmp_path / "both", dtype="F32", strength=0.3)
    assert np.abs(logits(hf, ids, path) - logits(gguf, ids, path)).max() < 1e-3


@pytest.mark.parametrize("base", ["hf", "gguf"])
def test_an_adapter_in_memory_computes_as_its_file_does(base: str, tmp_path: Path):
    case = CASES["llama"]
    model = load_model(write_model(case.family, base, tmp_path), threads=1)
    path = written(case, "gguf" if base == "gguf" else "peft", tmp_path)
    modules = open_lora(path).modules
    pairs = {name: (pair.a.numpy(), pair.b.numpy()) for name, pair in modules.items()}
    held = pack_pairs(pairs, case.alpha / case.r, model, "held")
    engine = Engine(model, context=64, kv_type="f32", speculate=False)
    ids = [5, 6, 7, 8, 9]
    assert np.array_equal(scoring.logits(engine, ids, adapter=held), logits(model, ids, path))


def test_an_adapter_in_memory_has_the_digest_of_its_values(tmp_path: Path):
    """Prefixes that the cache keeps for one step's adapter must not be another step's."""
    model = load_model(write_model("llama", "hf", tmp_path), threads=1)
    path = write_for(model, tmp_path / "adapter", dtype="F32")
    pairs = {name: (pair.a.numpy(), pair.b.numpy()) for name, pair in open_lora(path).modules.items()}
    first = pack_pairs(pairs, 2.0, model, "step")
    assert pack_pairs(pairs, 2.0, model, "step").digest == first.digest
    module, (a, b) = next(iter(pairs.items()))
    changed = pack_pairs({**pairs, module: (a, b + np.float32(1e-3))}, 2.0, model, "step")
    assert len({first.digest, changed.digest, pack_pairs(pairs, 1.0, model, "step").digest}) == 3


def test_an_adapter_in_memory_names_what_does_not_fit(tmp_path: Path):
    model = load_model(write_model("llama", "hf", tmp_path), threads=1)
    wrong = {"model.layers.0.self_attn.q_proj.weight": (np.zeros((4, 8), "f4"), np.zeros((8, 4), "f4"))}
    with pytest.raises(BadModelFile, match=r"the adapter mine changes .*q_proj"):
        pack_pairs(wrong, 1.0, model, "mine")
    with pytest.raises(UnsupportedModel, match="embed"):
        pack_pairs({"model.embed_tokens.weight": (np.zeros((4, 8), "f4"),) * 2}, 1.0, model, "mine")


def test_heads_in_turns_come_back():
    values = np.arange(3 * 20, dtype=np.float32).reshape(3, 20)
    turns = Turns(axis=1, groups=3, per=2, width=3, first=2)
    there = turns.reordered(values, to_gguf=True)
    assert there[0].tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 14, 15, 16, 5, 6, 7, 11, 12, 13, 17, 18, 19]
    assert np.array_equal(turns.reordered(there, to_gguf=False), values)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_narrow_floats_are_taken_as_they_are(dtype: str, tmp_path: Path):
    model = load_model(write_model("qwen3", "hf", tmp_path), threads=1)
    wide = logits(model, [5, 6, 7], written(CASES["qwen3"], "peft", tmp_path / "wide"))
    for form in ("peft", "gguf"):
        narrow = written(CASES["qwen3"], form, tmp_path / form, dtype)
        assert np.array_equal(logits(model, [5, 6, 7], narrow), wide)


def test_a_quantised_adapter_is_decoded(tmp_path: Path):
    model = load_model(write_model("qwen2", "gguf", tmp_path), threads=1)
    case = Case("qwen2", r=32)
    near = logits(model, [5, 6, 7], write_gguf(case, tmp_path / "q8.gguf", dtype="Q8_0"))
    far = logits(model, [5, 6, 7], write_gguf(case, tmp_path / "f32.gguf"))
    assert 0 < np.abs(near - far).max() < 0.1


def test_both_formats_of_one_adapter_are_told_apart_by_their_digests(tmp_path: Path):
    paths = [written(CASES["llama"], form, tmp_path) for form in ("peft", "gguf")]
    first, other = map(open_lora, paths)
    stronger = open_lora(write_peft(CASES["llama"], tmp_path / "b", lora_alpha=8))
    assert len({first.digest, other.digest, stronger.digest}) == 3
    assert open_lora(tmp_path / "adapter" / "adapter_model.safetensors").digest == first.digest
    assert len(first.modules) == len(other.modules) == 4 * 7


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"a_field_of_tomorrow": {"x": 1}}, "a_field_of_tomorrow"),
        ({"rank_pattern": {".*_proj": 8}}, r"'.*_proj'"),
        ({"rank_pattern": {"q_proj": 7}}, "rank 7; its tensors have 8"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "no lora_alpha"),
        ({"r": MAX_RANK + 1}, f"r is {MAX_RANK + 1}; expected more than 0, to {MAX_RANK}"),
        ({"r": 4}, "rank 4; its tensors have 8"),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(
    settings: dict[str, Any], named: str, tmp_path: Path
):
    with pytest.raises(BadModelFile) as told:
        open_lora(write_peft(CASES["llama"], tmp_path, **settings))
    assert named in told.value.message


def renamed(old: str, new: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if old in n]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def dropped(tensors: dict[str, np.ndarray]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def reranked(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name][:, :5]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed("layers.0.self_attn.q_proj", "embed_tokens"), "embed_tokens"),
        (renamed("model.layers.0.self_attn.q_proj", "lm_head"), "lm_head"),
        (renamed("layers.3.", "layers.4."), "layer 4; tiny has 4, counted from 0"),
        (renamed("mlp.up_proj", "mlp.experts"), "mlp.experts"),
        (renamed("layers.0.self_attn.q_proj", "layers.0.self_attn.k_norm"), "k_norm"),
        (renamed("q_proj.lora_A.weight", "q_proj.lora_magnitude_vector"), "lora_magnitude_vector"),
        (renamed("q_proj.lora_A", "q_proj.lora_embedding_A"), "lora_embedding_A"),
        (renamed("layers.0.self_attn.q_proj", "layers.9.mlp.x"), "layers.9.mlp.x"),
        (dropped, "only one of its two"),
        (reranked, "B [64, 5]"),
    ],
)
def test_modules_that_are_not_applied_are_refused_by_name(
    change: Callable[[dict[str, np.ndarray]], None], named: str, tmp_path: Path
):
    model = load_model(write_model("llama", "hf", tmp_path), threads=1, name="tiny")
    with pytest.raises(BadModelFile) as told:
        load_adapter(write_peft(CASES["llama"], tmp_path / "a", changes=change), model, "x")
    assert named in told.value.message


def test_another_models_adapter_is_refused_with_both_sizes(tmp_path: Path):
    model = load_model(write_model("llama", "hf", tmp_path), threads=1, name="tiny")
    with pytest.raises(BadModelFile, match=r"96 x 64; tiny has 64 x 64") as told:
        load_adapter(write_peft(CASES["qwen3"], tmp_path / "a"), model, "x")
    assert told.value.hint == "it was made for tiny random qwen3"
    with pytest.raises(BadModelFile, match="'qwen2'; tiny is 'llama'"):
        load_adapter(write_gguf(replace(CASES["qwen2"], settings={}), tmp_path / "a.gguf"), model, "x")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_an_adapter_that_holds_nan_is_refused_by_its_name(dtype: str, tmp_path: Path):
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        next(iter(tensors.values()))[1, 2] = np.nan

    model = load_model(write_model("llama", "hf", tmp_path), threads=1)
    path = write_peft(CASES["llama"], tmp_path / "a", dtype=dtype, changes=spoil)
    with pytest.raises(BadModelFile, match="holds NaN or infinity") as error:
        load_adapter(path, model, "x")
    assert str(path) in error.value.message


def test_a_model_is_no_adapter_and_an_adapter_no_other_kind(tmp_path: Path):
    with pytest.raises(BadModelFile, match="no adapter"):
        open_lora(write_model("llama", "gguf", tmp_path))
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json"):
        open_lora(write_model("llama", "hf", tmp_path))
    with pytest.raises(UnsupportedModel, match="'ia3'"):
        open_lora(write_gguf(CASES["llama"], tmp_path / "a.gguf", adapter_type="ia3"))
    with pytest.raises(BadModelFile, match=r"alpha is 0"):
        open_lora(write_gguf(CASES["llama"], tmp_path / "b.gguf", alpha=0.0))
    with pytest.raises(BadModelFile, match="is not a model file"):
        (tmp_path / "text").write_text("hello")
        open_lora(tmp_path / "text")


def test_a_file_much_longer_than_its_matrices_is_refused_before_it_is_read(tmp_path: Path):
    path = write_gguf(Case("qwen2"), tmp_path / "long.gguf")
    os.truncate(path, 1 << 40)  # a terabyte of nothing, of which the digest would be computed
    with pytest.raises(BadModelFile, match="1,099,511,627,776 bytes, and its matrices"):
        open_lora(path)


def test_native_refuses_pairs_that_do_not_fit():
    pool = native.Threads(1)

    def floats(n: int, k: int, type: str = "F32") -> native.Matrix:
        width = {"F32": 4, "Q8_0": 1.0625}[type]
        return native.Matrix.pack(np.zeros(int(n * k * width), np.uint8), type, n, k, pool)

    weight, adapter = floats(48, 64, "Q8_0"), native.Adapter()
    for a, b in (
        (floats(16, 32), floats(48, 16)),
        (floats(16, 64), floats(32, 16)),
        (floats(16, 64), floats(48, 32)),
        (floats(8, 64), floats(48, 8)),
        (floats(32, 64, "Q8_0"), floats(48, 32)),
    ):
        with pytest.raises(Exception, match="adapter"):
            adapter.add(weight, a, b, 1.0)
    with pytest.raises(Exception, match="finite"):
        adapter.add(weight, floats(16, 64), floats(48, 16), float("inf"))
    adapter.add(weight, floats(16, 64), floats(48, 16), 1.0)
    with pytest.raises(Exception, match="twice"):
        adapter.add(weight, floats(16, 64), floats(48, 16), 1.0)
    assert adapter.nbytes == 4 * 16 * (64 + 48)


keys = st.sampled_from(
    [*peft_config(CASES["qwen2"]), "alpha_pattern", "rank_pattern", "use_rslora", "eva_config"]
)
leaves = st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5)
values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=9), v), max_leaves=4)
patterns = st.dictionaries(st.sampled_from(["q_proj", "^model"]) | st.text(max_size=5), leaves)


@pytest.mark.heavy
@given(st.dictionaries(keys, values | patterns, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_settings_of_an_adapter_are_taken_or_refused(tmp_path: Path, changed: dict[str, Any]):
    case = Case("llama", targets=("q_proj",))
    folder = tmp_path if (tmp_path / WEIGHTS).exists() else write_peft(case, tmp_path)
    (folder / CONFIG).write_text(json.dumps(peft_config(case) | changed))
    with suppress(BadModelFile):
        assert all(0 < pair.scale < float("inf") for pair in open_lora(folder).modules.values())


def test_a_damaged_adapter_is_refused_or_read_and_never_an_exception_of_ours(tmp_path: Path):
    case, rng = Case("llama", targets=("q_proj",)), random.Random(1)
    peft = write_peft(case, tmp_path / "peft")
    whole = [peft / CONFIG, peft / WEIGHTS, write_gguf(case, tmp_path / "x.gguf")]
    read = 0
    for path in whole:
        data = path.read_bytes()
        for _ in range(120):
            changed = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
            for _ in range(rng.choice((1, 2, 8)) if changed else 0):
                changed[rng.randrange(min(len(changed), 2000))] = rng.randrange(256)
            path.write_bytes(changed)
            with suppress(BadModelFile):
                read += bool(open_lora(path if path.suffix == ".gguf" else peft).modules)
        path.write_bytes(data)
    assert read > 20  # not every change matters
