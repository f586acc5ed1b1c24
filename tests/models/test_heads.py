"""A model's own drafting head: bound from every form of file, computed as `transformers` does, or left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from freehold import _native as native
from freehold.run.formats import open_model_file
from freehold.run.models.binding import bind, binder
from freehold.run.models.binding.bind import assemble, assemble_head, read_source
from freehold.run.models.family import Ops
from freehold.run.models.load import LoadedModel, head_gain, load_model
from freehold.run.models.oracle.session import DenseMatrix, KvStore, NumpyOps, PictureRows
from freehold.run.models.packing.packer import packed_sizes
from freehold.run.models.tiny import make
from tests.models.golden import BOUND, GOLDEN, write_model
from tests.vectors.files import write_gguf
from tests.vectors.weights import FAMILIES

HEADS = [name for name, tiny in FAMILIES.items() if tiny.head]
FORMS = [
    (name, form)
    for name in HEADS
    for form in ("hf", "published", "gguf")
    if FAMILIES[name].gguf or form != "gguf"
]


def golden(family: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the tokens; and the head's logits after each but the first, and after the token it drafted first."""
    with np.load(GOLDEN / f"{family}.npz") as data:
        return data["ids"].astype(np.int32), data["drafted"]


def target_rows(model: LoadedModel, ids: np.ndarray) -> np.ndarray:
    """Compute what the output matrix reads of every row."""
    blocks = -(-len(ids) // native.BLOCK_TOKENS)
    recurrent = any(spec.state for spec in model.layers)
    plan = model.build(model.new_cache(blocks, "f32", slots=1 if recurrent else 0), len(ids))
    rows = np.arange(len(ids), dtype=np.int32)
    hidden = np.empty((len(ids), plan.hidden_width), np.float32)
    pieces = np.array([[0, 0, len(ids), -1, 0]], np.int32) if recurrent else None
    table = np.arange(blocks, dtype=np.int32)[None]
    plan.run(ids, rows, rows * 0, table, rows[:0], hidden_rows=rows, hidden=hidden, pieces=pieces)
    return hidden


def drafted(model: LoadedModel, ids: np.ndarray, steps: list[int]) -> np.ndarray:
    """Run the head over the target's rows in pieces, then over its own row for the token it drafted."""
    assert model.drafter is not None
    blocks = -(-len(ids) // native.BLOCK_TOKENS)
    plan = model.drafter.build(model.drafter.new_cache(blocks, "f32"), max(steps), model.threads)
    table = np.arange(blocks, dtype=np.int32)[None]
    own = np.empty((1, plan.hidden_width), np.float32)
    out, at = [], 0

    def step(tokens: np.ndarray, rows: np.ndarray) -> None:
        places = np.arange(len(tokens), dtype=np.int32)
        options = {"hidden_rows": places[-1:], "hidden": own, "features": np.ascontiguousarray(rows)}
        out.append(plan.run(tokens, places + at, places * 0, table, places, **options)[0])

    rows = target_rows(model, ids)
    for count in steps:
        step(ids[at + 1 : at + 1 + count], rows[at : at + count])
        at += count
    step(out[-1][-1:].argmax(-1).astype(np.int32), own.copy())
    return np.concatenate(out)


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_head_computes_the_golden_logits_whole_and_in_pieces(family: str, form: str, tmp_path: Path):
    ids, expected = golden(family)
    model = load_model(write_model(family, form, tmp_path), threads=1)
    for steps in ([len(ids) - 1], [20, *[1] * (len(ids) - 21)]):
        assert np.abs(drafted(model, ids, steps) - expected).max() / expected.std() <= BOUND


@pytest.mark.parametrize("family", HEADS)
def test_oracle_s_head_computes_them_too(family: str, tmp_path: Path):
    ids, expected = golden(family)
    path = write_model(family, "hf", tmp_path)
    rows = target_rows(load_model(path, threads=1), ids)[:-1]
    source = read_source(open_model_file(path))
    assert source.drafter is not None
    target = assemble(source, lambda t: DenseMatrix(t, True), lambda rope: rope)
    weights = assemble_head(source, target, lambda t: DenseMatrix(t, True), lambda rope: rope)
    assert weights is not None
    network = source.drafter.network
    ops = NumpyOps(ids[1:], KvStore(1, False), [network.layers[0].keeps], PictureRows(features=rows))
    network.forward(cast(Ops, ops), weights)
    assert ops.result is not None
    assert np.abs(ops.result - expected[:-1]).max() / expected.std() <= BOUND


@pytest.mark.parametrize("family", HEADS)
def test_file_whose_head_was_stripped_loads_without_one(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = replace(FAMILIES[family], head="")
    path = make.write_safetensors(plain, tmp_path / "model")
    model = load_model(path, threads=1)
    assert model.drafter is None and binder.LEFT_OUT not in model.notes


def test_head_that_lacks_a_tensor_is_left_out_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    take = bind.take_head

    def without_fc(*args):
        rest, head = take(*args)
        return rest, {name: tensor for name, tensor in head.items() if "eh_proj" not in name}

    monkeypatch.setattr(bind, "take_head", without_fc)
    model = load_model(write_gguf("qwen3_5-head", tmp_path / "model.gguf"), threads=1)
    assert model.drafter is None
    assert model.notes == (f"{binder.LEFT_OUT}: tensor nextn.eh_proj.weight is missing",)


def test_head_counts_in_memory_and_not_in_what_a_token_reads(tmp_path: Path):
    with_head = load_model(write_gguf("qwen3_5-head", tmp_path / "a.gguf"), threads=1)
    without = replace(FAMILIES["qwen3_5-head"], head="")
    alone = load_model(make.write_gguf(without, tmp_path / "b.gguf"), threads=1)
    assert with_head.nbytes > alone.nbytes and with_head.bytes_per_token == alone.bytes_per_token
    assert with_head.drafter is not None and with_head.drafter.bytes_per_token > 0


def test_head_is_left_out_where_memory_holds_the_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_gguf("qwen3_5-head", tmp_path / "model.gguf")
    whole = sum(packed_sizes(read_source(open_model_file(path))).values())
    monkeypatch.setattr("freehold.run.models.load.available_bytes", lambda: whole - 1)
    model = load_model(path, threads=1)
    assert model.drafter is None and model.notes[-1] == f"{binder.LEFT_OUT}: they do not fit in memory"


def test_head_is_loaded_where_it_promises_to_pay_or_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_gguf("qwen3_5-head", tmp_path / "model.gguf")
    monkeypatch.setattr("freehold.run.models.load.head_gain", lambda *_: 1.04)
    left_out, required, never = (load_model(path, threads=1, head=head) for head in (None, True, False))
    assert left_out.drafter is None and required.drafter is not None and never.drafter is None
    promise = "they promise 1.04 times the speed; --draft head loads them"
    assert left_out.notes == (f"{binder.LEFT_OUT}: {promise}",) and required.notes == never.notes == ()
    assert left_out.nbytes == never.nbytes < required.nbytes
    monkeypatch.setattr("freehold.run.models.load.head_gain", lambda *_: 1.05)
    assert load_model(path, threads=1, head=None).drafter is not None


def test_rows_that_bring_their_own_experts_promise_less(tmp_path: Path):
    """By bytes: a head of a tenth, verified rows that cost an eighth of a step or, with experts, most of one."""
    source = read_source(open_model_file(write_gguf("glm4_moe-head", tmp_path / "model.gguf")))
    sizes, shares = packed_sizes(source), source.shares
    step = sum(size * shares[name] for name, size in sizes.items())
    experts = sum(size * shares[name] for name, size in sizes.items() if shares[name] < 1)
    gain = head_gain(source, {})
    assert 0 < experts < step and 0 < gain < 1.8 / (1 + 0.13 + 0.87 * experts / step)
    dense = read_source(open_model_file(write_gguf("qwen3_5-head", tmp_path / "dense.gguf")))
    assert gain < head_gain(dense, {}) < 1.8 / 1.13
