"""What reinforcement learning earns on unseen prompts, and costs: a run, beside one without a rate or without weights.

    python benches/adapt/reinforce.py smollm2:135m names --steps 40 -o names
    python benches/adapt/reinforce.py smollm2:135m names --steps 40 -o names-control --lr 0
    python benches/adapt/reinforce.py smollm2:135m names --steps 40 -o names-unweighted --cap 0
    python benches/adapt/reinforce.py smollm2:135m json --steps 40 -o json

`names` is reasoning-gym's needle_haystack with two or three statements, after two solved ones; `json` asks for the
facts of a sentence as JSON, by a reward of ours. `--stop N` ends after N steps of this process; the same command
continues. Prints a line a step, and ends in one JSON line: pass rates before and after, mismatch, shares of
CPU-seconds of sampling and training, and what was forgotten.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.adapt.reinforce.course import ReinforceSettings, ReinforceSources, reinforce
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.cli.bench import version
from freehold.run.store import Store

NAMES = "Ann Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lea Max Nora Otto Pia Ravi Sara Tom Uma Vera Will Yara Zoe"
CITIES = (
    "Rome Oslo Lima Cairo Paris Delhi Kyoto Quito Bern Dakar Perth Turin Lyon Porto Graz Osaka Boston Denver"
)
FORMS = (
    *("{n} is {a} years old and lives in {c}.", "In {c} lives {n}, who is {a}.", "{n}, {a}, comes from {c}."),
    *("Meet {n} from {c}: {a} years old.", "At {a}, {n} moved to {c}."),
)
REWARD = '''"""A fifth for a JSON object, a fifth for its keys, a fifth for each value."""
import json


def reward(prompt, answer, item):
    try:
        found = json.loads(answer)
    except ValueError:
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    facts = item["facts"]
    score = 0.2 + 0.2 * (set(found) == set(facts))
    return round(score + 0.2 * sum(found.get(key) == value for key, value in facts.items()), 6)
'''


def main() -> int:
    """Run, print a line a step, then the facts."""
    args = _arguments()
    store = Store(load_settings())
    sources, given = _task(args.task, args.out)
    asked = ReinforceSettings(
        steps=args.steps,
        rate=args.lr,
        cap=args.cap,
        half=args.half,
        seed=args.seed,
        unseen=args.unseen,
        **given,
    )

    def on_step(row: Mapping[str, Any]) -> None:
        print(json.dumps({k: v for k, v in row.items() if k != "seeds"}), file=sys.stderr, flush=True)
        if args.stop and row["step"] % args.stop == 0 and row["step"] < args.steps:
            raise KeyboardInterrupt

    try:
        made = reinforce(
            store.resolve(args.model), sources, args.out, asked, packs=store.packs,
            on_note=lambda note: print(note, file=sys.stderr, flush=True), on_step=on_step,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("stopped: the same command continues", file=sys.stderr)
        return 75
    facts = {
        "bench": "reinforce",
        "task": args.task,
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        "load_average": round(os.getloadavg()[0], 2),
        **{name: getattr(asked, name) for name in ("steps", "prompts", "group", "rate", "cap", "half")},
        **{name: made.get(name) for name in ("before_after", "mismatch", "speed", "control", "text_loss")},
    }
    print(json.dumps(facts))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("task", choices=["names", "json"])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--cap", type=float, default=2.0)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--stop", type=int, default=0, help="end after a step that this divides")
    return parser.parse_args()


def _task(task: str, out: Path) -> tuple[ReinforceSources, dict[str, Any]]:
    """Return a task's verifier and prompts, written beside `out`, and its settings."""
    if task == "names":
        spec = "rg:needle_haystack:min_num_statements=2,max_num_statements=3"
        return ReinforceSources(spec), {"shots": 2, "max_tokens": 24}
    folder = out.with_name(f"{out.name}.task")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _lines(500)))
    return ReinforceSources(str(folder / "reward.py"), prompts=folder / "prompts.jsonl"), {"max_tokens": 40}


def _lines(count: int) -> list[dict[str, Any]]:
    draw, made = random.Random(0), {}
    while len(made) < count:
        facts = {
            "name": draw.choice(NAMES.split()),
            "age": draw.randint(18, 90),
            "city": draw.choice(CITIES.split()),
        }
        said = draw.choice(FORMS).format(n=facts["name"], a=facts["age"], c=facts["city"])
        question = f"{said}\nWrite it as JSON with the keys name, age and city."
        made[question] = {"prompt": question, "answer": json.dumps(facts), "facts": facts}
    return list(made.values())


if __name__ == "__main__":
    sys.exit(main())
