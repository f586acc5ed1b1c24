"""Preference training on a made-up taste: dates as 2024-03-01 rather than March 1, 2024.

    python benches/adapt/preferences.py smollm2:135m --pairs 160

The fact is in the prompt, so a right answer is one that repeats it in the chosen form; answers are greedy and as
served, to prompts that were not trained on. CPU-seconds, since the machine may be shared. With `--out` the run lies
there, and the same command continues one that was interrupted. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from calendar import month_name
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.adapt.folders import work_folder
from freehold.adapt.align import AlignSettings, align
from freehold.adapt.sampling import GREEDY, SamplingModel, open_sampling
from freehold.adapt.training.trainee import half_helps
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.types import Message
from freehold.cli.bench import version
from freehold.run.store import Store

THINGS = [
    "library",
    "museum",
    "harbour",
    "bridge",
    "theatre",
    "market hall",
    "observatory",
    "school",
    "swimming pool",
    "tram line",
    "archive",
    "clinic",
    "bakery",
    "ferry",
    "cinema",
    "garden",
    "town hall",
    "laboratory",
    "workshop",
    "station",
]
VERBS = (("opens", "open"), ("closes", "close"), ("moves", "move"), ("reopens", "reopen"))
ASKED = ("When does the {} {}?", "On which day does the {} {}?")


def main() -> int:
    """Train, answer the unseen prompts before and after, print the facts."""
    args = _arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    store = Store(load_settings())
    ref = store.resolve(args.model)
    lines = list(taste(args.pairs + args.unseen, args.seed))
    with work_folder(args.out) as folder:
        out = folder / "tuned"
        trained = _written(folder / "pairs.jsonl", lines[: args.pairs])
        unseen = _written(folder / "unseen.jsonl", lines[args.pairs :])
        settings = AlignSettings(
            rate=args.lr, nll=args.nll, replay=args.replay, seed=args.seed, half=half_helps()
        )
        made = align(
            ref,
            trained,
            out,
            settings,
            test=unseen,
            packs=store.packs,
            on_step=lambda row: print(json.dumps(row), file=sys.stderr, flush=True),
        )
        asked = lines[args.pairs :]
        with open_sampling(ref, store.packs, context=512, adapters={"tuned": out}) as model:
            forms = {name: chosen_form(model, asked, name) for name in ("", "tuned")}
    result = made["before_after"]
    facts = {
        "bench": "preferences",
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        "load_average": round(os.getloadavg()[0], 2),
        "pairs": args.pairs,
        "first_loss": made["first_loss"],
        "preferred": result["preferred"],
        "likelier": [result["likelier_before"], result["likelier_after"]],
        "chosen_nat": [result["chosen_before"], result["chosen_after"]],
        "right_in_chosen_form": [forms[""], forms["tuned"]],
        "mismatch": made["mismatch"]["mean_absolute"],
        "facts": made["control"],
        "text_rise": made["text_loss"]["rise"],
        "step_cpu_seconds": made["speed"]["step_cpu_seconds"],
        "cpu_seconds": made["cpu_seconds"],
        "at": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(facts))
    return 0


def taste(count: int, seed: int) -> list[dict[str, str]]:
    """Return pairs whose prompts all differ. `date`: what a right answer in the chosen form contains."""
    draw = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        thing, (says, does) = draw.choice(THINGS), draw.choice(VERBS)
        year, month, day = draw.randint(1990, 2049), draw.randint(1, 12), draw.randint(1, 28)
        spelled, date = f"{month_name[month]} {day}, {year}", f"{year}-{month:02}-{day:02}"
        prompt = f"The {thing} {says} on {spelled}. {draw.choice(ASKED).format(thing, does)}"
        found[prompt] = {
            "prompt": prompt,
            "chosen": f"The {thing} {says} on {date}.",
            "rejected": f"The {thing} {says} on {spelled}.",
            "date": date,
        }
    return list(found.values())


def chosen_form(model: SamplingModel, lines: Sequence[dict[str, str]], adapter: str) -> float:
    """Return the share of greedy answers that give the right date in the chosen form."""
    prompts = [model.render((Message("user", line["prompt"]),)) for line in lines]
    found = model.sample(
        prompts,
        seeds=[0] * len(prompts),
        max_tokens=40,
        sampling=GREEDY,
        adapter=model.adapters.find(adapter),
    )
    texts = [model.detokenize(answer.ids) for [answer] in found]
    return sum(line["date"] in text for line, text in zip(lines, texts, strict=True)) / len(lines)


def _written(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    kept = [{key: value for key, value in line.items() if key != "date"} for line in lines]
    path.write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, help="keep the run here; default: a folder that is deleted")
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--unseen", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--nll", type=float, default=0.1)
    parser.add_argument("--replay", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
