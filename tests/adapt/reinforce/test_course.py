"""Runs on a tiny random model: what pays is learnt, a cut run has the bits of a whole one, traps are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt import teaching
from freehold.adapt.reinforce.course import ReinforceSettings, ReinforceSources, reinforce
from freehold.base import platforms
from freehold.base.config import Settings
from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats import open_lora
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")

# The answer's share of characters before "n": a random model earns about a half, and attacks earn less than it pays.
SHARE = "letters = [c for c in answer if c.isalpha()]\n    return sum(c < 'n' for c in letters) / max(len(answer), 8)"
SMALL = ReinforceSettings(steps=3, prompts=2, group=4, max_tokens=6, rate=1e-2, rank=4, unseen=4, threads=1)


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask less of what is known before and after: a random model knows nothing."""
    monkeypatch.setattr(teaching, "FACTS", teaching.FACTS[:3])
    monkeypatch.setattr(teaching, "WINDOWS", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("qwen2"), folder / "tiny.gguf")
    return Store(Settings(home=folder / "home")).resolve(str(path))


def sources(folder: Path, body: str = f"{SHARE}", check: str = "") -> ReinforceSources:
    """Write prompts and verifiers."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}"}}\n' for i in range(12)))
    for name, text in (("reward.py", body), ("check.py", check)):
        (folder / name).write_text(f"def reward(prompt, answer, item):\n    {text or 'return 0'}\n")
    return ReinforceSources(
        str(folder / "reward.py"), str(folder / "check.py") if check else "", folder / "prompts.jsonl"
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def bits(out: Path) -> dict[str, bytes]:
    pairs = open_lora(out).modules
    return {f"{name}.{h}": getattr(pair, h).raw.tobytes() for name, pair in pairs.items() for h in "ab"}


def stop_after(step: int, error: type[BaseException]) -> Callable[[Mapping[str, Any]], None]:
    def on_step(row: Mapping[str, Any]) -> None:
        if row["step"] == step:
            raise error

    return on_step


@pytest.mark.heavy
def test_a_run_leaves_an_adapter_its_lines_and_a_receipt(model: ModelRef, tmp_path: Path):
    notes: list[str] = []
    made = reinforce(model, sources(tmp_path), tmp_path / "out", SMALL, on_note=notes.append)
    assert json.loads((tmp_path / "out" / "receipt.json").read_text()) == made
    assert made["inputs"]["reward"]["digest"] and made["attacks"]["reward"]["gameable"] is False
    assert made["steps"]["count"] == 3 and made["before_after"]["prompts"] == 4
    assert (made["control"]["facts"], len(made["template"])) == (3, 64) and made["text_loss"]["before"] > 0
    assert any("withstood" in note for note in notes)
    found = lines(tmp_path / "out")
    assert [line["step"] for line in found] == [1, 2, 3]
    assert all(len(line["seeds"]) == 2 for line in found)
    assert len({seed for line in found for seed in line["seeds"]}) == 6
    assert open_lora(tmp_path / "out").modules


@pytest.mark.heavy
@pytest.mark.parametrize("loss", ["dr_grpo", "dapo"])
def test_a_policy_learns_what_pays(loss: Any, model: ModelRef, tmp_path: Path):
    asked = replace(SMALL, steps=25, prompts=4, group=8, loss=loss, unseen=0)
    reinforce(model, sources(tmp_path), tmp_path / "out", asked)
    scores = [line["score"] for line in lines(tmp_path / "out")]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.2


def test_without_a_rate_nothing_is_learnt(model: ModelRef, tmp_path: Path):
    made = reinforce(model, sources(tmp_path), tmp_path / "out", replace(SMALL, rate=0.0, passes_at=0.3))
    before, after = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("before", "after"))
    assert before == after
    assert made["before_after"]["greedy"]["p"] == 1.0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_has_the_bits_of_a_whole_one(
    error: type[BaseException], model: ModelRef, tmp_path: Path
):
    """After Ctrl-C the last whole step is kept; after a kill, which a RuntimeError stands for, an earlier one is."""
    given = sources(tmp_path)
    reinforce(model, given, tmp_path / "whole", SMALL)
    with pytest.raises(error):
        reinforce(model, given, tmp_path / "cut", SMALL, on_step=stop_after(2, error))
    assert not (tmp_path / "cut").exists()
    steps: list[int] = []
    reinforce(model, given, tmp_path / "cut", SMALL, on_step=lambda row: steps.append(row["step"]))
    assert steps == ([3] if error is KeyboardInterrupt else [1, 2, 3])
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    told = [
        [{k: v for k, v in line.items() if not k.startswith("cpu")} for line in lines(tmp_path / out)]
        for out in ("cut", "whole")
    ]
    assert told[0] == told[1]


@pytest.mark.heavy
def test_a_killed_run_has_the_bits_of_a_whole_one(model: ModelRef, tmp_path: Path):
    """SIGKILL within the third step, when its answers are scored and the pairs have moved."""
    given, asked = sources(tmp_path), replace(SMALL, unseen=0)
    program = f"""
import os, signal
from pathlib import Path
from freehold.adapt import loop
from freehold.adapt.reinforce import course
from freehold.base.config import Settings
from freehold.run.store import Store
loop.KEEP_S = 0.0
update, done = course.Policy.update, []
def killed(self, *given, **named):
    moved = update(self, *given, **named)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return moved
course.Policy.update = killed
model = Store(Settings(home=Path({str(tmp_path / "home")!r}))).resolve({str(model.path)!r})
sources = course.ReinforceSources({given.reward!r}, "", Path({str(given.prompts)!r}))
course.reinforce(model, sources, Path({str(tmp_path / "cut")!r}), course.{asked!r}, on_step=done.append)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    reinforce(model, given, tmp_path / "whole", asked)
    steps: list[int] = []
    reinforce(model, given, tmp_path / "cut", asked, on_step=lambda row: steps.append(row["step"]))
    assert steps == [3]
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_groups_of_equal_scores_are_dropped_and_move_nothing(model: ModelRef, tmp_path: Path):
    made = reinforce(model, sources(tmp_path, "return 0.25"), tmp_path / "out", SMALL)
    assert made["steps"]["dropped"] == made["steps"]["groups"] == 6
    assert made["mismatch"]["mean_size"] is None
    assert all(not any(value) for name, value in bits(tmp_path / "out").items() if name.endswith(".b"))


def test_failures_are_counted_by_kind_in_every_line(model: ModelRef, tmp_path: Path):
    body = "import os\n    if prompt == 'Say 0' and len(answer) > 2: os._exit(0)\n    return float('nan')"
    made = reinforce(model, sources(tmp_path, body), tmp_path / "out", replace(SMALL, steps=6))
    kinds = made["steps"]["failures"]
    assert kinds["not finite"] and sum(kinds.values()) == 48 and set(kinds) <= {"not finite", "exit"}


def test_the_sampler_agrees_with_the_trainer_and_a_step_beyond_the_bound_stops(
    model: ModelRef, tmp_path: Path
):
    made = reinforce(model, sources(tmp_path), tmp_path / "out", replace(SMALL, unseen=0))
    assert 0 < made["mismatch"]["mean_size"] < 0.05
    tight = replace(SMALL, most_mismatch=made["mismatch"]["most"] / 1e3)
    with pytest.raises(UsageError, match="nats per token from the sampler's"):
        reinforce(model, sources(tmp_path), tmp_path / "tight", tight)


def test_a_gameable_verifier_is_refused_unless_it_is_allowed(model: ModelRef, tmp_path: Path):
    given = sources(tmp_path, "return float(len(answer) > 0)")
    with pytest.raises(UsageError, match=r"gameable: it pays for blank \(1\.00\)"):
        reinforce(model, given, tmp_path / "out", SMALL)
    made = reinforce(model, given, tmp_path / "out", replace(SMALL, steps=1, allow_gameable=True), fresh=True)
    assert made["attacks"]["reward"]["gameable"] is True


def test_a_second_verifier_shows_where_the_two_part(model: ModelRef, tmp_path: Path):
    given = sources(
        tmp_path, "return min(len(set(answer)), 8) / 16", check="return 0.99 * (len(answer) < 3) / 2"
    )
    reinforce(model, replace(given, check=given.check), tmp_path / "out", replace(SMALL, allow_gameable=True))
    line = lines(tmp_path / "out")[0]
    assert 0 <= line["parted"] <= 1
    for shown in line["parted_shown"]:
        assert abs(shown["score"] - shown["check"]) > 0.5


def test_two_updates_of_one_step_move_further_than_one(model: ModelRef, tmp_path: Path):
    for updates in (1, 2):
        asked = replace(SMALL, steps=1, updates=updates, unseen=0)
        reinforce(model, sources(tmp_path), tmp_path / str(updates), asked)
    one, two = (
        np.concatenate([np.frombuffer(v, "f4") for k, v in bits(tmp_path / n).items() if k.endswith(".b")])
        for n in ("1", "2")
    )
    assert np.abs(two).sum() > 1.2 * np.abs(one).sum()


@pytest.mark.heavy
def test_replay_keeps_the_policy_near_its_base_and_resumes_to_the_same_bits(model: ModelRef, tmp_path: Path):
    drifts = {}
    for weight in (0.0, 30.0):
        asked = replace(SMALL, steps=6, replay=1, replay_weight=weight, unseen=0)
        reinforce(model, sources(tmp_path), tmp_path / f"{weight}", asked)
        drifts[weight] = [line["drift"] for line in lines(tmp_path / f"{weight}") if "drift" in line]
    assert drifts[0.0][0] == pytest.approx(0, abs=1e-6) == drifts[30.0][0]
    assert 0 < drifts[30.0][-1] < 0.5 * drifts[0.0][-1]
    asked = replace(SMALL, steps=6, replay=1, replay_weight=30.0, unseen=0)
    with pytest.raises(KeyboardInterrupt):
        reinforce(model, sources(tmp_path), tmp_path / "cut", asked, on_step=stop_after(2, KeyboardInterrupt))
    reinforce(model, sources(tmp_path), tmp_path / "cut", asked)
    assert bits(tmp_path / "cut") == bits(tmp_path / "30.0")


def test_a_model_that_cannot_learn_is_refused_before_the_verifier_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = make.write_gguf(make.config("qwen3moe"), tmp_path / "moe.gguf")
    held = Store(Settings(home=tmp_path / "home")).resolve(str(path))
    monkeypatch.setattr("freehold.adapt.reinforce.course.Verifier", None)
    with pytest.raises(UnsupportedModel, match="mixture-of-experts"):
        reinforce(held, sources(tmp_path / "in"), tmp_path / "out", SMALL)
