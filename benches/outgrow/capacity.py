"""Time the simulator on an hour of Azure's public trace, and show what routing does to a trace with prefixes.

`python -m benches.outgrow.capacity [--trace FILE] [--prefixes FILE] [--replicas 8]`
The traces are AzureLLMInferenceTrace_conv 2023 (CC-BY 4.0; Patel et al., Splitwise, ISCA 2024) and Mooncake's
conversation trace (Apache-2.0; Qin et al., FAST 2025), plain or gzipped; without --trace the thousand requests of the
tests are played. A step's time is a fixed one, of about an 8B model on an H100: what is timed is the simulator.
Path: capacity.py -> trace.from_file -> simulation.simulate
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import ROOT
from benches.lib.machine import describe
from freehold.outgrow.capacity import trace as traces
from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.outgrow.capacity.simulation import POLICIES, simulate

HERE = ROOT / "tests" / "outgrow" / "capacity"
TIME = StepTime((0, 1, 64, 256), (0.006, 0.006, 0.009, 0.018), depth=4e-8, prompt=2.2e-5, positions=1e-9)
MODEL = EngineModel(TIME, EngineLimits(streams=256, room=400_000, chunk=2048))


def main() -> None:
    """Print a line a run, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=HERE / "azure-conv-1000.csv")
    parser.add_argument("--prefixes", type=Path, default=HERE / "mooncake-200.jsonl")
    parser.add_argument("--replicas", type=int, default=8)
    args = parser.parse_args()
    begun = time.perf_counter()
    trace, prefixes = traces.from_file(args.trace), traces.from_file(args.prefixes)
    read_s = time.perf_counter() - begun
    hour = played(trace, args.replicas, "least-loaded")
    hits = [played(prefixes, args.replicas, name) for name in POLICIES]
    unbounded = EngineModel(TIME, EngineLimits(streams=256, chunk=2048))
    best = [played(prefixes, args.replicas, name, unbounded) for name in POLICIES]
    load = round(os.getloadavg()[0], 2)
    facts = {**describe(args.trace), "load_1m": load, "read_s": round(read_s, 3)}
    print(json.dumps({"bench": "capacity", **facts, "trace": hour, "routing": hits, "unbounded_cache": best}))


def played(
    trace: traces.RequestTrace, replicas: int, routing: str, model: EngineModel = MODEL
) -> dict[str, Any]:
    """Simulate and time."""
    begun, cpu = time.perf_counter(), time.process_time()
    run = simulate(trace, model, replicas, routing=routing)
    row = {
        "requests": len(run.ttft),
        "replicas": replicas,
        "routing": routing,
        "steps": run.steps,
        "wall_s": round(time.perf_counter() - begun, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "hit_rate": round(run.hit_rate, 4),
        "ttft_p95_s": round(run.percentile("ttft", 95), 4),
        "tpot_p95_ms": round(1e3 * run.percentile("tpot", 95), 2),
    }
    print(row, file=sys.stderr)
    return row


if __name__ == "__main__":
    main()
