"""How long /health takes while a server opens files that hurt: quiet, and beside them.

Knows a client of such files (tests/hurting.py) and prints the figures; knows no form of file.
Path: eyes/hurting.py, ears/hurting.py -> run -> tests.hurting.Hurting.send_all
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benches.lib.machine import describe
from tests.hurting import F, Hurting, health, serving

GOAL_MS = 100


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p99 and the longest, in milliseconds."""
    ranked = sorted(seconds)
    at = {
        "p50": len(ranked) // 2,
        "p99": min(int(len(ranked) * 0.99), len(ranked) - 1),
        "max": len(ranked) - 1,
    }
    return {name: round(1e3 * ranked[place], 2) for name, place in at.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads of a command line."""
    parser.add_argument("--rounds", type=int, default=2, help="times that all files are sent")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds without files, before")


def run(bench: str, model: Path, kind: type[Hurting[F]], files: Sequence[F], args: argparse.Namespace) -> int:
    """Start a server, send the files, print the figures; return 1 where a file was neither right nor refused."""
    about = describe(model)
    with serving(model) as server:
        client = kind(server.port, model.name)
        client.send_all(files[:1])
        with health(server.port) as quiet:
            time.sleep(args.quiet)
        before, began = server.memory(), time.monotonic()
        with health(server.port) as beside:
            for number in range(args.rounds):
                client.send_all(random.Random(number).sample(files, len(files)))
        took, grown = time.monotonic() - began, server.memory() - before
    record = {"bench": bench, **about, "files": len(files) * args.rounds, "seconds": took}
    record |= {"quiet_ms": quantiles(quiet), "beside_ms": quantiles(beside), "grown_mb": round(grown, 1)}
    record["wrong"] = client.wrong
    print(
        f"{record['files']} files in {took:.1f} s; {grown:+.1f} MB afterwards; /health in ms, goal p99 {GOAL_MS}"
    )
    for name in ("quiet", "beside"):
        print(f"{name:8}" + "".join(f"{key:>6} {value:7.2f}" for key, value in record[f"{name}_ms"].items()))
    for name, seconds in sorted(client.seconds.items(), key=lambda item: -item[1])[:5]:
        print(f"{seconds:7.2f} s  {name}")
    print("\n".join(client.wrong) or "each file was right or refused by name")
    print(json.dumps(record))
    return int(bool(client.wrong))
