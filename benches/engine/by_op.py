"""Where a step's time goes: the processor time of each kind of op, for a prompt, decoding and several streams.

`python benches/engine/by_op.py MODEL [--prefill 512] [--depth 512] [--streams 8] [--rounds 6] [--each]`; MODEL is a
path or a name in the store. One thread computes, and its processor time is counted inside the native step
(`Plan.watch`), so neighbours' time is not in it; of rounds the least of each op is taken. What memory gives still
depends on them.
`--each` adds every op in the plan's order. Lines go to stdout, then one JSON line.
Path: by_op.py -> drivers/peer_freehold.Freehold -> Plan.watch, Plan.spent
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.drivers.peer_freehold import Freehold
from benches.lib import machine

STEPS = 16  # of an answer, in a round
Spent: TypeAlias = list[tuple[str, float]]


def least(measure: Callable[[], Spent], rounds: int) -> Spent:
    """Measure so often, after a first time for packs and first touches; return each op's least seconds."""
    measure()
    found = [measure() for _ in range(rounds)]
    return [(ops[0][0], min(seconds for _, seconds in ops)) for ops in zip(*found, strict=True)]


def by_kind(spent: Spent, steps: int) -> dict[str, tuple[int, float]]:
    """Add up ops of a kind: how many, and milliseconds of a step; the longest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, seconds in spent:
        found[name].append(1e3 * seconds / steps)
    return {name: (len(ms), sum(ms)) for name, ms in sorted(found.items(), key=lambda it: -sum(it[1]))}


def figures_of(driver: Freehold, args: argparse.Namespace) -> list[tuple[str, int, Callable[[], Spent]]]:
    """List what is measured: its name, steps, and a measurement."""

    def watched(run: Callable[[], Any]) -> Callable[[], Spent]:
        def measure() -> Spent:
            run()
            return driver.plan.spent()

        return measure

    return [
        (f"prefill {args.prefill}", 1, watched(lambda: driver.prefill(args.prefill))),
        (f"decode after {args.depth}", STEPS, watched(lambda: driver.decode(args.depth, STEPS))),
        (f"{args.streams} streams", STEPS, watched(lambda: driver.batch(args.streams, STEPS))),
    ]


def main() -> None:
    """Read the command line, measure one figure after another, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--each", action="store_true", help="print every op in the plan's order")
    args = parser.parse_args()
    path = machine.resolve(args.model)
    driver = Freehold()
    driver.watches = True
    driver.load(str(path), max(args.prefill, args.depth) + 1024, threads=1)
    record: dict[str, Any] = {"bench": "by_op", **machine.describe(path), "rounds": args.rounds, "ms": {}}
    for figure, steps, measure in figures_of(driver, args):
        spent = least(measure, args.rounds)
        kinds = by_kind(spent, steps)
        record["ms"][figure] = {name: round(ms, 4) for name, (_, ms) in kinds.items()}
        print(f"{figure}: {sum(ms for _, ms in kinds.values()):.2f} ms a step")
        print("  " + ", ".join(f"{count} {name} {ms:.3f}" for name, (count, ms) in kinds.items()))
        if args.each:
            print("  " + " ".join(f"{name} {1e3 * seconds / steps:.3f}" for name, seconds in spent))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
