"""Compare what `freehold fit` predicts with measurements: memory, prefill and decode of small models and their copies.

    python benches/choose/fit.py                     # the four models, copies in Q4_0 and Q8_0, contexts of 1k and 4k

A process of its own loads each file, fills a context with sentences and answers greedily. Speed counts as a share of
what the machine gives at the time: its ceilings are measured before and after each prompt and each answer, and a
timing whose two disagree about arithmetic by more than 15 % is taken again, as the machine changed meanwhile.
`before` uses the shipped constants alone; `after` corrects them by all other cells' runs, the cell's own left out.
Ends in one JSON line, and with exit 1 where a claim does not hold: memory within 5 %, median error of speeds 25 %
before and 10 % after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.dequantise import copy_in
from benches.lib.peer import Child
from freehold import _native as native
from freehold.base.config import load_settings
from freehold.base.machine import default_threads
from freehold.choose.advisor import fit as fits
from freehold.choose.advisor.anatomy import Anatomy
from freehold.choose.advisor.calibration import KINDS, History, Run
from freehold.choose.advisor.file_anatomy import from_file
from freehold.choose.advisor.machine import Rates, here
from freehold.cli.bench import version
from freehold.run.store import Store

MODELS = ("smollm2:135m", "gemma3:270m", "qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b")
COPIES = (
    ("smollm2:135m", "Q8_0"), ("gemma3:270m", "Q4_0"), ("qwen2.5-coder:0.5b", "Q4_0"), ("qwen2.5-coder:0.5b", "Q8_0"),
)  # fmt: skip
CONTEXTS = (1024, 4096)
STEPS = 40  # tokens of a timed answer
MEMORY, BEFORE, AFTER = 0.05, 0.25, 0.10  # the claims
CEILING_MB = 128
STEADY, RETRIES = 0.15, 2


@dataclass(frozen=True)
class Timing:
    """A speed in tokens a second, and what the machine gave around it."""

    kind: str
    speed: float
    rates: Rates


@dataclass(frozen=True)
class Cell:
    """One file at one context: what was measured."""

    name: str
    anatomy: Anatomy
    context: int
    prompt: int
    peak: int
    load_s: float
    timings: tuple[Timing, ...]

    def place(self, rates: Rates) -> fits.Place:
        """Return this machine at these ceilings."""
        machine = replace(here(load_settings().home, measure=False), rates=rates)
        return fits.Place("here", fits.OURS, machine)

    def runs(self) -> list[Run]:
        """Return what each timing leaves, as `freehold bench` records it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return [
            fits.observed(self.anatomy, self.place(t.rates), t.kind, self.prompt, t.speed, now, t.rates)
            for t in self.timings
        ]


def main() -> int:
    """Measure, compare, print the table and the medians."""
    args = _arguments()
    paths = _paths(args.models)
    cells = []
    for name, path in paths.items():
        for context in args.contexts:
            cells.append(_measure(name, path, context, args.rounds))
            print(f"measured {name} at {context}", file=sys.stderr, flush=True)
    return _report(cells)


def _paths(models: list[str]) -> dict[str, Path]:
    """Return the files by name, and make sure that each was packed before."""
    store = Store(load_settings())
    paths = {name: store.resolve(name).path for name in models}
    paths |= {f"{name} {kind}": copy_in(paths[name], kind) for name, kind in COPIES if name in paths}
    for name, path in paths.items():
        print(f"packing {name}", file=sys.stderr, flush=True)
        code = "import sys, freehold; freehold.load(sys.argv[1], context=256).close()"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return paths


def _measure(name: str, path: Path, context: int, rounds: int) -> Cell:
    prompt, found = context - STEPS - 8, []
    with Child(sys.executable, Path(__file__).with_name("fit_child.py")) as child:
        load_s = child.ask("load", path=str(path), context=context)["load_s"]
        before = _ceilings()
        for salt in range(rounds + RETRIES):
            for kind, asked in (
                ("prefill", {"tokens": prompt, "steps": STEPS, "salt": salt}),
                ("decode", {}),
            ):
                speed, after = child.ask(kind, **asked)["tok_s"], _ceilings()
                if abs(after.int8_gops / before.int8_gops - 1) < STEADY:
                    mean = [
                        statistics.mean(pair)
                        for pair in zip(astuple(before)[:2], astuple(after)[:2], strict=True)
                    ]
                    found.append(Timing(kind, speed, Rates(*mean)))
                before = after
            if all(sum(t.kind == kind for t in found) >= rounds for kind in KINDS):
                break
        peak = child.ask("memory")["peak"]
    return Cell(name, from_file(path), context, prompt, peak, load_s, tuple(found))


def _ceilings() -> Rates:
    """Measure what the machine gives, by the median of three allocations: where one lies decides how fast it is."""
    threads = default_threads()
    reads = [native.measure_read_gb_s(threads, CEILING_MB) for _ in range(3)]
    return Rates(statistics.median(reads), native.measure_int8_gops(threads))


# --- what came of it ----------------------------------------------------------------------------------


def _report(cells: list[Cell]) -> int:
    every = [cell.runs() for cell in cells]
    facts: dict[str, Any] = {"bench": "fit", "machine": here(load_settings().home).cpu, "version": version()}
    rows, errors, inside = [], {(k, when): [] for k in KINDS for when in ("before", "after")}, []
    for cell, own in zip(cells, every, strict=True):
        others = History(Rates(1, 1), tuple(run for runs in every if runs is not own for run in runs))
        row = {"cell": f"{cell.name} {cell.context}", **_memory_row(cell)}
        for kind in KINDS:
            runs = [run for run in own if run.kind == kind]
            if not runs:
                print(f"{cell.name} {cell.context}: the machine was never steady for a {kind}")
                continue
            measured = statistics.median(run.measured for run in runs)
            raw = statistics.median(run.raw(others.rates) for run in runs)
            predicted = others.correction(kind, runs[0].model, runs[0].make).apply(raw)
            row |= {
                kind: measured,
                f"{kind} before": raw / measured - 1,
                f"{kind} after": predicted.mid / measured - 1,
            }
            errors[kind, "before"].append(abs(raw / measured - 1))
            errors[kind, "after"].append(abs(predicted.mid / measured - 1))
            inside.append(measured in predicted)
        rows.append(row)
        print(_line(row))
    facts["cells"] = [_cell_json(cell) for cell in cells]
    facts["memory_worst"] = max(abs(row["memory error"]) for row in rows)
    facts |= {f"{kind}_{when}": statistics.median(values) for (kind, when), values in errors.items()}
    for when in ("before", "after"):
        facts[f"speed_{when}"] = statistics.median([e for k in KINDS for e in errors[k, when]])
    facts["coverage"] = sum(inside) / len(inside)
    held = (
        facts["memory_worst"] <= MEMORY and facts["speed_before"] <= BEFORE and facts["speed_after"] <= AFTER
    )
    names = (
        "memory_worst",
        "decode_before",
        "decode_after",
        "prefill_before",
        "prefill_after",
        "speed_before",
    )
    for name in (*names, "speed_after", "coverage"):
        print(f"{name:16}{facts[name]:7.1%}")
    print(json.dumps({**facts, "claims_hold": held}))
    return 0 if held else 1


def _memory_row(cell: Cell) -> dict[str, float]:
    found = fits.fit(cell.anatomy, cell.place(Rates(1, 1)), cell.context)
    assert isinstance(found, fits.Fit)
    predicted = found.memory.total
    return {"memory": cell.peak / 1e6, "memory error": predicted / cell.peak - 1, "load": cell.load_s}


def _cell_json(cell: Cell) -> dict[str, Any]:
    timings = [
        [t.kind, *(round(v, 2) for v in (t.speed, t.rates.read_gb_s, t.rates.int8_gops))]
        for t in cell.timings
    ]
    row = {"name": cell.name, "context": cell.context, "prompt": cell.prompt, "peak": cell.peak}
    return {**row, "load_s": round(cell.load_s, 3), "timings": timings}


def _line(row: dict[str, Any]) -> str:
    speeds = "  ".join(
        f"{kind} {row[kind]:8.1f} tok/s {row[f'{kind} before']:+7.1%} {row[f'{kind} after']:+7.1%}"
        for kind in KINDS
        if kind in row
    )
    return f"{row['cell']:30}  {row['memory']:7.1f} MB {row['memory error']:+6.1%}  {speeds}  load {row['load']:.2f} s"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
