"""Preference training end to end, on a tiny model: what is learnt, what a receipt says, and runs that stop."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.adapt.align import AlignSettings, align
from freehold.base.config import Settings
from freehold.base.errors import StoreError, UsageError
from freehold.run.formats import open_lora
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store

pytest.importorskip("torch")
SETTINGS = AlignSettings(rate=2e-2, rank=4, batch=4, epochs=2, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("qwen2"), folder / "tiny.gguf")
    return Store(Settings(home=folder / "home")).resolve(str(path))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"number {i}?", "chosen": f"{i}!", "rejected": f"{i} maybe"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, Any]:
    file = open_lora(out)
    return {name: (pair.a.numpy(), pair.b.numpy()) for name, pair in file.modules.items()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


@pytest.mark.heavy
def test_unseen_pairs_are_preferred_and_the_first_loss_is_ln_2(model: ModelRef, pairs: Path, tmp_path: Path):
    made = align(model, pairs, tmp_path / "out", SETTINGS)
    rows = rows_of(tmp_path / "out")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["loss"] < 0.4
    result = made["before_after"]
    assert result["preferred"] == 1.0
    assert result["pairs"] == made["pairs"]["tested"] > 0
    assert not result["chosen_fell"]
    assert json.loads((tmp_path / "out" / "receipt.json").read_text()) == made


@pytest.mark.heavy
def test_without_the_likelihood_term_the_result_says_whether_chosen_answers_fell(
    model: ModelRef, pairs: Path, tmp_path: Path
):
    from dataclasses import replace

    made = align(model, pairs, tmp_path / "out", replace(SETTINGS, nll=0.0, rate=5e-2))
    result = made["before_after"]
    assert result["chosen_fell"] == (result["chosen_after"] < result["chosen_before"])


@pytest.mark.heavy
def test_rehearsed_text_stays_nearer_to_the_base(model: ModelRef, pairs: Path, tmp_path: Path):
    from dataclasses import replace

    drifts = []
    for weight in (0.0, 10.0):
        out = tmp_path / f"weight-{weight}"
        align(model, pairs, out, replace(SETTINGS, replay_weight=weight))
        drifts.append([row["drift"] for row in rows_of(out)])
    assert drifts[0][0] == pytest.approx(0.0, abs=1e-6)
    assert drifts[1][-1] < 0.8 * drifts[0][-1]


@pytest.mark.heavy
def test_an_interrupted_run_continues_to_the_same_bits(model: ModelRef, pairs: Path, tmp_path: Path):
    align(model, pairs, tmp_path / "whole", SETTINGS)

    def stop(row: Any) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(model, pairs, tmp_path / "parts", SETTINGS, on_step=stop)
    seen: list[int] = []
    align(model, pairs, tmp_path / "parts", SETTINGS, on_step=lambda row: seen.append(row["step"]))
    assert seen[0] == 6
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for one, other in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert {**one, "cpu_seconds": 0} == {**other, "cpu_seconds": 0}


@pytest.mark.heavy
def test_a_killed_run_continues_to_the_same_bits(model: ModelRef, pairs: Path, tmp_path: Path):
    """A process that is killed with no chance to write; states are kept at every step there."""
    program = f"""
import os, signal
from pathlib import Path
from freehold.adapt import loop
from freehold.adapt.align import AlignSettings, align
from freehold.base.config import Settings
from freehold.run.store import Store
loop.KEEP_S = 0.0
model = Store(Settings(home=Path({str(tmp_path / "home")!r}))).resolve({str(model.path)!r})
align(model, Path({str(pairs)!r}), Path({str(tmp_path / "parts")!r}), {SETTINGS!r},
      on_step=lambda row: row["step"] == 4 and os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not (tmp_path / "parts").exists()
    align(model, pairs, tmp_path / "whole", SETTINGS)
    align(model, pairs, tmp_path / "parts", SETTINGS)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.heavy
def test_a_full_disk_is_one_line_and_the_run_continues(
    model: ModelRef, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.adapt.training.trainee import Trainee

    def full(self: Trainee, folder: Path, *, gguf: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "save", full)
        with pytest.raises(StoreError, match="No space left on device") as e:
            align(model, pairs, tmp_path / "out", SETTINGS)
    assert "the same command then continues" in e.value.hint
    seen: list[int] = []
    align(model, pairs, tmp_path / "out", SETTINGS, on_step=lambda row: seen.append(row["step"]))
    assert seen == []


def test_other_settings_do_not_continue_a_run(model: ModelRef, pairs: Path, tmp_path: Path):
    from dataclasses import replace

    def stop(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(model, pairs, tmp_path / "out", SETTINGS, on_step=stop)
    with pytest.raises(UsageError, match="unfinished run with settings"):
        align(model, pairs, tmp_path / "out", replace(SETTINGS, beta=0.5))


@pytest.mark.heavy
def test_a_batch_in_parts_is_the_same_step(
    model: ModelRef, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    align(model, pairs, tmp_path / "whole", SETTINGS)
    monkeypatch.setattr("freehold.adapt.align.PASS_TOKENS", 1)
    align(model, pairs, tmp_path / "parts", SETTINGS)
    one, other = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in other], abs=1e-3)


def test_uneven_lengths_and_contradictions_are_said(model: ModelRef, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "p", "chosen": "a long answer of many words", "rejected": "no"},
        {"prompt": "p", "chosen": "no", "rejected": "a long answer of many words"},
        {"prompt": "q", "chosen": "a long answer of many words", "rejected": "no"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    said: list[str] = []
    align(model, path, tmp_path / "out", SETTINGS, test=None, on_note=said.append)
    assert any("will learn to write longer answers" in note for note in said)
    assert any("lines 1 and 2" in note for note in said)
