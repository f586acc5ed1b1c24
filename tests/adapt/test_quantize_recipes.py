"""Types follow llama.cpp's rules, tensor by tensor, and what cannot take its type is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from freehold.adapt.quantize.planning import SizedOption, chosen_options
from freehold.adapt.quantize.recipes import FILE_TYPES, TensorChoice, choose, file_type, fitting
from freehold.base.errors import UsageError
from freehold.run.formats import QuantType, Tensor, open_gguf
from freehold.run.formats.gguf_writer import TensorPlan, Value, write_gguf

T = QuantType


def model(
    path: Path, *, layers: int = 16, width: int = 256, kv: int = 8, tied: bool = False, experts: int = 0
) -> Path:
    """Write a file with a llama's names; its weights are zeros."""
    keys: dict[str, Value] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": kv,
        "llama.expert_count": experts,
    }
    names = ["token_embd.weight", *([] if tied else ["output.weight"]), "output_norm.weight"]
    for i in range(layers):
        parts = (
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
            "ffn_gate_inp",
        )
        names += [f"blk.{i}.{part}.weight" for part in parts] + [f"blk.{i}.attn_norm.weight"]
    plans = [TensorPlan(n, T.F32, (width,) if "norm" in n else (2, width)) for n in names]
    return write_gguf(path, keys, plans, (bytes(p.nbytes) for p in plans))


def types(path: Path, name: str, *, weighted: bool = False) -> dict[str, TensorChoice]:
    with open_gguf(path) as source:
        return {c.tensor.name.removesuffix(".weight"): c for c in choose(source, name, weighted=weighted)}


def layers_with(found: dict[str, TensorChoice], part: str, type: QuantType) -> list[int]:
    return [i for i in range(16) if found[f"blk.{i}.{part}"].type is type]


def test_q4_k_m_gives_six_bits_to_values_and_outputs_of_the_layers_that_err_most(tmp_path: Path):
    found = types(model(tmp_path / "m.gguf"), "Q4_K_M")
    finer = [0, 1, 4, 7, 10, 13, 14, 15]  # the first and last eighth, and every third between
    assert layers_with(found, "attn_v", T.Q6_K) == layers_with(found, "ffn_down", T.Q6_K) == finer
    assert {found[f"blk.{i}.{p}"].type for i in range(16) for p in ("attn_q", "attn_k", "ffn_up")} == {T.Q4_K}
    assert found["output"].type is T.Q6_K and found["token_embd"].type is T.Q4_K


def test_small_and_one_dimensional_tensors_keep_their_type(tmp_path: Path):
    found = types(model(tmp_path / "m.gguf"), "Q2_K")
    for name in ("output_norm", "blk.3.attn_norm", "blk.3.ffn_gate_inp"):
        assert found[name].type is T.F32 and not found[name].changes and not found[name].fell_back


def test_tied_embedding_is_the_head_and_gets_its_type(tmp_path: Path):
    assert types(model(tmp_path / "m.gguf", tied=True), "Q3_K_M")["token_embd"].type is T.Q6_K


@pytest.mark.parametrize(
    ("name", "part", "layer", "type"),
    [
        ("Q2_K", "attn_v", 3, T.Q3_K),
        ("Q2_K", "ffn_down", 3, T.Q3_K),
        ("Q2_K", "attn_output", 3, T.Q3_K),
        ("Q2_K", "ffn_up", 3, T.Q2_K),
        ("Q3_K_S", "attn_v", 0, T.Q3_K),
        ("Q3_K_M", "attn_v", 1, T.Q5_K),
        ("Q3_K_M", "attn_v", 2, T.Q4_K),
        ("Q3_K_M", "ffn_down", 0, T.Q5_K),
        ("Q3_K_M", "ffn_down", 1, T.Q4_K),
        ("Q3_K_M", "attn_output", 1, T.Q4_K),
        ("Q3_K_L", "ffn_down", 9, T.Q5_K),
        ("Q4_K_S", "attn_v", 3, T.Q5_K),
        ("Q4_K_S", "attn_v", 4, T.Q4_K),
        ("Q4_K_S", "ffn_down", 1, T.Q5_K),
        ("Q4_K_S", "ffn_down", 2, T.Q4_K),
        ("Q5_K_M", "attn_v", 0, T.Q6_K),
        ("Q5_K_S", "attn_v", 0, T.Q5_K),
        ("IQ4_XS", "ffn_down", 0, T.Q5_K),
        ("IQ4_XS", "ffn_down", 2, T.IQ4_XS),
        ("Q8_0", "attn_v", 0, T.Q8_0),
        ("BF16", "ffn_up", 0, T.BF16),
    ],
)
def test_rules_of_llama_cpp(tmp_path: Path, name: str, part: str, layer: int, type: QuantType):
    assert types(model(tmp_path / "m.gguf"), name)[f"blk.{layer}.{part}"].type is type


def test_four_queries_to_a_key_buy_the_values_more_bits(tmp_path: Path):
    path = model(tmp_path / "m.gguf", kv=2)
    assert types(path, "Q2_K")["blk.3.attn_v"].type is T.Q4_K
    assert types(path, "IQ4_XS")["blk.3.attn_v"].type is T.Q5_K


def test_eight_experts_keep_keys_and_values_at_eight_bits(tmp_path: Path):
    found = types(model(tmp_path / "m.gguf", experts=8), "Q4_K_S")
    assert {found[f"blk.9.{p}"].type for p in ("attn_k", "attn_v")} == {T.Q8_0}
    assert found["blk.9.attn_output"].type is T.Q5_K


def test_a_calibration_spares_iq4_its_exception(tmp_path: Path):
    assert types(model(tmp_path / "m.gguf"), "IQ4_XS", weighted=True)["blk.0.ffn_down"].type is T.IQ4_XS


def test_rows_that_256_does_not_divide_fall_back_as_in_llama_cpp_and_say_so(tmp_path: Path):
    found = types(model(tmp_path / "m.gguf", width=96), "Q4_K_M")
    up, down = found["blk.2.ffn_up"], found["blk.4.ffn_down"]
    assert (up.wanted, up.type, up.fell_back) == (T.Q4_K, T.Q5_0, True)
    assert (down.wanted, down.type) == (T.Q6_K, T.Q8_0)
    assert found["output"].type is T.Q8_0
    assert types(model(tmp_path / "n.gguf", width=33), "Q4_K_M")["blk.2.ffn_up"].type is T.F16


@pytest.mark.parametrize(
    ("wanted", "given"),
    [(T.Q2_K, T.Q4_0), (T.Q3_K, T.Q4_0), (T.Q5_K, T.Q5_1), (T.IQ4_XS, T.IQ4_NL), (T.Q8_0, T.Q8_0)],
)
def test_fall_backs(wanted: QuantType, given: QuantType):
    row = Tensor("x.weight", T.F32, (1, 96), np.zeros(384, np.uint8))
    assert fitting(row, wanted) is given


def test_an_unknown_type_names_those_that_are_written():
    with pytest.raises(UsageError, match="Q9_K") as told:
        file_type("q9_k")
    assert "Q4_K_M" in told.value.hint
    assert file_type("q4_k")[0] == "Q4_K_M" and set(FILE_TYPES) >= {"IQ4_NL", "Q6_K", "F16"}


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_types_of_files_that_llama_cpp_made_are_those_it_chose(model_path: Callable[[str], Path], name: str):
    with open_gguf(model_path(name)) as source:
        stated = source.metadata.get_int("general.file_type")
        kind = next(k for k, v in FILE_TYPES.items() if v.id == stated)
        assert [c.tensor.name for c in choose(source, kind) if c.changes] == []


# --- the knapsack ----------------------------------------------------------------------------------------


def best(items: list[list[SizedOption]], limit: int) -> float:
    """Try everything."""
    found = {0: 0.0}
    for options in items:
        nexts: dict[int, float] = {}
        for size, cost in found.items():
            for o in options:
                if size + o.size <= limit:
                    key = size + o.size
                    nexts[key] = min(nexts.get(key, 9e9), cost + o.cost)
        found = nexts
    return min(found.values())


def test_mix_is_within_one_step_of_the_best_and_never_over_the_limit():
    rng = np.random.default_rng(3)
    for _ in range(40):
        items = []
        for _ in range(6):
            sizes = np.sort(rng.choice(np.arange(1, 40), 4, replace=False))
            costs = np.sort(rng.exponential(1.0, 4))[::-1]
            items.append([SizedOption(int(s), float(c)) for s, c in zip(sizes, costs, strict=True)])
        least = sum(min(o.size for o in options) for options in items)
        limit = least + int(rng.integers(0, 80))
        picked = chosen_options(items, limit)
        assert picked is not None
        total = sum(options[i].size for options, i in zip(items, picked, strict=True))
        cost = sum(options[i].cost for options, i in zip(items, picked, strict=True))
        step = max(o.cost for options in items for o in options)
        assert total <= limit and cost <= best(items, limit) + step
        assert chosen_options(items, least - 1) is None
        assert chosen_options(items, 10_000) == [3] * 6


def test_options_that_no_price_would_choose_are_left_out():
    items = [[SizedOption(1, 5.0), SizedOption(2, 4.9), SizedOption(3, 1.0), SizedOption(4, 1.5)]]
    assert chosen_options(items, 2) == [0] and chosen_options(items, 4) == [2]
