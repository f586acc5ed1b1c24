"""Teaches the invented notation of notation.py and shows what was learnt, what was forgotten, and what it cost.

`--replay 0` is a plain run. The last line is JSON.
Path: python benches/adapt/teach.py MODEL OUT [--rate R] [--replay N] [--weight W] [--epochs N] [--batch N] [--rank N]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.adapt.notation import write
from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.adapt.training.trainee import half_helps
from freehold.base.config import load_settings
from freehold.run.store import Store


def main() -> None:
    """Train once and print the receipt's figures."""
    defaults = FinetuneSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--replay", type=int, default=defaults.replay)
    parser.add_argument("--weight", type=float, default=defaults.replay_weight)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--rank", type=int, default=defaults.rank)
    given = parser.parse_args()
    store = Store(load_settings())
    settings = FinetuneSettings(
        rate=given.rate,
        replay=given.replay,
        replay_weight=given.weight,
        epochs=given.epochs,
        batch=given.batch,
        rank=given.rank,
        alpha=2.0 * given.rank,
        max_length=256,
        half=half_helps(),
    )
    with tempfile.TemporaryDirectory(prefix="notation-") as folder:
        train, test = Path(folder) / "train.jsonl", Path(folder) / "test.jsonl"
        write(train, test, samples=400, unseen=60)
        made = finetune(
            store.resolve(given.model),
            train,
            given.out,
            settings,
            test=test,
            packs=store.packs,
            on_step=lambda row: print(json.dumps(row), flush=True),
        )
    exam = made["before_after"]["all"]
    figures = {
        "model": given.model,
        "settings": made["inputs"]["settings"],
        "exact": [exam["before"], exam["after"], exam["items"]],
        "facts": made["control"],
        "text_rise": round(made["text_loss"]["rise"], 4),
        "mismatch": round(made["mismatch"]["mean_absolute"], 4),
        "step_cpu_seconds": made["speed"]["step_cpu_seconds"],
        "cpu_seconds": made["cpu_seconds"],
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
