"""The kernel tables of this machine beside each other, and beside llama.cpp built for the same instructions.

`python benches/engine/tables.py MODEL [--table NAME]... [--llama TABLE=FOLDER]... [--only MEASURE] [--minutes 2.5]
[--threads N] [--processor-time]`;
FOLDER holds a libllama.so built for what TABLE uses, of the version that .peers/llama_cpp has. llama.cpp builds with
`cmake -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF`, and
-DGGML_AVX_VNNI=ON for avxvnni. All racers are loaded at once, one computes at a time, a round begins with another one
each time, and ratios are medians of the rounds' own. Ceilings are each table's, measured before the race.
Progress goes to stderr, a table to stdout, then one JSON line.
Path: tables.py -> lib/peer.Child -> drivers/peer_freehold.py, drivers/peer_llama_cpp.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments, machine, measures
from benches.lib.peer import Child
from freehold import _native

MEASURES = {
    "prefill-512": measures.Measure("prefill-512", "prefill", 512),
    "decode": measures.Measure("decode", "decode", 32, 48),
}
CONTEXT = 2048


@dataclass
class Racer:
    """A loaded engine, and what it did in each round of a measure."""

    name: str
    child: Child
    ceilings: measures.Ceilings | None = None
    speeds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, measure: measures.Measure, threads: int, clock: str) -> None:
        """Do the work once; the first time of a measure only warms up."""
        work = {"kind": measure.kind, "size": measure.size, "steps": measure.steps}
        took = self.child.ask("run", **work, threads=threads, options={})
        if measure.name in self.speeds:
            self.speeds[measure.name].append(measure.tokens / took[clock])
        else:
            self.speeds[measure.name] = []

    def beside(self, other: Racer, name: str) -> float:
        """Give the median of the rounds' ratios."""
        return median(a / b for a, b in zip(self.speeds[name], other.speeds[name], strict=True))


def racers(args: argparse.Namespace, path: Path, stack: ExitStack) -> list[Racer]:
    """Start and load every engine, one after the other."""
    found = []
    for table in args.table or [name for name in _native.isas() if name != "scalar"]:
        child = Child(sys.executable, environments.FREEHOLD, stops=True, env={"FREEHOLD_ISA": table})
        stack.enter_context(child)
        limits = machine.bounds(child.ask("ceilings", threads=[args.threads]))
        found.append(Racer(f"freehold {table}", child, limits))
    for given in args.llama:
        table, _, folder = given.partition("=")
        env = {"LLAMA_CPP_LIB_PATH": str(Path(folder).resolve())}
        python = environments.environment("llama_cpp")
        child = stack.enter_context(Child(python, environments.LLAMA_CPP, stops=True, env=env))
        found.append(Racer(f"llama.cpp {table}", child))
    for racer in found:
        facts = racer.child.ask("load", path=str(path), context=CONTEXT)
        machine.say(f"{racer.name}: {facts['version']}")
    return found


def race(found: list[Racer], names: list[str], args: argparse.Namespace) -> None:
    """Take turns until the time is over, but for three rounds at least."""
    end = time.monotonic() + 60 * args.minutes
    clock = "cpu_seconds" if args.processor_time else "seconds"
    turn = 0
    while turn < 4 or time.monotonic() < end:
        first = turn % len(found)
        for name in names:
            for racer in found[first:] + found[:first]:
                racer.run(MEASURES[name], args.threads, clock)
        turn += 1


def report(found: list[Racer], name: str, facts: measures.Facts) -> dict[str, dict[str, float]]:
    """Print a measure's table; return its figures."""
    figures = {}
    print(
        f"{name}: tok/s, median of {len(found[0].speeds[name])} rounds (least, most), then beside each other"
    )
    for racer in found:
        speeds = racer.speeds[name]
        bound = racer.ceilings.of(MEASURES[name], facts) if racer.ceilings else None
        share = f", {100 * median(speeds) / bound:.0f} % of {bound:.0f}" if bound else ""
        others = {other.name: racer.beside(other, name) for other in found if other is not racer}
        ratios = ", ".join(f"{ratio:.2f} {other}" for other, ratio in others.items())
        spread = f"{median(speeds):.1f} ({min(speeds):.1f}, {max(speeds):.1f}){share}"
        print(f"  {racer.name:18} {spread}: {ratios}")
        figures[racer.name] = {"median": median(speeds), "ceiling": bound or 0.0, **others}
    return figures


def main() -> None:
    """Race the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--table", action="append", choices=_native.isas(), help="default: all but scalar")
    parser.add_argument("--llama", action="append", default=[], metavar="TABLE=FOLDER")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="default: both")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="tokens a second of it: for --threads 1 beside other work",
    )
    args = parser.parse_args()
    path, names = machine.resolve(args.model), args.only or list(MEASURES)
    with ExitStack() as stack:
        about = machine.describe(path)
        found = racers(args, path, stack)
        race(found, names, args)
    print(f"{about['model']} on {about['cpu']}, {args.threads} threads, load {about['load_1m']} before")
    for racer in found:
        if racer.ceilings:
            limits = racer.ceilings
            print(f"  {racer.name}: {limits.int8_gops:.0f} GOPS, {limits.read_gb_s:.1f} GB/s")
    facts = measures.Facts.of(path)
    print(json.dumps({"bench": "tables", **about, **{name: report(found, name, facts) for name in names}}))


if __name__ == "__main__":
    main()
