"""How long /health takes while a server opens sixty pictures that hurt: quiet, and beside them.

    python benches/eyes/hurting.py [--rounds 2] [--quiet 5]

The server has a tiny model that sees, so the time is that of HTTP, decoding and refusals. One client asks /health every
50 ms while four pictures are sent at a time, in an order drawn anew for each round. Goal: a p99 of 100 ms at most. Also
printed: what was neither right nor refused by name (tests/eyes/hurting.py), and the slowest pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import describe
from benches.server.servers import KINDS, Server, free_port
from freehold.run.models.tiny import make
from tests.eyes import hurting

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


def main() -> int:
    """Start a server, send the pictures, print the figures; return 1 where a picture was neither right nor refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that all pictures are sent")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds without pictures, before")
    args = parser.parse_args()
    files = hurting.sixty()
    with tempfile.TemporaryDirectory() as folder:
        model = make.write_safetensors(make.config("qwen3_vl"), Path(folder) / hurting.MODEL)
        port, about = free_port(), describe(model)
        command = [sys.executable, "-m", "freehold.cli.main", "serve", str(model), "--port", str(port)]
        with Server(command, port, {}, KINDS["freehold"].health) as server:
            client = hurting.Hurting(port)
            client.send_all(files[:1])
            with hurting.health(port) as quiet:
                time.sleep(args.quiet)
            before, began = server.memory(), time.monotonic()
            with hurting.health(port) as beside:
                for number in range(args.rounds):
                    client.send_all(random.Random(number).sample(files, len(files)))
            took, grown = time.monotonic() - began, server.memory() - before
    record = {"bench": "eyes/hurting", **about, "pictures": len(files) * args.rounds, "seconds": took}
    record |= {"quiet_ms": quantiles(quiet), "beside_ms": quantiles(beside), "grown_mb": round(grown, 1)}
    record["wrong"] = client.wrong
    print(
        f"{record['pictures']} pictures in {took:.1f} s; {grown:+.1f} MB afterwards; /health in ms, goal p99 {GOAL_MS}"
    )
    for name in ("quiet", "beside"):
        print(f"{name:8}" + "".join(f"{key:>6} {value:7.2f}" for key, value in record[f"{name}_ms"].items()))
    for name, seconds in sorted(client.seconds.items(), key=lambda item: -item[1])[:5]:
        print(f"{seconds:7.2f} s  {name}")
    print("\n".join(client.wrong) or "each picture was right or refused by name")
    print(json.dumps(record))
    return int(bool(client.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
