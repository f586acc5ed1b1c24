"""Decode and prefill speed of Freehold beside llama.cpp: same file, threads and f16 cache, taking turns.

`python benches/peers.py MODEL [--rounds 5] [--threads 2] [--json]`; MODEL as everywhere.
Each round measures one peer, then the other, so that a busy machine slows both; what counts is the median
of the rounds' ratios. llama.cpp is built for this machine into .peers/ on first use. Ends in one JSON line.
Path: peers.py -> peer.Child -> peer_llama_cpp.py, peer_freehold.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches import peer

PREFILL = 512
PROMPT = 32
DECODE = 128
CONTEXT = 1024  # room for either, and the same in both
BUSY = 0.5  # load average above which the ratios say more about the machine's other work than about the peers
SCRIPTS = {"freehold": peer.FREEHOLD, "llama_cpp": peer.LLAMA_CPP}
MEASURES = {
    "prefill": (PREFILL, {"tokens": PREFILL}),
    "decode": (DECODE, {"prompt": PROMPT, "tokens": DECODE}),
}


def one_round(children: dict[str, peer.Child], first: int) -> dict[str, dict[str, float]]:
    """Measure tokens per second of every peer, in turns; `first` rotates who begins."""
    names = list(children)
    order = names[first % len(names) :] + names[: first % len(names)]
    rates: dict[str, dict[str, float]] = {name: {} for name in names}
    for measure, (tokens, fields) in MEASURES.items():
        for name in order:
            rates[name][measure] = tokens / children[name].ask(measure, **fields)["seconds"]
    return rates


def compare(children: dict[str, peer.Child], rounds: int) -> dict[str, Any]:
    """Warm up once, run `rounds` rounds, and condense: medians, spreads, and medians of the paired ratios."""
    one_round(children, 0)
    history = []
    for i in range(rounds):
        history.append(one_round(children, i))
        line = "  ".join(f"{n} {r['prefill']:.1f} / {r['decode']:.1f}" for n, r in history[-1].items())
        print(f"round {i + 1}: prefill / decode tok/s: {line}", file=sys.stderr, flush=True)
    record: dict[str, Any] = {}
    for name in children:
        for measure in MEASURES:
            values = [rates[name][measure] for rates in history]
            record[f"{name}_{measure}_tok_s"] = round(statistics.median(values), 2)
            record[f"{name}_{measure}_spread"] = [round(min(values), 2), round(max(values), 2)]
    if len(children) == len(SCRIPTS):
        for measure in MEASURES:
            ratios = [rates["freehold"][measure] / rates["llama_cpp"][measure] for rates in history]
            record[f"{measure}_ratio"] = round(statistics.median(ratios), 3)
            record[f"{measure}_ratio_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return record


def machine() -> dict[str, Any]:
    """Name the processor and the commit a figure belongs to, and how busy the machine was before."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    command = ["git", "-C", str(peer.ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return {"cpu": model, "system": platform.platform(), "commit": commit, "load_1m": os.getloadavg()[0]}


def resolve(model: str) -> Path:
    """Turn MODEL into the path of a file: a path as it stands, anything else through Freehold's own store."""
    if Path(model).is_file():
        return Path(model).resolve()
    from freehold.config import load_settings
    from freehold.store import Store

    return Store(load_settings()).resolve(model).path


def show(record: dict[str, Any]) -> None:
    """Print the comparison for a reader."""
    print(f"{record['model']} on {record['cpu']}, {record['threads']} threads, f16 KV")
    if record["load_1m"] > BUSY:
        print(f"the machine is busy (load {record['load_1m']:.1f}): threads that spin suffer most")
    if "read_gb_s" in record:
        print(f"ceilings: {record['read_gb_s']:.1f} GB/s read, {record['int8_gops']:.0f} int8 GOP/s")
    for measure in MEASURES:
        rates = "  ".join(f"{n} {record[f'{n}_{measure}_tok_s']:.1f} tok/s" for n in record["peers"])
        ratio = record.get(f"{measure}_ratio")
        print(f"{measure:8} {rates}" + (f"  ratio {ratio:.2f}" if ratio else ""))


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="only the JSON line on stdout")
    parser.add_argument("--peer", action="append", choices=list(SCRIPTS), help="default: both")
    parser.add_argument("--llama-cpp-python", type=Path, help="an interpreter with llama-cpp-python")
    return parser.parse_args()


def main() -> None:
    """Start both peers on the same file, let them take turns, report."""
    args = options()
    wanted = args.peer or list(SCRIPTS)
    path = resolve(args.model)
    record: dict[str, Any] = {"bench": "peers", "model": path.name, "threads": args.threads, **machine()}
    with ExitStack() as stack:
        children = {}
        for name in wanted:
            python = Path(sys.executable)
            if name == "llama_cpp":
                python = args.llama_cpp_python or peer.environment("llama_cpp")
            children[name] = stack.enter_context(peer.Child(python, SCRIPTS[name]))
            load = {"path": str(path), "threads": args.threads, "context": CONTEXT, "kv": "f16"}
            answer = children[name].ask("load", **load)
            record[f"{name}_version"], record[f"{name}_load_s"] = (
                answer["version"],
                round(answer["load_s"], 3),
            )
        if "freehold" in children:
            record |= children["freehold"].ask("ceilings", threads=args.threads)
        record |= {"peers": wanted, **compare(children, args.rounds)}
    if not args.json:
        show(record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
