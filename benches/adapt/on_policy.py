"""Distils one task twice at about equal CPU-seconds: from the student's own answers, and from the teacher's.

The task is noisy: times of day on the 24-hour clock, which the teacher often gets wrong, and none of its answers is
judged before it is learnt. All are marked on the same unseen times, greedily and as served. Both runs lie in OUT and
resume: the same command continues. CPU-seconds are of answering and of the steps; sequence-level rehearses nothing
here, since the other side does not. Choose the epochs so that they come out equal. The last line is JSON.
Path: python benches/adapt/on_policy.py TEACHER STUDENT OUT [--epochs N] [--sequence-epochs N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freehold.adapt.distil import DistilSettings, DistilWatch, distil, marked
from freehold.adapt.evals.paired import compared, wilson
from freehold.adapt.run import cpu_seconds
from freehold.adapt.sampling import open_sampling
from freehold.adapt.teacher_prompts import read_prompts
from freehold.adapt.training.trainee import half_helps
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.cli.bench import version
from freehold.run.store import Store

ANSWER, CONTEXT = 16, 256  # tokens
SIDES = ("sequence", "on_policy")
LEVEL = 0.95


class Spent:
    """CPU-seconds of one side up to its newest step, those of earlier processes too, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.total = float(path.read_text()) if path.exists() else 0.0
        self._last = cpu_seconds()

    def answered(self, text: str) -> None:
        """Count what was spent on the teacher's answers."""
        self._count(cpu_seconds() - self._last)

    def step(self, row: Mapping[str, Any]) -> None:
        """Count a step, without the loading before it."""
        self._count(row["cpu_seconds"])
        print(json.dumps({**row, "spent": round(self.total, 1)}), file=sys.stderr, flush=True)

    def _count(self, seconds: float) -> None:
        self.total += seconds
        self._last = cpu_seconds()
        self._path.write_text(str(self.total))


def main() -> int:
    """Train what is left of both sides, mark all, print the facts."""
    args = _arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    store = Store(load_settings())
    teacher, student = store.resolve(args.teacher), store.resolve(args.student)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = times(args.prompts + args.unseen, args.seed)
    asked = [{"prompt": line["prompt"]} for line in lines[: args.prompts]]
    prompts = _written(args.out / "prompts.jsonl", asked)
    unseen = read_prompts(_written(args.out / "unseen.jsonl", lines[args.prompts :])).items
    sides: dict[str, Any] = {}
    for side in SIDES:
        spent = Spent(args.out / f"{side}.spent")
        if not (args.out / side).exists():
            watch = DistilWatch(doing=spent.answered, step=spent.step)
            distil(
                teacher,
                student,
                prompts,
                args.out / side,
                _settings(args, side),
                packs=store.packs,
                watch=watch,
            )
        made = json.loads((args.out / side / "receipt.json").read_text(encoding="utf-8"))
        sides[side] = {
            "steps": made["steps"],
            "step_cpu_seconds": made["speed"]["step_cpu_seconds"],
            "cpu_seconds": round(spent.total, 1),
            "facts": made["control"],
            "text_rise": round(made["text_loss"]["rise"], 4),
        }
    with open_sampling(teacher, store.packs, context=CONTEXT) as model:
        marks = {"teacher": marked(model, unseen, ANSWER)}
    adapters = {side: args.out / side for side in SIDES}
    with open_sampling(student, store.packs, context=CONTEXT, adapters=adapters) as model:
        for name in ("", *SIDES):
            marks[name or "student"] = marked(model, unseen, ANSWER, model.adapters.find(name))
    print(json.dumps(_facts(args, marks, sides)))
    return 0


def times(count: int, seed: int) -> list[dict[str, str]]:
    """Return different times of day with what is right on the 24-hour clock, mornings and afternoons."""
    drawn = random.Random(seed).sample(range(24 * 60), count)
    return [_time(*divmod(minute, 60)) for minute in drawn]


def _time(hour: int, minute: int) -> dict[str, str]:
    spoken = f"{(hour - 1) % 12 + 1}:{minute:02} {'am' if hour < 12 else 'pm'}"
    return {
        "prompt": f"Write {spoken} on the 24-hour clock as HH:MM, nothing else.",
        "exact": f"{hour:02}:{minute:02}",
    }


def _settings(args: argparse.Namespace, side: str) -> DistilSettings:
    return DistilSettings(
        on_policy=side == "on_policy",
        tries=1,
        max_tokens=ANSWER,
        max_length=CONTEXT,
        epochs=args.epochs if side == "on_policy" else args.sequence_epochs,
        batch=args.batch,
        replay=0,
        rate=args.lr,
        seed=args.seed,
        half=half_helps(),
    )


def _facts(
    args: argparse.Namespace, marks: Mapping[str, Sequence[bool]], sides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the last line: shares with their intervals, and the two sides item by item."""
    pairs = compared(marks["on_policy"], marks["sequence"])
    shares = {name: wilson([float(mark) for mark in each], LEVEL) for name, each in marks.items()}
    return {
        "bench": "on_policy",
        "teacher": args.teacher,
        "student": args.student,
        "machine": cpu_name(),
        "version": version(),
        "load_average": round(os.getloadavg()[0], 2),
        "prompts": args.prompts,
        "unseen": args.unseen,
        "right": {name: [round(part, 3) for part in (s.low, s.mid, s.high)] for name, s in shares.items()},
        "gained_lost_p": [pairs.wins, pairs.losses, pairs.p],
        "difference_80_percent": [round(part, 1) for part in pairs.difference],
        "sides": dict(sides),
        "at": time.strftime("%Y-%m-%d"),
    }


def _written(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--unseen", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sequence-epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
