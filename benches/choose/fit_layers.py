"""Compare predicted speeds of experts, states and latents with measured ones, at the layer shapes of published models.

    python benches/choose/fit_layers.py benches/results/amd-epyc-2cpu-layers.jsonl
    python benches/choose/fit_layers.py RECORDS --refit       # the constants of ours.py that these records give

RECORDS are the JSON lines of benches/engine/layers.py, whose figures of ours count. Reads are one median over all
records: a single measurement depends on where an allocation lies. `constants`: the shipped ones, which are fitted to
the committed records; `left out`: those that the other shapes alone give; `after`: the shipped ones, corrected by the
other shapes' runs as calibration.py does for a model that never ran here, with the range it states. A shape is two to
six layers, so what a step costs whatever its size weighs more than in a whole model. Knows no file: a shape is weighed
by what its file would hold.
Path: fit_layers.py -> lib.shapes, lib.random_gguf -> advisor.fit, advisor.calibration
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.random_gguf import VOCAB, tensors
from benches.lib.shapes import SHAPES
from freehold.choose.advisor import fit
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup
from freehold.choose.advisor.calibration import COSTS, Correction, History, Run
from freehold.choose.advisor.file_anatomy import SizeKeys, gguf_layers, of_expert, query_width
from freehold.choose.advisor.machine import Rates

CONSTANTS = (
    "_EXPERT_DOTS", "_UNPACK", "_STATE", "_STATE_CHUNK", "_LATENT_LOOK", "_LATENT_ATTENTION", "_ABSORB", "_MOST_DOTS",
)  # fmt: skip
_FAR = 0.7  # beyond a factor of two a figure pulls no harder
_MIDDLE = 16  # of the 32 tokens whose decoding is timed


@dataclass(frozen=True)
class Timing:
    """A speed in tokens a second, decode after `depth` tokens or prefill of as many, and what the machine gave."""

    shape: str
    kind: str
    depth: int
    speed: float
    rates: Rates

    @property
    def predicted(self) -> float:
        """Tokens a second by the constants as they are."""
        tokens, cost = (1, fit.decode_cost) if self.kind == "decode" else (self.depth, fit.prefill_cost)
        return tokens / cost(anatomy_of(self.shape), self.depth).seconds(self.rates)

    @property
    def run(self) -> Run:
        """What such an answer leaves."""
        anatomy = anatomy_of(self.shape)
        cost = (fit.decode_cost if self.kind == "decode" else fit.prefill_cost)(anatomy, self.depth)
        return Run(
            self.kind, "here", self.shape, "", self.depth, cost.read, cost.cores, cost.rest, self.rates.read_gb_s,
            self.rates.int8_gops, self.predicted, self.speed, "", make=anatomy.make, costs=COSTS,
        )  # fmt: skip


@cache
def anatomy_of(name: str) -> Anatomy:
    """Weigh a shape as its file would be."""
    shape = SHAPES[name]
    prefix = f"{shape.architecture}."
    meta = SizeKeys({prefix + key: value for key, value in shape.keys.items()}, prefix)
    used = meta.number("expert_used_count") / max(meta.number("expert_count"), 1)
    parts = []
    for it in tensors(shape.architecture, shape.keys):
        role, share = "body" if len(it.shape) > 1 else "norms", 1.0
        if it.name in ("token_embd.weight", "output.weight"):
            role = "head" if it.name == "output.weight" else "embed"
            share = 1.0 if role == "head" else 1 / VOCAB
        elif of_expert(it.name):
            role, share = "experts", used
        parts.append(WeightGroup(role, it.kind.name, it.weights, it.nbytes, share))
    return Anatomy(
        name, "Q4_K_M", shape.architecture, tuple(parts), gguf_layers(shape.architecture, meta),
        meta.number("context_length"), hidden=meta.number("embedding_length"), vocab=VOCAB,
        queries=meta.number("attention.head_count") * query_width(meta), exact=True,
    )  # fmt: skip


def read_records(path: Path) -> list[Timing]:
    """Return the figures of ours, prompts and lone answers."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    read = statistics.median(row["ceilings"]["read_gb_s"] for row in rows)
    found = []
    for row in rows:
        rates = Rates(read, row["ceilings"]["int8_gops"])
        for figure in row["figures"]:
            kind, depth = figure["figure"].split()[0], figure["figure"].split()[-1].replace(",", "")
            if kind in ("prefill", "decode"):
                tokens = int(depth) + (_MIDDLE if kind == "decode" else 0)
                speed = statistics.median(figure["freehold"])
                found.append(Timing(row["shape"], kind, tokens, speed, rates))
    return found


# --- constants ----------------------------------------------------------------------------------------


@contextmanager
def constants(values: dict[str, float]) -> Iterator[None]:
    """Put these in the place of ours.py's."""
    before = {name: getattr(fit, name) for name in values}
    try:
        for name, value in values.items():
            setattr(fit, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(fit, name, value)


def loss(timings: Sequence[Timing], values: dict[str, float]) -> float:
    """Return the mean |log error|, no figure's above _FAR."""
    with constants(values):
        return statistics.mean(min(abs(math.log(t.predicted / t.speed)), _FAR) for t in timings)


def refit(timings: Sequence[Timing]) -> dict[str, float]:
    """Return the constants with the least loss, one moved at a time from where they stand."""
    best = {name: float(getattr(fit, name)) for name in CONSTANTS}
    least, step = loss(timings, best), 1.3
    while step > 1.02:
        moves = [best | {name: best[name] * f} for name in CONSTANTS for f in (step, 1 / step)]
        found, values = min(((loss(timings, m), m) for m in moves), key=lambda pair: pair[0])
        if found < least - 1e-6:
            least, best = found, values
        else:
            step = 1 + (step - 1) / 2
    return best


# --- what came of it ----------------------------------------------------------------------------------


def report(timings: list[Timing]) -> None:
    """Print a row for each figure, then medians and a JSON line."""
    errors: dict[str, list[float]] = {"constants": [], "left out": [], "after": []}
    inside = []
    print(f"{'':38}{'measured':>9}{'constants':>11}{'left out':>10}{'after':>8}  80 % range")
    for shape in dict.fromkeys(t.shape for t in timings):
        others = [t for t in timings if t.shape != shape]
        without = refit(others)
        for timing in (t for t in timings if t.shape == shape):
            told = _corrected(timing, others).apply(timing.predicted)
            with constants(without):
                blind = timing.predicted
            off = (timing.predicted, blind, told.mid)
            for name, speed in zip(errors, off, strict=True):
                errors[name].append(abs(speed / timing.speed - 1))
            inside.append(timing.speed in told)
            shown = "".join(
                f"{speed / timing.speed - 1:+{width}.0%}"
                for speed, width in zip(off, (11, 10, 8), strict=True)
            )
            print(f"{shape:20}{timing.kind:9}{timing.depth:>9,}{timing.speed:9.1f}{shown}  {told}")
    facts = {f"{name} median": statistics.median(found) for name, found in errors.items()}
    facts |= {f"{name} worst": max(found) for name, found in errors.items()}
    facts["inside"] = sum(inside) / len(inside)
    print("; ".join(f"{name} {value:.1%}" for name, value in facts.items()))
    print(json.dumps({"bench": "fit_layers", "rows": len(timings), **facts}))


def _corrected(timing: Timing, others: Sequence[Timing]) -> Correction:
    run = timing.run
    return History(timing.rates, tuple(t.run for t in others)).correction(run.kind, run.model, run.make)


def main() -> None:
    """Read the records; compare, or print the constants that they give."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--refit", action="store_true", help="print the constants with the least error")
    args = parser.parse_args()
    timings = read_records(args.records)
    if args.refit:
        found = refit(timings)
        print("\n".join(f"{name} = {value:.4g}" for name, value in found.items()))
        print(f"mean |log error| {loss(timings, {}):.3f} before, {loss(timings, found):.3f} after")
    else:
        report(timings)


if __name__ == "__main__":
    main()
