"""A training step through packed weights: processor seconds and memory, of four rows of 64 tokens.

All tokens are random and all count, so nothing is shared and the head is computed for each; a step of real samples
costs less. The last line is JSON.
Path: python benches/adapt/step.py MODEL [--rows 4] [--tokens 64] [--rank 8] [--steps 4] [--no-half]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import numpy as np

from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee
from freehold.base.config import load_settings
from freehold.run.store import Store


def main() -> None:
    """Run some steps and print what one costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--half", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    path = Store(load_settings()).resolve(given.model).path
    trainee = Trainee.open(path, rank=given.rank, half=given.half)
    optimizer = Optimizer(trainee.parameters(), 1e-4)
    size = (given.rows, given.tokens + 1)
    rows = np.random.default_rng(0).integers(100, trainee.tokenizer.vocab_size - 1000, size).tolist()
    spent, losses = [], []
    for step in range(given.steps):
        before = time.process_time()
        found = trainee.log_probs(rows)
        loss = -sum((one.sum() for one in found[1:]), found[0].sum()) / (given.rows * given.tokens)
        optimizer.step(loss)
        spent.append(time.process_time() - before)
        losses.append(float(loss.detach()))
        print(f"step {step + 1}: loss {losses[-1]:.4f}, {spent[-1]:.2f} CPU-s")
    figures = {
        "model": given.model,
        "rows": given.rows,
        "tokens": given.tokens,
        "rank": given.rank,
        "half": given.half,
        "step_cpu_seconds": round(statistics.median(spent[1:]), 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "losses": [round(loss, 4) for loss in losses],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
