"""Distillation on a narrow task, facts of a sentence as JSON: sequence-level, or on-policy between equal tokens.

    python benches/adapt/distil.py qwen2.5-coder:0.5b smollm2:135m
    python benches/adapt/distil.py qwen2.5-coder:1.5b qwen2.5-coder:0.5b --on-policy --noise 0.3

Every answer is checked against the sentence; scores are of greedy answers to prompts that were not trained on, as
served. `--noise`: that share of the prompts misspells words, so that the teacher errs too. CPU-seconds, the teacher's
included, of this process. With `--out` the run lies there, and the same command continues one that was interrupted.
Ends in one JSON line.
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.adapt.folders import work_folder
from freehold.adapt.distil import DistilSettings, DistilWatch, distil
from freehold.adapt.training.trainee import half_helps
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.cli.bench import version
from freehold.run.store import Store

FIRST = [
    "Maria",
    "John",
    "Aisha",
    "Chen",
    "Olga",
    "Peter",
    "Lena",
    "Tomas",
    "Grace",
    "Ivan",
    "Nadia",
    "Hugo",
    "Sara",
    "Omar",
    "Emil",
    "Ruth",
    "Kofi",
    "Anna",
]
LAST = [
    "Lopez",
    "Smith",
    "Khan",
    "Wei",
    "Novak",
    "Brown",
    "Fischer",
    "Silva",
    "Owens",
    "Petrov",
    "Haddad",
    "Martin",
    "Berg",
    "Said",
    "Larsen",
    "Cohen",
]
CITIES = [
    "Oslo",
    "Lima",
    "Cairo",
    "Turin",
    "Porto",
    "Delhi",
    "Quito",
    "Riga",
    "Bergen",
    "Lyon",
    "Accra",
    "Perth",
    "Boston",
    "Graz",
    "Ghent",
    "Tunis",
]
WORK = [
    "nurse",
    "baker",
    "pilot",
    "teacher",
    "welder",
    "lawyer",
    "farmer",
    "chemist",
    "driver",
    "painter",
    "plumber",
    "editor",
]
FORMS = (
    "{name} is {age} years old, works as a {job} and lives in {city}.",
    "{name}, a {age}-year-old {job} from {city}, called us this morning.",
    "Our new member is {name} ({age}), who is a {job} in {city}.",
    "In {city} we met {name}, aged {age}, a {job} by trade.",
)
TASK = (
    'Extract name, age, job and city as JSON with the keys "name", "age", "job" and "city". '
    "Answer with the JSON object alone.\n\n"
)


def main() -> int:
    """Distil once, print the facts."""
    args = _arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    store = Store(load_settings())
    lines = sentences(args.prompts + args.unseen, args.noise, args.seed)
    settings = DistilSettings(
        on_policy=args.on_policy,
        max_tokens=80,
        max_length=512,
        epochs=args.epochs,
        rate=args.lr,
        seed=args.seed,
        half=half_helps(),
    )
    with work_folder(args.out) as folder:
        made = distil(
            store.resolve(args.teacher),
            store.resolve(args.student),
            _written(folder / "prompts.jsonl", lines[: args.prompts]),
            folder / "tuned",
            settings,
            test=_written(folder / "unseen.jsonl", lines[args.prompts :]),
            packs=store.packs,
            watch=DistilWatch(doing=_said, step=lambda row: _said(json.dumps(row))),
        )
    facts = {
        "bench": "distil",
        "teacher": args.teacher,
        "student": args.student,
        "on_policy": args.on_policy,
        "machine": cpu_name(),
        "version": version(),
        "load_average": round(os.getloadavg()[0], 2),
        "noise": args.noise,
        "prompts": args.prompts,
        "answers": made.get("answers"),
        "scores": made["before_after"],
        "facts": made["control"],
        "text_rise": made["text_loss"]["rise"],
        "steps": made["steps"],
        "step_cpu_seconds": made["speed"]["step_cpu_seconds"],
        "cpu_seconds": made["cpu_seconds"],
        "at": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(facts))
    return 0


def sentences(count: int, noise: float, seed: int) -> list[dict[str, Any]]:
    """Return prompts, each with a schema that the right answer alone meets."""
    draw = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        facts = {
            "name": f"{draw.choice(FIRST)} {draw.choice(LAST)}",
            "age": draw.randint(18, 79),
            "job": draw.choice(WORK),
            "city": draw.choice(CITIES),
        }
        text = draw.choice(FORMS).format(**facts)
        prompt = TASK + (misspelt(text, facts, draw) if draw.random() < noise else text)
        found[prompt] = {"prompt": prompt, "json_schema": _only(facts)}
    return list(found.values())


def misspelt(text: str, facts: Mapping[str, Any], draw: random.Random) -> str:
    """Swap two letters in every longer word that is none of the facts."""
    kept = {part for value in facts.values() for part in str(value).split()}
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and word.strip(".,()") not in kept and word.isalpha():
            at = draw.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _only(facts: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {key: {"const": value} for key, value in facts.items()}
    allowed["age"] = {"enum": [facts["age"], str(facts["age"])]}
    return {"type": "object", "required": list(facts), "additionalProperties": False, "properties": allowed}


def _written(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def _said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--out", type=Path, help="keep the run here; default: a folder that is deleted")
    parser.add_argument("--on-policy", action="store_true")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--prompts", type=int, default=80)
    parser.add_argument("--unseen", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
