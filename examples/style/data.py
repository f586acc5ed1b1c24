"""Writes pairs.jsonl and unseen.jsonl for recipe.toml: a house style, dates as 2024-03-01 rather than March 1, 2024.

python data.py
"""

import json
import random
import sys
from calendar import month_name
from pathlib import Path

PLACES = [
    "library",
    "museum",
    "market",
    "theatre",
    "garden",
    "harbour",
    "school",
    "pool",
    "gallery",
    "station",
]
PAIRS, UNSEEN = 120, 40


def sentence(place, date):
    return f"The {place} opens on {date}."


def items(seed, count):
    draw, seen = random.Random(seed), set()
    while len(seen) < count:
        seen.add((draw.choice(PLACES), draw.randint(2020, 2031), draw.randint(1, 12), draw.randint(1, 28)))
    for place, year, month, day in sorted(seen):
        plain, iso = f"{month_name[month]} {day}, {year}", f"{year}-{month:02}-{day:02}"
        yield (
            f"{sentence(place, plain)} When does the {place} open?",
            sentence(place, plain),
            sentence(place, iso),
            iso,
        )


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
drawn = list(items(1, PAIRS + UNSEEN))
random.Random(2).shuffle(drawn)
write(
    folder / "pairs.jsonl",
    [{"prompt": q, "chosen": iso, "rejected": plain} for q, plain, iso, _ in drawn[:PAIRS]],
)
write(
    folder / "unseen.jsonl",
    [{"prompt": q, "contains": date, "max_tokens": 24} for q, _, _, date in drawn[PAIRS:]],
)
