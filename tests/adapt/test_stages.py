"""One stage's adapter is the next one's base: what the chain computes, what receipts say, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt.align import AlignSettings, align
from freehold.adapt.distil import DistilSettings, distil
from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.adapt.stages import StageBase, StageBases, descent, gate_of, receipt_of, warnings_of
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, StoreError, UsageError
from freehold.run.formats import open_lora
from freehold.run.local import load
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store
from tests.adapt.test_finetune import few_facts, same_bits, weights, written

pytest.importorskip("torch")
__all__ = ["few_facts"]
SETTINGS = FinetuneSettings(rate=2e-2, rank=4, batch=4, epochs=2, replay=1, max_length=128, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("llama"), folder / "tiny.gguf")
    return Store(Settings(home=folder / "home")).resolve(str(path))


def examples(path: Path, letter: str, answer: str) -> Path:
    return written(path, [{"prompt": f"{letter} {i}?", "completion": answer} for i in range(8)])


@pytest.fixture(scope="module")
def first(model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that answers questions of n."""
    folder = tmp_path_factory.mktemp("first")
    finetune(model, examples(folder / "n.jsonl", "n", "=k!"), folder / "n", replace(SETTINGS, epochs=10))
    return folder / "n"


def logits(model: ModelRef, adapter: Path) -> np.ndarray:
    from freehold.adapt.sampling import open_sampling

    with open_sampling(model, beneath=adapter, threads=1, context=64) as opened:
        return opened.answer_logits([5, 6, 7], [8, 9, 10])


def test_a_second_adapter_holds_the_first_and_both_answer(model: ModelRef, first: Path, tmp_path: Path):
    out = tmp_path / "m"
    record = finetune(
        model, examples(tmp_path / "m.jsonl", "m", "+q."), out, replace(SETTINGS, epochs=10), adapter=first
    )
    assert record["adapter"]["rank"] == 8
    below, whole = open_lora(first).modules, open_lora(out).modules
    for name, pair in below.items():
        assert np.array_equal(whole[name].a.numpy()[:4], pair.a.numpy())
        assert np.array_equal(whole[name].b.numpy()[:, :4], pair.b.numpy())
        assert whole[name].scale == pair.scale
        assert not np.array_equal(whole[name].a.numpy()[:4], whole[name].a.numpy()[4:])
    for adapter in (out, out / "adapter.gguf"):
        with load(model.path, adapters={"both": adapter}, threads=1) as llm:
            assert llm.chat("m 3?", adapter="both", max_tokens=8, temperature=0.0).text == "+q."


def test_a_chain_that_learnt_nothing_is_its_parent(model: ModelRef, first: Path, tmp_path: Path):
    settings = replace(SETTINGS, rate=1e-12, epochs=1, replay=0)
    finetune(model, examples(tmp_path / "m.jsonl", "m", "+q."), tmp_path / "m", settings, adapter=first)
    assert np.abs(logits(model, first) - logits(model, tmp_path / "m")).max() < 1e-3


def test_continuing_begins_with_the_adapters_values_and_keeps_its_rank(
    model: ModelRef, first: Path, tmp_path: Path
):
    settings = replace(SETTINGS, rate=1e-12, epochs=1, rank=2, replay=0)
    data = examples(tmp_path / "m.jsonl", "m", "+q.")
    record = finetune(model, data, tmp_path / "m", settings, adapter=first, continued=True)
    assert record["adapter"]["rank"] == 4 and record["inputs"]["settings"]["rank"] == 4
    assert record["inputs"]["parent"]["continued"]
    for one, other in zip(weights(first), weights(tmp_path / "m"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_base_of_a_stage_is_the_model_with_the_adapter(model: ModelRef, first: Path, tmp_path: Path):
    """What it answered before, the reference of pairs and the rehearsed text: all are the parent's."""
    pairs = [{"prompt": f"n {i}?", "chosen": "ab", "rejected": "cd"} for i in range(4)]
    test = [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(20, 24)]
    data, lines = examples(tmp_path / "m.jsonl", "m", "+q."), []
    for continued in (False, True):
        record = finetune(
            model,
            data,
            tmp_path / f"m{continued}",
            replace(SETTINGS, epochs=1),
            adapter=first,
            continued=continued,
            test=written(tmp_path / "t.jsonl", test),
            on_step=lines.append,
        )
        assert record["before_after"]["all"]["before"] == 4
        assert lines[0]["drift"] == pytest.approx(0, abs=1e-6)
        aligned = align(
            model,
            written(tmp_path / "p.jsonl", pairs),
            tmp_path / f"a{continued}",
            AlignSettings(rank=4, batch=4, replay=0, test_share=0, nll=0, threads=1),
            adapter=first,
            continued=continued,
        )
        assert aligned["first_loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert aligned["mismatch"] is None


def test_a_chain_resumes_to_the_same_bits(model: ModelRef, first: Path, tmp_path: Path):
    data = examples(tmp_path / "m.jsonl", "m", "+q.")
    finetune(model, data, tmp_path / "whole", SETTINGS, adapter=first)

    def stop(row: Any) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model, data, tmp_path / "again", SETTINGS, adapter=first, on_step=stop)
    finetune(model, data, tmp_path / "again", SETTINGS, adapter=first)
    assert same_bits(tmp_path / "whole", tmp_path / "again")


def test_receipts_link_to_their_parents_and_show_the_line(model: ModelRef, first: Path, tmp_path: Path):
    data = examples(tmp_path / "m.jsonl", "m", "+q.")
    second = finetune(model, data, tmp_path / "m", replace(SETTINGS, epochs=1), adapter=first)
    parent = receipt_of(first)
    assert parent is not None
    assert second["inputs"]["parent"]["adapter"] == parent["adapter"]["digest"] == open_lora(first).digest
    third = tmp_path / "k"
    finetune(model, data, third, replace(SETTINGS, epochs=1), adapter=tmp_path / "m", continued=True)
    line = descent(third)
    assert [each["rank"] for each in line] == [4, 8, 8]
    assert [each["continued"] for each in line] == [False, False, True]
    assert all(each["here"] for each in line)
    assert [each["digest"] for each in line[:2]] == [parent["adapter"]["digest"], second["adapter"]["digest"]]


def test_an_adapter_that_was_continued_and_did_not_change_is_no_circle(
    model: ModelRef, first: Path, tmp_path: Path
):
    """A rate that rounds away, or rewards that are all alike, leave the parent's values."""
    data, still = (
        examples(tmp_path / "m.jsonl", "m", "+q."),
        replace(SETTINGS, rate=1e-30, epochs=1, replay=0),
    )
    again, third = tmp_path / "again", tmp_path / "third"
    finetune(model, data, again, still, adapter=first, continued=True)
    assert open_lora(again).digest == open_lora(first).digest
    assert [each["continued"] for each in descent(again)] == [False, True]
    finetune(model, data, third, still, adapter=again, continued=True)
    finetune(model, data, tmp_path / "last", still, adapter=third)
    assert [each["rank"] for each in descent(tmp_path / "last")] == [4, 4, 4, 8]
    bases = StageBases.of(model, [third])
    assert [each["continued"] for each in bases.chain] == [False, True, True]


def test_a_distilled_student_and_its_teacher_may_have_adapters(model: ModelRef, first: Path, tmp_path: Path):
    prompts = written(tmp_path / "p.jsonl", [{"prompt": f"n {i}?", "exact": "=k!"} for i in range(10)])
    settings = DistilSettings(rank=2, epochs=1, batch=4, replay=0, test_share=0.3, max_tokens=8, threads=1)
    record = distil(model, model, prompts, tmp_path / "d", settings, teacher_adapter=first)
    assert record["before_after"]["teacher"] == 1.0 and record["before_after"]["before"] == 0.0
    assert record["inputs"]["teacher"]["parent"]["adapter"] == open_lora(first).digest
    assert "parent" not in record["inputs"] and record["chain"] == []
    settled = distil(model, model, prompts, tmp_path / "e", settings, teacher_adapter=first, adapter=first)
    assert settled["before_after"]["before"] == 1.0


# --- what is refused --------------------------------------------------------------------------------


def copied(first: Path, to: Path) -> Path:
    to.mkdir()
    for file in first.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    return to


def edited_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def itself_as_parent(folder: Path) -> None:
    record = json.loads((folder / "receipt.json").read_text())
    record["chain"] = [{"digest": record["adapter"]["digest"], "verb": "finetune"}]
    (folder / "receipt.json").write_text(json.dumps(record))


def itself_far_above(folder: Path) -> None:
    record = json.loads((folder / "receipt.json").read_text())
    own = {"digest": record["adapter"]["digest"], "verb": "finetune", "continued": True}
    record["chain"] = [own, {"digest": "1" * 64, "verb": "align", "continued": True}]
    (folder / "receipt.json").write_text(json.dumps(record))


def other_tokens(folder: Path) -> None:
    record = json.loads((folder / "receipt.json").read_text())
    record["inputs"]["base"]["digest"] = record["adapter"]["vocabulary"] = "0" * 64
    (folder / "receipt.json").write_text(json.dumps(record))


def broken_receipt(folder: Path) -> None:
    (folder / "receipt.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (edited_weights, UsageError, "was changed after it was made"),
        (itself_as_parent, UsageError, "among its own parents"),
        (itself_far_above, UsageError, "among its own parents"),
        (other_tokens, UsageError, "a model with other tokens"),
        (broken_receipt, StoreError, "is not a receipt"),
        (lambda folder: (folder / "adapter_config.json").unlink(), FreeholdError, "adapter_config.json"),
    ],
)
def test_a_parent_that_does_not_hold_together_is_refused_in_one_line(
    model: ModelRef,
    first: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    kind: type[FreeholdError],
    message: str,
):
    parent = copied(first, tmp_path / "parent")
    damage(parent)
    with pytest.raises(kind, match=message) as refusal:
        finetune(model, examples(tmp_path / "m.jsonl", "m", "+q."), tmp_path / "m", SETTINGS, adapter=parent)
    assert "\n" not in refusal.value.message and refusal.value.hint
    assert not (tmp_path / ".m.part").exists()


def test_another_file_of_the_same_model_and_a_strangers_adapter_are_noted(
    model: ModelRef, first: Path, tmp_path: Path
):
    parent = copied(first, tmp_path / "parent")
    record = json.loads((parent / "receipt.json").read_text())
    record["inputs"]["base"]["digest"] = "1" * 64
    (parent / "receipt.json").write_text(json.dumps(record))
    assert "another file" in StageBase.of(model, parent).notes[0]
    (parent / "receipt.json").unlink()
    base = StageBase.of(model, parent)
    assert "no receipt" in base.notes[0] and base.chain[0]["verb"] == ""


def test_a_chain_beyond_the_rank_of_a_file_is_refused(model: ModelRef, first: Path, tmp_path: Path):
    data = examples(tmp_path / "m.jsonl", "m", "+q.")
    with pytest.raises(UsageError, match="has rank 516"):
        finetune(model, data, tmp_path / "m", replace(SETTINGS, rank=512), adapter=first)


def test_there_is_nothing_to_continue_without_an_adapter(model: ModelRef, tmp_path: Path):
    with pytest.raises(UsageError, match="no adapter to continue"):
        finetune(model, tmp_path / "m.jsonl", tmp_path / "m", SETTINGS, continued=True)


# --- gates ------------------------------------------------------------------------------------------


def test_a_gate_reads_every_verbs_receipt_alike():
    exam = {"items": 4, "before": 1, "after": 3, "p": 0.5, "gained": 2, "lost": 0}
    control = {"control": {"lost": 3, "before": 9}}
    tuned = {
        "verb": "finetune",
        "inputs": {},
        "before_after": {"all": exam, "clean": exam | {"after": 4}},
    } | control
    assert gate_of(tuned).as_json() == {
        "items": 4,
        "before": 0.25,
        "after": 1.0,
        "p": 0.5,
        "lost": 3,
        "divergence": None,
    }
    pairs = {"pairs": 5, "likelier_before": 0.2, "likelier_after": 0.8, "p": 0.1}
    assert gate_of({"verb": "align", "inputs": {}, "before_after": pairs}).after == 0.8
    scored = {"prompts": 7, "greedy": {"before": 0.0, "after": 0.5, "p": 0.2}}
    assert gate_of({"verb": "reinforce", "inputs": {}, "before_after": scored}).items == 7
    assert gate_of({"verb": "distil", "inputs": {}, "before_after": None}).after is None
    assert gate_of({"verb": "fuse", "inputs": {}, "divergence": {"mean": 0.02}}).divergence == 0.02
    assert "3 of the 9 facts" in warnings_of(tuned)[0]
    assert not warnings_of(tuned | {"control": {"lost": 2, "before": 9}})


def test_a_student_learns_what_its_teacher_was_shown(model: ModelRef, tmp_path: Path):
    """The teacher is the same model with instructions; the student's rows and answers have none."""
    from freehold.adapt.teacher_prompts import TeacherContext
    from freehold.base.types import Message

    prompts = written(tmp_path / "p.jsonl", [{"prompt": f"n {i}?"} for i in range(6)])
    settings = DistilSettings(on_policy=True, rank=2, epochs=1, batch=4, max_tokens=8, threads=1)
    context = TeacherContext("Be brief.", (Message("user", "a?"), Message("assistant", "b")))
    shown, plain = (
        distil(model, model, prompts, tmp_path / name, settings, context=each)
        for name, each in (("shown", context), ("plain", None))
    )
    assert "context" not in plain["inputs"] and shown["inputs"]["context"]["system"]
    # The same model without a context has nothing to teach.
    assert abs(plain["divergence"]["first"]) < shown["divergence"]["first"] / 4
