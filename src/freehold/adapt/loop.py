"""A run that trains: its folder and receipt, its steps with a line for each, and states to resume from.

What a step computes is the verb's; it must follow from the step's number, the seed and the trainee's state alone, so
that a resumed run has the same bits. After Ctrl-C the state of the last whole step is kept; a run that computes NaN or
infinity ends there, with the state before. Knows no loss and no data.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.licences import LicenceVerdict, notes
from freehold.adapt.run import RunFolder, cpu_seconds, on_disk, receipt, template_digest
from freehold.adapt.settings import AdapterSettings
from freehold.adapt.stages import StageBase, saved_adapter, warnings_of
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee, arithmetic
from freehold.base.errors import UsageError

KEEP_S = 30.0  # between two states on disk: what a kill costs at most, and half a second of writing in thirty
STEPS = "steps.jsonl"
_PARTS = ("trainee", "optimizer", "verb")
_CPU = "cpu_seconds"  # in the state that a checkpoint holds

Arrays = Mapping[str, NDArray[Any]]
OnStep = Callable[[Mapping[str, Any]], None]
OnText = Callable[[str], None]


@dataclass(slots=True)
class TrainingLoop:
    """Runs `total` steps. `arrays`, `restore`: copies of what the verb itself carries from step to step."""

    run_folder: RunFolder
    trainee: Trainee
    optimizer: Optimizer
    total: int
    arrays: Callable[[], Arrays] = dict
    restore: Callable[[Arrays], None] = lambda arrays: None
    start: int = field(default=0, init=False)  # the first step that this process computes
    _earlier_cpu: float = field(default=0.0, init=False)  # seconds of the processes before it, as far as kept

    def __post_init__(self) -> None:
        kept = self.run_folder.kept
        if kept is None:
            return
        parts: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in _PARTS}
        for name, values in kept.arrays.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = values
        self.trainee.restore(parts["trainee"])
        self.optimizer.restore(parts["optimizer"], kept.step)
        self.restore(parts["verb"])
        self.start = kept.step
        self._earlier_cpu = float(kept.state.get(_CPU, 0.0))

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of the run: of this process, and of those before it up to their last checkpoint."""
        return round(self._earlier_cpu + cpu_seconds(), 2)

    def run(self, compute: Callable[[int], Mapping[str, Any]], on_step: OnStep) -> None:
        """Compute the steps that are left. `compute(step)` moves the trainee and returns the step's line.

        Raises UsageError for a step whose line holds NaN or infinity.
        """
        latest = time.monotonic()
        state, done = self._state(), self.start
        try:
            for step in range(self.start, self.total):
                before = cpu_seconds()
                row = compute(step)
                spent = round(cpu_seconds() - before, 3)
                line = {"step": step + 1, "steps": self.total, **row, "cpu_seconds": spent}
                _check_finite(line)
                # Copied first: an interrupt amid it must not find the step's line written.
                moved = self._state()
                self.run_folder.log(line)
                state, done = moved, step + 1
                on_step(line)
                if time.monotonic() - latest >= KEEP_S or done == self.total:
                    self._keep(done, state)
                    latest = time.monotonic()
        except KeyboardInterrupt:
            if done > self.start:
                self._keep(done, state)
            raise

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of all steps, those of earlier processes too."""
        text = self.run_folder.path(STEPS).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def speed(self) -> dict[str, float]:
        """Return a receipt's part on speed: the processor seconds of a step, the median of all."""
        return {"step_cpu_seconds": float(np.median([line["cpu_seconds"] for line in self.lines()]))}

    def receipt_parts(self) -> dict[str, Any]:
        """Return what every receipt says of its steps."""
        template = template_digest(self.trainee.template)
        return {"template": template, "speed": self.speed(), "cpu_seconds": self.cpu_seconds}

    def save(self, *, gguf: bool = False) -> None:
        """Write the adapter into the result, with `gguf` as llama.cpp's file too.

        Raises StoreError where the disk does not take it.
        """
        with on_disk(self.run_folder.folder):
            self.trainee.save(self.run_folder.folder, gguf=gguf)

    def _keep(self, done: int, state: Arrays) -> None:
        self.run_folder.keep(done, state, {_CPU: self.cpu_seconds})

    def _state(self) -> dict[str, NDArray[Any]]:
        parts = (self.trainee.arrays(), self.optimizer.arrays(), self.arrays())
        return {
            f"{part}/{name}": np.asarray(values)
            for part, each in zip(_PARTS, parts, strict=True)
            for name, values in each.items()
        }


def _check_finite(line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"step {line['step']} of {line['steps']}: {name} is {value:g}, so the run has diverged",
                "lower --lr, and start again with --fresh",
            )


# --- the order of a run, which every verb shares that trains an adapter -----------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What a verb makes of what. `inputs`: what its bits follow from besides the settings. `licences`: by role."""

    verb: str
    base: StageBase
    out: Path
    inputs: Mapping[str, Any]
    settings: AdapterSettings
    licences: Mapping[str, LicenceVerdict]
    fresh: bool = False

    @property
    def notes(self) -> list[str]:
        """What the user should know of the licences and the base before the first step."""
        return [*notes({f"{role}'s": one for role, one in self.licences.items()}), *self.base.notes]

    def make(self, work: Callable[[RunFolder], Mapping[str, Any]]) -> dict[str, Any]:
        """Have `work` fill the run's folder and return its parts of the receipt; finish with the receipt, returned too.

        An interrupted run of the same inputs continues. The receipt also has the adapter's digests, the `chain` of
        stages that led to the base, and `warnings`. Raises what RunFolder.open raises.
        """
        own = {"settings": asdict(self.settings), "arithmetic": arithmetic(self.settings.threads)}
        inputs = {**self.inputs, **self.base.inputs, **own}
        with RunFolder.open(self.out, self.verb, inputs, fresh=self.fresh) as folder:
            licence = {role: one.as_json() for role, one in self.licences.items()}
            parts = work(folder)
            written = {"adapter": saved_adapter(folder.folder, self.base.model), "chain": self.base.chain}
            record = receipt(self.verb, inputs, licence=licence, **written, **parts)
            record["warnings"] = warnings_of(record)
            folder.finish(record)
        return record
