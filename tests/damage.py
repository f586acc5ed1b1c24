"""Child process of test_damaged_models.py: damages a tiny model many ways and tries to use each.

A crash takes this process and not the test's, so the test can tell which damage did it: the last seed printed.
Run: python -m tests.damage FOLDER KIND FIRST LAST
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import freehold
from freehold.base.errors import FreeholdError
from freehold.run.formats import open_gguf
from tests.vectors.files import write_gguf

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "qwen2moe")
SECONDS = 10


def data_start(path: Path) -> int:
    """Find where tensor data begin: everything before is header, metadata and descriptors."""
    with open_gguf(path) as file:
        return path.stat().st_size - sum((t.nbytes + 31) // 32 * 32 for t in file.tensors.values())


def damage(data: bytearray, kind: str, start: int, rng: random.Random) -> bytearray:
    """Return a damaged copy: cut short, or with one to eight bytes changed, before or after `start`."""
    if kind == "truncated":
        return data[: rng.randrange(len(data))]
    low, high = (0, start) if kind == "header" else (start, len(data))
    for _ in range(rng.choice((1, 1, 2, 8, 64 if kind == "data" else 1))):
        data[rng.randrange(low, high)] = rng.randrange(256)
    return data


def use(path: Path) -> str:
    """Load and generate; return how it went. Any exception but a FreeholdError goes through."""
    try:
        with freehold.load(path, context=64, threads=1) as llm:
            llm.generate([5, 6, 7], max_tokens=3, temperature=0)
            llm.chat("hi", max_tokens=2, seed=1)
        return "clean"
    except FreeholdError as error:
        assert error.message and "\n" not in error.message, repr(error.message)
        return type(error).__name__


def main(folder: Path, kind: str, first: int, last: int) -> None:
    """Try seeds [first, last), printing each seed before and its outcome after."""
    for seed in range(first, last):
        family = FAMILIES[seed % len(FAMILIES)]
        sound = folder / f"{family}.gguf"
        if not sound.exists():
            write_gguf(family, sound, dtype="Q8_0" if kind == "data" else "F32")
        hurt = folder / "hurt.gguf"
        hurt.write_bytes(damage(bytearray(sound.read_bytes()), kind, data_start(sound), random.Random(seed)))
        print(f"{seed} {family}", end=" ", flush=True)
        signal.alarm(SECONDS)
        print(use(hurt), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
