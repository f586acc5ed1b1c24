"""This tree beside an older one: the same model, measures in turns, ratios paired by round.

`python benches/engine/compare_trees.py MODEL --tree FOLDER [--rounds 5] [--only MEASURE]...`, where FOLDER is another
checkout whose .venv has its packages. Both run as child processes, one of which computes at a time. A ratio is old
seconds over new: above 1 the new tree is faster. Progress goes to stderr, a table to stdout, and last one JSON line.
Path: compare_trees.py -> lib/peer.Child -> drivers/peer_freehold.py of each tree
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments, machine
from benches.lib.peer import Child

# name -> (kind, size, steps): as lib/driver.Driver.run takes them.
MEASURES = {
    "prefill-512": ("prefill", 512, 0),
    "prefill-2048": ("prefill", 2048, 0),
    "decode-32": ("decode", 32, 64),
    "decode-2048": ("decode", 2048, 48),
    "batch-16": ("batch", 16, 32),
}
CONTEXT = 4096
DRIVERS = ("drivers/peer_freehold.py", "peer_freehold.py")  # below benches/, where a tree may hold it


def start(tree: Path, stack: ExitStack, model: Path) -> Child:
    """Start a tree's engine in its own environment and load the model there."""
    driver = next((tree / "benches" / name for name in DRIVERS if (tree / "benches" / name).exists()), None)
    python = tree / ".venv/bin/python"
    if driver is None or not python.exists():
        sys.exit(f"{tree} holds no benches/{DRIVERS[0]} with a .venv beside it")
    child = stack.enter_context(Child(python, driver, stops=True))
    child.ask("load", path=str(model), context=CONTEXT)
    return child


def seconds(child: Child, kind: str, size: int, steps: int) -> float:
    """Have a child do the work once."""
    return child.ask("run", kind=kind, size=size, steps=steps, threads=None, options={})["seconds"]


def compare(args: argparse.Namespace) -> dict[str, object]:
    """Measure both trees in turns, the first of a round alternating; return the record."""
    path = machine.resolve(args.model)
    ratios: dict[str, float] = {}
    with ExitStack() as stack:
        new, old = (start(tree, stack, path) for tree in (environments.ROOT, args.tree.resolve()))
        meter = machine.ceilings(new, [1, 2])
        for name in args.only or MEASURES:
            work = MEASURES[name]
            for child in (old, new):  # a first time, which maps weights and fills caches
                seconds(child, *work)
            pairs = []
            for turn in range(args.rounds):
                order = (old, new) if turn % 2 else (new, old)
                took = {child: seconds(child, *work) for child in order}
                pairs.append((took[old], took[new]))
                machine.say(f"{name}: old {took[old]:.3f} s, new {took[new]:.3f} s")
            found = [before / after for before, after in pairs]
            ratios[name] = round(median(found), 3)
            print(
                f"{name:14} {median(p[0] for p in pairs):8.3f} s old {median(p[1] for p in pairs):8.3f} s new"
                f"   old/new {median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
            )
    return {
        "bench": "before",
        **machine.describe(path),
        "rounds": args.rounds,
        "ceilings": meter,
        "ratios": ratios,
    }


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tree", type=Path, required=True, help="the older checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="default: all")
    print(json.dumps(compare(parser.parse_args())))


if __name__ == "__main__":
    main()
