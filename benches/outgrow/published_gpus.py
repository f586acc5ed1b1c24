"""Compare our prediction for GPUs with aiconfigurator's for the same configurations: by how much, and where.

`python -m benches.outgrow.published_gpus [--engine vllm]`
Rows of published/aiconfigurator-0.12.0.csv (made offline by `aiconfigurator cli default`, one run a model and system;
its figures are a model's too, over measured kernels) have a number of users who each send the next request when the
last is answered. The same users are simulated on steps that `fit --on` predicts, and given beside its closed form.
Path: published_gpus.py -> engine.predicted -> SimulatedEngine
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.base import catalog
from freehold.choose.advisor import roofline
from freehold.choose.advisor.anatomy import from_catalogue
from freehold.choose.advisor.engines import engine as engine_of
from freehold.outgrow.capacity.engine import (
    EngineLimits,
    EngineModel,
    SimulatedEngine,
    SimulatedRequest,
    predicted,
)
from freehold.outgrow.capacity.trace import TracedRequest
from freehold.outgrow.contract import ParallelSizes

ROWS = Path(__file__).parent / "published" / "aiconfigurator-0.12.0.csv"
NAMES = {
    "meta-llama/Meta-Llama-3.1-70B": "llama3.1:70b",
    "meta-llama/Meta-Llama-3.1-8B": "llama3.1:8b",
    "Qwen/Qwen3-32B": "qwen3:32b",
    "Qwen/Qwen3-8B": "qwen3:8b",
}
FIGURES = ("requests_s", "ttft_ms", "tpot_ms", "tokens_s_gpu")


def main() -> None:
    """Print a line a configuration, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="vllm")
    args = parser.parse_args()
    with ROWS.open(newline="", encoding="utf-8") as file:
        rows = [compared(row, args.engine) for row in csv.DictReader(file)]
    print(
        "configuration                         req/s      TTFT ms       TPOT ms      tok/s/GPU   (ours / theirs)"
    )
    for row in rows:
        cells = "  ".join(f"{row['ours'][f]:7.1f}/{row['theirs'][f]:<7.1f}" for f in FIGURES)
        print(f"{row['name']:34}  {cells}")
    ratios = {f: [r["ours"][f] / r["theirs"][f] for r in rows] for f in FIGURES}
    middle = {
        f: {"median": round(median(v), 3), "low": round(min(v), 3), "high": round(max(v), 3)}
        for f, v in ratios.items()
    }
    print(
        json.dumps(
            {"bench": "published_gpus", "configurations": len(rows), "ours_over_theirs": middle, "rows": rows}
        )
    )


def compared(row: dict[str, str], engine: str) -> dict[str, Any]:
    """Return both figures of a replica."""
    isl, osl, tp, users = (int(row[k]) for k in ("isl", "osl", "tp", "concurrency"))
    rig = catalog.rig(f"{tp}x{row['system'].partition('_')[0]}")
    work, runs = from_catalogue(catalog.model(NAMES[row["model"]]), "BF16"), engine_of(engine)
    sizes, limits = ParallelSizes(tensor=tp), EngineLimits(streams=users)
    model = predicted(work, sizes, rig, runs, limits, prompt=isl, answer=osl, about={})
    done = list(users_of(model, isl, osl, users, 8 * users + 40))
    late = done[2 * users :]
    span = late[-1].last - late[0].last
    rate = (len(late) - 1) / span
    closed = roofline.serving(work, rig, runs, isl, osl, users)
    ours = {
        "requests_s": rate,
        "ttft_ms": 1e3 * median(r.ttft for r in late),
        "tpot_ms": 1e3 * median(r.tpot for r in late),
        "tokens_s_gpu": rate * osl / tp,
    }
    told = {
        "ttft_ms": 1e3 * closed.ttft.mid,
        "tpot_ms": 1e3 * closed.tpot.mid,
        "tokens_s_gpu": closed.output.mid / tp,
    }
    return {
        "name": f"{NAMES[row['model']]} {isl}+{osl} {rig.name} x{users}",
        "ours": {k: round(v, 3) for k, v in ours.items()},
        "theirs": {f: float(row[f]) for f in FIGURES},
        "closed_form": {k: round(v, 3) for k, v in told.items()},
    }


def users_of(
    model: EngineModel, prompt: int, answer: int, users: int, requests: int
) -> Iterable[SimulatedRequest]:
    """Yield answered requests of users who send the next when the last is answered; they begin one after another."""
    engine, running, sent = SimulatedEngine(model), [], 0
    gap = model.time.seconds(users, users * prompt) * answer / users
    while True:
        while len(running) < users and sent < requests:
            at = sent * gap if sent < users else engine.clock
            engine.run(at)
            running.append(SimulatedRequest.of(TracedRequest(max(at, engine.clock), prompt, answer), sent))
            engine.submit(running[-1])
            sent += 1
        if not running:
            return
        engine.run(math.nextafter(engine.clock, math.inf))  # one step
        for done in [r for r in running if not math.isnan(r.last)]:
            running.remove(done)
            yield done


if __name__ == "__main__":
    main()
