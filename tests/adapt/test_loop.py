"""The loop of a training: a step that is not finite ends it, and processor seconds add up over interruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from freehold.adapt import loop as loop_module
from freehold.adapt.loop import TrainingLoop
from freehold.adapt.run import RunFolder
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee
from freehold.base.errors import UsageError


class Counter:
    """Stands for a trainee and for its optimizer: one number, which each step raises."""

    def __init__(self) -> None:
        self.at = np.zeros(1)

    def arrays(self) -> dict[str, Any]:
        return {"at": self.at.copy()}

    def restore(self, arrays: Mapping[str, Any], *steps: int) -> None:
        self.at = np.array(arrays["at"])


def trained(
    out: Path, compute: Callable[[int], Mapping[str, Any]], on_step: Callable[[Any], None] = lambda row: None
) -> tuple[float, dict[str, float]]:
    """Run four steps; return the run's processor seconds, and its part on speed."""
    trainee, optimizer = cast(Trainee, Counter()), cast(Optimizer, Counter())
    with RunFolder.open(out, "finetune", {}) as run:
        made = TrainingLoop(run, trainee, optimizer, 4)
        made.run(compute, on_step)
        return made.cpu_seconds, made.speed()


@pytest.mark.parametrize(("key", "value"), [("loss", float("nan")), ("gradient", float("inf"))])
def test_a_step_that_is_not_finite_ends_the_run_with_its_number_and_a_way_out(
    tmp_path: Path, key: str, value: float
) -> None:
    def compute(step: int) -> dict[str, Any]:
        return {"loss": 1.0, "gradient": 1.0} | ({key: value} if step == 2 else {})

    with pytest.raises(UsageError, match=rf"step 3 of 4: {key} is {value}, so the run has diverged") as e:
        trained(tmp_path / "out", compute)
    assert "lower --lr" in e.value.hint


def test_processor_seconds_of_an_interrupted_run_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop_module, "cpu_seconds", lambda: clock[0])

    def compute(step: int) -> dict[str, Any]:
        clock[0] += 10.0 + step
        return {"loss": 1.0}

    def stop(row: Mapping[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "out", compute, stop)
    clock[0] = 5.0  # another process, which took five seconds to begin
    assert trained(tmp_path / "out", compute) == (21.0 + 5.0 + 25.0, {"step_cpu_seconds": 11.5})
