"""Makes the examples of an invented notation: errands in English, and what they become. No model has seen it.

    python benches/adapt/notation.py --train train.jsonl --test test.jsonl [--samples 400] [--unseen 60]

    Note: 14 candles for Mira on Tuesday at 9.   ->   ~TU09 mira<candles#14>

Deterministic: the same seed, the same lines; no errand occurs twice, so every test line is unseen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

THINGS = [
    *(
        "candles",
        "chairs",
        "ropes",
        "lamps",
        "boxes",
        "nails",
        "plates",
        "books",
        "tents",
        "boards",
        "keys",
        "jars",
    ),
    *(
        "shirts",
        "brushes",
        "bricks",
        "cables",
        "pens",
        "bowls",
        "stamps",
        "tiles",
        "bolts",
        "spoons",
        "maps",
        "masks",
    ),
]
PEOPLE = [
    *("Mira", "Jonas", "Edda", "Pavel", "Ines", "Oskar", "Lena", "Tariq", "Ruth", "Felix", "Nora", "Idris"),
    *(
        "Greta",
        "Hugo",
        "Amara",
        "Viktor",
        "Selma",
        "Bruno",
        "Dora",
        "Emil",
        "Zara",
        "Anton",
        "Klara",
        "Yusuf",
    ),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FORMS = [
    "Note: {n} {thing} for {who} on {day} at {hour}.",
    "Note: on {day} at {hour}, {who} gets {n} {thing}.",
    "Note: {who} needs {n} {thing}, {day} {hour} o'clock.",
]


def errands(count: int, seed: int) -> list[dict[str, str]]:
    """Return this many different errands with their notation."""
    draw, seen = np.random.default_rng(seed), dict[str, dict[str, str]]()
    while len(seen) < count:
        n, hour = int(draw.integers(2, 100)), int(draw.integers(7, 22))
        thing, who, day = (str(draw.choice(each)) for each in (THINGS, PEOPLE, DAYS))
        form = FORMS[int(draw.integers(len(FORMS)))]
        written = f"~{day[:2].upper()}{hour:02d} {who.lower()}<{thing}#{n}>"
        said = form.format(n=n, thing=thing, who=who, day=day, hour=hour)
        seen.setdefault(written, {"prompt": said, "completion": written})
    return list(seen.values())


def write(train: Path, test: Path, samples: int, unseen: int, seed: int = 20) -> None:
    """Write both files."""
    made = errands(samples + unseen, seed)
    for path, lines in ((train, made[:samples]), (test, made[samples:])):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Read the arguments and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--unseen", type=int, default=60)
    parser.add_argument("--seed", type=int, default=20)
    given = parser.parse_args()
    write(given.train, given.test, given.samples, given.unseen, given.seed)


if __name__ == "__main__":
    main()
