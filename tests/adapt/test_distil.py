"""Distillation end to end on tiny models: from a teacher's answers, and from the student's own under its judgement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt.distil import ANSWERS, DistilSettings, DistilWatch, distil, given_states
from freehold.adapt.training.packed import divergence
from freehold.adapt.training.steps import Order
from freehold.adapt.training.trainee import Trainee
from freehold.base.config import Settings
from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats import open_lora
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store

torch = pytest.importorskip("torch")
SETTINGS = DistilSettings(
    rate=2e-2, rank=4, batch=4, epochs=3, threads=1, max_tokens=8, max_length=120, tries=1
)
Held = Callable[..., ModelRef]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """Return a function that makes a tiny model of a family, with weights of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    store = Store(Settings(home=folder / "home"))

    def model(family: str, seed: int = 0) -> ModelRef:
        path = folder / f"{family}-{seed}.gguf"
        if not path.exists():
            make.write_gguf(make.config(family, seed), path)
        return store.resolve(str(path))

    return model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"number {i}?"}) for i in range(24)))
    return path


@pytest.fixture(autouse=True)
def kept_when_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random teacher never ends an answer: one that is cut at the limit counts here."""
    from freehold.adapt import distil as teaching

    fault = teaching._fault
    monkeypatch.setattr(
        teaching, "_fault", lambda *given: "" if (why := fault(*given)).startswith("cut") else why
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, list[list[float]]]:
    return {n: [p.a.numpy().tolist(), p.b.numpy().tolist()] for n, p in open_lora(out).modules.items()}


@pytest.mark.heavy
def test_a_student_learns_its_teachers_answers(held: Held, prompts: Path, tmp_path: Path):
    made = distil(held("llama", 1), held("qwen2", 2), prompts, tmp_path / "out", SETTINGS)
    rows = lines(tmp_path / "out")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert made["answers"]["kept"] == 24
    assert made["mismatch"]["tokens"] > 0 and made["mismatch"]["mean_absolute"] < 0.05
    answers = [json.loads(line) for line in (tmp_path / "out" / ANSWERS).read_text().splitlines()]
    assert len(answers) == 24
    assert made["licence"]["teacher"]["may_teach"] is None


def test_judges_without_a_prompt_to_measure_with_are_said(held: Held, tmp_path: Path):
    path = tmp_path / "judged.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"number {i}?", "regex": "."}) for i in range(4)))

    def note(text: str) -> None:
        if "no judged prompt is set apart" in text:
            raise KeyboardInterrupt

    watch, settings = DistilWatch(note=note), replace(SETTINGS, test_share=0.0)
    with pytest.raises(KeyboardInterrupt):
        distil(held("llama", 1), held("qwen2", 2), path, tmp_path / "out", settings, watch=watch)


@pytest.mark.heavy
def test_the_divergence_from_a_teacher_falls_on_the_students_own_answers(
    held: Held, prompts: Path, tmp_path: Path
):
    settings = replace(SETTINGS, on_policy=True)
    made = distil(held("qwen2", 1), held("qwen2", 2), prompts, tmp_path / "out", settings)
    rows = lines(tmp_path / "out")
    assert np.mean([r["loss"] for r in rows[-4:]]) < 0.8 * np.mean([r["loss"] for r in rows[:4]])
    assert made["mismatch"]["mean_absolute"] < 0.05


def test_a_student_of_its_own_model_has_no_divergence(held: Held, prompts: Path, tmp_path: Path):
    """Engine and trainer compute one model: what is left is rounding."""
    model = held("qwen2", 1)
    distil(model, model, prompts, tmp_path / "out", replace(SETTINGS, on_policy=True, rate=1e-9))
    assert max(abs(row["loss"]) for row in lines(tmp_path / "out")) < 1e-3


@pytest.mark.heavy
@pytest.mark.parametrize("on_policy", [False, True])
def test_an_interrupted_run_continues_to_the_same_bits(
    held: Held, prompts: Path, tmp_path: Path, on_policy: bool
):
    settings = replace(SETTINGS, on_policy=on_policy, epochs=1)
    given = held("qwen2", 1), held("qwen2", 2), prompts

    def stop(row: Any) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    distil(*given, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        distil(*given, tmp_path / "parts", settings, watch=DistilWatch(step=stop))
    seen: list[int] = []
    distil(*given, tmp_path / "parts", settings, watch=DistilWatch(step=lambda row: seen.append(row["step"])))
    assert seen[0] == 4
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


@pytest.mark.heavy
def test_a_killed_run_continues_to_the_same_bits(held: Held, prompts: Path, tmp_path: Path):
    settings = replace(SETTINGS, on_policy=True, epochs=1)
    teacher, student = held("qwen2", 1), held("qwen2", 2)
    program = f"""
import os, signal
from pathlib import Path
from freehold.adapt import loop
from freehold.adapt.distil import DistilSettings, DistilWatch, distil
from freehold.base.config import Settings
from freehold.run.store import Store
loop.KEEP_S = 0.0
store = Store(Settings(home=Path({str(tmp_path / "home")!r})))
def kill(row):
    if row["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
distil(store.resolve({str(teacher.path)!r}), store.resolve({str(student.path)!r}), Path({str(prompts)!r}),
       Path({str(tmp_path / "parts")!r}), {settings!r}, watch=DistilWatch(step=kill))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    seen: list[int] = []
    distil(teacher, student, prompts, tmp_path / "whole", settings)
    watch = DistilWatch(step=lambda row: seen.append(row["step"]))
    distil(teacher, student, prompts, tmp_path / "parts", settings, watch=watch)
    assert seen[0] == 3
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_other_tokens_are_refused_with_the_way_out(held: Held, prompts: Path, tmp_path: Path):
    from freehold.adapt.distil import check_same_tokens

    class Other:
        vocab_size = 7

        def first_difference(self, other: Any) -> int | None:
            return 5

    with pytest.raises(UsageError, match="token 5 differs") as e:
        check_same_tokens(Other(), Other(), ("big", "small"))  # type: ignore[arg-type]
    assert "leave out --on-policy" in e.value.hint


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_student_that_cannot_learn_is_refused_before_the_teacher_is_loaded(
    held: Held, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_policy: bool
):
    monkeypatch.setattr("freehold.adapt.sampling.open_sampling", None)
    with pytest.raises(UnsupportedModel, match="mixture-of-experts"):
        distil(
            held("llama"),
            held("qwen3moe"),
            prompts,
            tmp_path / "out",
            replace(SETTINGS, on_policy=on_policy),
        )
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.heavy
def test_judged_prompts_measure_teacher_and_student_as_served(held: Held, tmp_path: Path):
    path = tmp_path / "judged.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i}?", "regex": "."}) for i in range(40)))
    made = distil(held("qwen2", 1), held("qwen2", 2), path, tmp_path / "out", replace(SETTINGS, epochs=1))
    result = made["before_after"]
    assert result["prompts"] + made["answers"]["kept"] + sum(made["answers"]["rejected"].values()) == 40
    assert 0 <= result["after"] <= 1
    assert 0 <= result["p"] <= 1


def test_given_logits_are_a_teacher_over_the_whole_vocabulary(held: Held):
    trainee = Trainee.open(held("qwen2", 2).path, rank=2, seed=1, threads=1)
    draw = np.random.default_rng(0)
    row = draw.integers(1, 200, 12).tolist()
    states = trainee.states([row])
    own = torch.cat([part.logits(states.rows) for part in states.head.slices()], 1).log_softmax(1)
    logits = draw.normal(size=own.shape).astype(np.float32)
    theirs = torch.from_numpy(logits).log_softmax(1)
    expected = (own.exp() * (own - theirs)).sum(1)
    wide = np.pad(
        logits, ((0, 0), (0, 5)), constant_values=9.0
    )  # padding of a teacher's head counts for nothing
    for given in (logits, wide):
        judged = given_states([given[:4], given[4:]], own.shape[1])
        found = divergence(states.rows, states.head, judged.rows, judged.head, reverse=True)
        assert torch.allclose(found, expected, atol=1e-4)


def test_every_epoch_takes_every_item_once():
    order = Order(10, 4, 3)
    epochs = [np.concatenate([order.of(e * 3 + i) for i in range(3)]) for e in range(2)]
    assert [sorted(each) for each in epochs] == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert order.of(1).tolist() == epochs[0][4:8].tolist()
