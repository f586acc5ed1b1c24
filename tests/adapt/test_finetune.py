"""Teaching by examples end to end, on a tiny model: what is learnt and kept, what a receipt says, runs that stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.run.formats import open_lora
from freehold.run.local import load
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store

pytest.importorskip("torch")
CONTEXT = 512  # tokens that a tiny llama was made for
SETTINGS = FinetuneSettings(rate=2e-2, rank=4, batch=4, epochs=3, replay=1, max_length=128, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("llama"), folder / "tiny.gguf")
    return Store(Settings(home=folder / "home")).resolve(str(path))


@pytest.fixture(autouse=True)
def few_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model knows nothing: three questions and two short windows stand for the control."""
    monkeypatch.setattr("freehold.adapt.teaching.FACTS", _facts()[:3])
    monkeypatch.setattr("freehold.adapt.teaching.WINDOWS", 2)
    monkeypatch.setattr("freehold.adapt.teaching.QUESTIONS", ("Why?", "Who?"))
    monkeypatch.setattr("freehold.adapt.teaching.OPENINGS", ("The", "A"))


def _facts() -> tuple[Any, ...]:
    from freehold.adapt.teaching import FACTS

    return FACTS


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "data.jsonl", [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(12)])


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def weights(out: Path) -> list[np.ndarray]:
    modules = open_lora(out).modules
    return [half.numpy() for name in sorted(modules) for half in (modules[name].a, modules[name].b)]


def same_bits(one: Path, other: Path) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_examples_are_learnt_and_served(model: ModelRef, data: Path, tmp_path: Path):
    test = written(
        tmp_path / "test.jsonl", [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(9, 15)]
    )
    made = finetune(model, data, tmp_path / "out", replace(SETTINGS, epochs=8), test=test)
    assert made["loss"]["last"] < 0.1 < made["loss"]["first"]
    found = made["before_after"]
    assert found["contaminated"] == [0, 1, 2]
    assert (found["all"]["before"], found["all"]["after"], found["clean"]["items"]) == (0, 6, 3)
    assert found["all"]["p"] == pytest.approx(2 / 64)
    assert made["mismatch"]["mean_absolute"] < 0.1
    assert made["control"]["facts"] == 3
    assert json.loads((tmp_path / "out" / "receipt.json").read_text()) == made
    for adapter in (tmp_path / "out", tmp_path / "out" / "adapter.gguf"):
        with load(model.path, adapters={"mine": adapter}, threads=1) as llm:
            assert llm.chat("n 77?", adapter="mine", max_tokens=8, temperature=0.0).text == "=k!"


@pytest.mark.heavy
def test_rehearsing_keeps_the_model_near_itself(model: ModelRef, data: Path, tmp_path: Path):
    drifts = []
    for weight in (0.0, 10.0):
        finetune(model, data, tmp_path / f"out{weight}", replace(SETTINGS, replay_weight=weight))
        drifts.append(rows_of(tmp_path / f"out{weight}")[-1]["drift"])
    assert drifts[1] < drifts[0] / 2


def test_every_assistant_turn_is_learnt_with_its_end(model: ModelRef, tmp_path: Path):
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = written(tmp_path / "d.jsonl", [{"messages": [{"role": r, "content": c} for r, c in said]}])
    made = finetune(model, path, tmp_path / "out", replace(SETTINGS, epochs=1))
    assert (made["samples"]["answers"], made["samples"]["answer_tokens"]) == (2, 4)


def test_long_samples_are_refused_or_counted_and_never_cut(model: ModelRef, tmp_path: Path):
    lines = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 300}]
    path = written(tmp_path / "d.jsonl", lines)
    with pytest.raises(UsageError, match=r"line 2: \d+ tokens; a row may have 128"):
        finetune(model, path, tmp_path / "out", SETTINGS)
    made = finetune(model, path, tmp_path / "out", replace(SETTINGS, skip_long=True))
    assert made["samples"]["skipped"] == 1


def test_samples_beyond_the_models_own_context_are_refused(model: ModelRef, tmp_path: Path):
    """The engine that examines the adapter has no more: a run would end in an error after its last step."""
    path = written(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b" * CONTEXT}])
    with pytest.raises(UsageError, match=f"a row may have {CONTEXT:,}"):
        finetune(model, path, tmp_path / "out", replace(SETTINGS, max_length=4 * CONTEXT))


def test_a_test_item_without_room_is_named_before_the_first_step(model: ModelRef, data: Path, tmp_path: Path):
    items = [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 2 * CONTEXT, "completion": "b"}]
    steps: list[Any] = []
    with pytest.raises(UsageError, match=r"test item of line 2: .* tokens"):
        finetune(
            model,
            data,
            tmp_path / "out",
            SETTINGS,
            test=written(tmp_path / "t.jsonl", items),
            on_step=steps.append,
        )
    assert not steps and not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"prompt": "a"}, "completion is missing"),
        ({"prompt": "a", "completions": "b"}, "did you mean completion"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "nothing that it answers"),
    ],
)
def test_bad_lines_are_named(line: dict[str, Any], why: str, model: ModelRef, tmp_path: Path):
    path = written(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}, line])
    with pytest.raises(UsageError, match=f"line 2: .*{why}"):
        finetune(model, path, tmp_path / "out", SETTINGS)


@pytest.mark.heavy
def test_an_interrupted_run_continues_to_the_same_bits(model: ModelRef, data: Path, tmp_path: Path):
    finetune(model, data, tmp_path / "whole", SETTINGS)

    def stop(row: Any) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model, data, tmp_path / "parts", SETTINGS, on_step=stop)
    seen: list[int] = []
    finetune(model, data, tmp_path / "parts", SETTINGS, on_step=lambda row: seen.append(row["step"]))
    assert seen == [5, 6, 7, 8, 9]
    assert same_bits(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.heavy
@pytest.mark.long
def test_a_killed_run_continues_to_the_same_bits(model: ModelRef, data: Path, tmp_path: Path):
    """Killed with no chance to write, at a step that depends on this test's folder; a state is kept at every step."""
    at = 1 + len(str(tmp_path)) % 7
    program = f"""
import os, signal
from pathlib import Path
from freehold.adapt import loop, teaching
from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.base.config import Settings
from freehold.run.store import Store
loop.KEEP_S, teaching.FACTS = 0.0, teaching.FACTS[:3]
teaching.QUESTIONS, teaching.OPENINGS = ("Why?", "Who?"), ("The", "A")
model = Store(Settings(home=Path({str(tmp_path / "home")!r}))).resolve({str(model.path)!r})
finetune(model, Path({str(data)!r}), Path({str(tmp_path / "parts")!r}), {SETTINGS!r},
         on_step=lambda row: row["step"] == {at} and os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not (tmp_path / "parts").exists()
    finetune(model, data, tmp_path / "whole", SETTINGS)
    finetune(model, data, tmp_path / "parts", SETTINGS)
    assert same_bits(tmp_path / "whole", tmp_path / "parts")
