"""Corrects predicted speeds by measured ones: every real run appends a line, and the lines give the correction.

A line of runs.jsonl in the data folder is one run: its cost, the predicted speed (`told`) and the measured one, in
tokens a second. The uncorrected prediction follows from the machine's rates, those of the same minutes where they were
measured, else the latest, so that a better measurement improves past runs too. The correction
is the median of log(measured / uncorrected): over a model's own runs where there are enough, else over those of models
of its make (dense, experts, states, latents), else over all that ran here, each model counted once. Runs beside others'
load are kept and do not count, nor do those whose costs other formulas counted. Knows no model and no clock: the caller
says which and when.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

from freehold.base import private
from freehold.base.machine import CROWDED
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.machine import Cost, Rates

FILE = "runs.jsonl"
MOST_BYTES = 1 << 20  # about 4,000 runs; then the older half goes
LATEST = 24  # runs of a model that count: older ones describe an engine and a machine that have changed
ENOUGH = 3  # runs of one model that outweigh those of others
# Bytes a run read, below which a processor's cache may hold them: a tiny model's speed corrects no other model's.
IN_CACHE = 1 << 25
KINDS = ("decode", "prefill")
UNKNOWN = 0.25  # deviation of log(measured / raw) before anything ran here
STRANGE = 0.20  # the same, added for a model whose make never ran here: benches/choose/fit_layers.py
COSTS = 2  # which formulas of fit.py count a run's cost; what others counted corrects nothing
_LEAST = 0.04  # deviation that is always left: a minute later the same run differs by so much
_MAD = 1.4826  # a normal distribution's deviation over its median absolute deviation


@dataclass(frozen=True, slots=True)
class Run:
    """One measured speed, in tokens a second. `machine`: advisor.machine.Machine.key."""

    kind: str  # decode | prefill
    machine: str
    model: str  # the file's digest, or its name where it was never hashed
    quant: str
    depth: int  # tokens before a decode, tokens of a prompt
    read: float  # bytes and operations, as machine.Cost has them
    cores: float
    rest: float
    read_gb_s: float  # rates of the same minutes; 0: not measured then
    int8_gops: float
    told: float  # the prediction, in tokens a second
    measured: float
    at: str  # ISO 8601, UTC
    load: float = 0.0  # cores that others took of those wanted here, as a share
    make: str = "dense"  # what its layers are made of, as Anatomy.make has it
    costs: int = 1  # COSTS when it ran

    def raw(self, rates: Rates) -> float:
        """Return the uncorrected prediction, in tokens a second; `rates` where the run has none of its own."""
        own = Rates(self.read_gb_s, self.int8_gops) if self.read_gb_s and self.int8_gops else rates
        tokens = 1 if self.kind == "decode" else self.depth
        return tokens / Cost(self.read, self.cores, self.rest).seconds(own)


@dataclass(frozen=True, slots=True)
class Correction:
    """What to multiply a prediction by, and how far off it then was. `runs`: how many it rests on."""

    factor: float
    deviation: float  # of the logarithm, after the correction
    runs: int
    error: float  # median of `|measured / told - 1|` over those runs; NaN without any
    own: bool  # from runs of this very model
    make: str = ""  # the make of the models whose runs it rests on; empty: of several

    def apply(self, raw: float) -> Interval:
        """Return the corrected figure with its bounds."""
        return Interval.lognormal(raw * self.factor, self.deviation)


@dataclass(frozen=True, slots=True)
class History:
    """The runs of one machine, oldest first. `damaged`: lines of the file that could not be read.

    `crowded`: runs beside others' load, which correct nothing.
    """

    rates: Rates  # the machine's, for runs without their own
    runs: tuple[Run, ...] = ()
    damaged: int = 0
    crowded: tuple[Run, ...] = ()

    def timed(self, model: str) -> tuple[int, int]:
        """Return how many runs of a model here count, and how many were timed beside others' load."""
        return sum(r.model == model for r in self.runs), sum(r.model == model for r in self.crowded)

    def correction(self, kind: str, model: str, make: str = "dense") -> Correction:
        """Return what runs here say of predictions for a model of such a make."""
        runs = [r for r in self.runs if r.kind == kind]
        own = [r for r in runs if r.model == model][-LATEST:]
        if len(own) >= ENOUGH:
            return _corrected(own, [self._off(r) for r in own], own=True)
        large = [r for r in runs if r.read >= IN_CACHE]
        if same := [r for r in large if r.make == make]:
            return replace(self._of_models(same), make=make)
        strange = 0.0 if make == "dense" else STRANGE
        if not large:
            return Correction(1.0, math.hypot(UNKNOWN, strange), 0, math.nan, own=False)
        correction = self._of_models(large)
        return replace(correction, deviation=math.hypot(correction.deviation, STRANGE))

    def _of_models(self, runs: Sequence[Run]) -> Correction:
        """Correct by the latest runs of several models, each of which counts once."""
        by_model: dict[str, list[Run]] = {}
        for run in runs:
            by_model.setdefault(run.model, []).append(run)
        recent = [run for group in by_model.values() for run in group[-LATEST:]]
        offs = [median(map(self._off, group[-LATEST:])) for group in by_model.values()]
        return _corrected(recent, offs, own=False)

    def _off(self, run: Run) -> float:
        return math.log(run.measured / run.raw(self.rates))


def _corrected(runs: list[Run], offs: list[float], *, own: bool) -> Correction:
    """Take the median, and how far the rest lies from it; few runs leave part of the doubt there was before."""
    middle = median(offs)
    spread = _MAD * median(abs(x - middle) for x in offs)
    weight = 1 / len(offs)
    deviation = math.sqrt((1 - weight) * max(spread, _LEAST) ** 2 + weight * UNKNOWN**2 / (2 if own else 1))
    error = median(abs(r.measured / r.told - 1) for r in runs)
    return Correction(math.exp(middle), deviation, len(runs), error, own)


def read(home: Path, machine: str, rates: Rates) -> History:
    """Read the runs of a machine; a line that is damaged is counted and left out."""
    try:
        text = (home / FILE).read_bytes()
    except OSError:
        return History(rates)
    runs = [_parsed(line) for line in text.splitlines() if line.strip()]
    sound = tuple(r for r in runs if r is not None)
    mine = [r for r in sound if r.machine == machine]
    counted = tuple(r for r in mine if r.load <= CROWDED and r.costs == COSTS)
    crowded = tuple(r for r in mine if r.load > CROWDED)
    return History(rates, counted, len(runs) - len(sound), crowded)


def record(home: Path, runs: Iterable[Run]) -> None:
    """Append runs; raise OSError where the folder cannot be written."""
    text = ""
    for run in runs:
        row = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(run).items()}
        text += json.dumps(row, ensure_ascii=True) + "\n"
    path = home / FILE
    private.folder(home)
    # One write of whole lines: two processes do not tear each other's.
    with open(path, "a+b", opener=private.opener) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            text = text if file.read(1) == b"\n" else "\n" + text  # the line before was cut short
        file.write(text.encode())
    if size + len(text) > MOST_BYTES:
        _halve(path)


def _halve(path: Path) -> None:
    """Keep the newer half of a file, written beside it and renamed."""
    lines = path.read_bytes().splitlines(keepends=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb", opener=private.opener) as file:
            file.writelines(lines[len(lines) // 2 :])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


_FIELDS = {f.name: {"int": int, "float": float, "str": str}[str(f.type)] for f in fields(Run)}


def _parsed(line: bytes) -> Run | None:
    try:
        raw = json.loads(line)
        run = Run(**{name: kind(raw[name]) for name, kind in _FIELDS.items() if name in raw})
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    speeds, rates = (run.told, run.measured), (run.read, run.cores, run.rest)
    sound = run.kind in KINDS and 0 <= run.load < 1e6 and run.depth > 0 and all(0 < x < 1e9 for x in speeds)
    sound = (
        sound and all(0 < x < 1e24 for x in rates) and 0 <= run.read_gb_s < 1e9 and 0 <= run.int8_gops < 1e9
    )
    return run if sound else None
