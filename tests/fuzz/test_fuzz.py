"""A short fuzz of every reader, the same on each run: `python -m tests.fuzz TARGET` goes on with coverage."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, seeds

ROUNDS = {
    "gguf": 150,
    "safetensors": 250,
    "lora": 250,
    "panels": 300,
    "strings": 400,
    "flac": 400,
    "wav": 400,
}
SHARE = 3 if os.environ.get("FREEHOLD_SHORT_CORPUS") else 1


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused_by_name(name: str) -> None:
    target, sound = TARGETS[name], seeds(name)
    for data in sound:
        target(data)
    for seed in range(ROUNDS[name] // SHARE):
        rng = random.Random(seed)
        data = mutated(rng.choice(sound), rng)
        try:
            target(data)
        except Exception as error:
            error.add_note(f"{name}, seed {seed}")
            raise
