"""Fuzz a target with coverage for a while: python -m tests.fuzz TARGET [--seconds N] [libFuzzer's arguments].

With atheris (on the package index, Linux); without it, by seeded mutations until the time is up. What was found worth
keeping lies in build/fuzz/TARGET, and a finding beside it: give it as an argument to run it alone.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

from tests.fuzz.mutate import mutated

MEMORY_MB = 2048
INPUT_S = 10


def main() -> None:
    """Choose the fuzzer that is installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=["gguf", "safetensors", "lora", "panels", "strings", "flac", "wav"])
    parser.add_argument("--seconds", type=int, default=60)
    asked, more = parser.parse_known_args()
    corpus = Path("build/fuzz") / asked.target
    corpus.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ModuleNotFoundError:
        return by_seeds(asked.target, asked.seconds, corpus)
    with atheris.instrument_imports(include=["freehold"]):
        from tests.fuzz.targets import TARGETS, seeds
    for data in seeds(asked.target):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    limits = [f"-max_total_time={asked.seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_S}"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, f"-artifact_prefix={corpus}.", *more], TARGETS[asked.target]
    )
    atheris.Fuzz()
    return None


def by_seeds(name: str, seconds: int, corpus: Path) -> None:
    """Mutate until the time is up; an input that is a finding is kept."""
    from tests.fuzz.targets import TARGETS, seeds

    sound, end, seed = seeds(name), time.monotonic() + seconds, random.randrange(1 << 32)
    print(f"atheris is not installed: mutations from seed {seed}, without coverage", file=sys.stderr)
    while time.monotonic() < end:
        rng = random.Random(seed)
        data = mutated(rng.choice(sound), rng)
        (corpus / "current").write_bytes(data)  # a crash leaves it
        TARGETS[name](data)
        seed += 1


if __name__ == "__main__":
    main()
