"""Writes cold.jsonl and unseen.jsonl for recipe.toml: items of reasoning-gym's needle_haystack.

pip install reasoning-gym && python data.py
"""

import json
import sys
from pathlib import Path

import reasoning_gym

FOLDER = Path(__file__).parent
COLD, UNSEEN = 48, 200
# Item i of seed s is item 0 of seed s + i: these seeds are far from the items that the rewards train on, 0 to 2,000.
COLD_SEED, UNSEEN_SEED = 2_000_000, 1_000_000


def items(seed, count):
    options = {"min_num_statements": 3, "max_num_statements": 6}
    return reasoning_gym.create_dataset("needle_haystack", seed=seed, size=count, **options)


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
write(
    folder / "cold.jsonl",
    [{"prompt": each["question"], "completion": each["answer"]} for each in items(COLD_SEED, COLD)],
)
write(
    folder / "unseen.jsonl",
    [
        {"prompt": each["question"], "exact": each["answer"], "max_tokens": 16}
        for each in items(UNSEEN_SEED, UNSEEN)
    ],
)
