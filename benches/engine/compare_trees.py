"""This tree beside an older one: the same model, measures in turns, ratios paired by round.

`python benches/engine/compare_trees.py MODEL --tree FOLDER [--starts 5] [--rounds 3] [--only MEASURE]...`; FOLDER is
another checkout whose .venv has its packages. Both run as child processes, one of which computes at a time. A ratio is
old seconds over new: above 1 the new tree is faster. Two processes of one tree can differ by a fifth, by where their
pages lie, so each start is a new pair of processes. Progress goes to stderr, a table to stdout, then one JSON line.
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


def pairs(args: argparse.Namespace, name: str, model: Path) -> list[tuple[float, float]]:
    """Measure both trees in turns, in processes of their own for each start; return (old, new) seconds."""
    found = []
    for begin in range(args.starts):
        with ExitStack() as stack:
            trees = (args.tree.resolve(), environments.ROOT)
            order = trees if begin % 2 else trees[::-1]  # who loads first alternates
            children = {tree: start(tree, stack, model) for tree in order}
            old, new = (children[tree] for tree in trees)
            for child in (old, new):  # a first time, which maps weights and fills caches
                seconds(child, *MEASURES[name])
            for turn in range(args.rounds):
                took = {
                    child: seconds(child, *MEASURES[name]) for child in ((old, new), (new, old))[turn % 2]
                }
                found.append((took[old], took[new]))
                machine.say(f"{name}: old {took[old]:.3f} s, new {took[new]:.3f} s")
    return found


def compare(args: argparse.Namespace) -> dict[str, object]:
    """Run every measure; print a line for each; return the record."""
    path = machine.resolve(args.model)
    ratios: dict[str, float] = {}
    for name in args.only or MEASURES:
        found = pairs(args, name, path)
        by_pair = [before / after for before, after in found]
        ratios[name] = round(median(by_pair), 3)
        print(
            f"{name:14} {median(p[0] for p in found):8.3f} s old {median(p[1] for p in found):8.3f} s new"
            f"   old/new {median(by_pair):.3f} ({min(by_pair):.3f} to {max(by_pair):.3f})",
            flush=True,
        )
    with ExitStack() as stack:
        meter = machine.ceilings(start(environments.ROOT, stack, path), [1, 2])
    record = {
        "bench": "compare_trees",
        **machine.describe(path),
        "starts": args.starts,
        "rounds": args.rounds,
    }
    return {**record, "ceilings": meter, "ratios": ratios}


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tree", type=Path, required=True, help="the older checkout")
    parser.add_argument("--starts", type=int, default=5, help="fresh processes of each tree")
    parser.add_argument("--rounds", type=int, default=3, help="pairs in each of them")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="default: all")
    print(json.dumps(compare(parser.parse_args())))


if __name__ == "__main__":
    main()
