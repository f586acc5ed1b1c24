"""Time to the first token of a prompt that was not computed before, that is in memory, and that is on disk.

    python benches/engine/prefix.py qwen2.5-coder:0.5b --tokens 2000

Every round is a fresh cache folder: a cold prompt, the same beginning with another end while the first answer still
runs (its blocks are shared live), then again by a new engine that has the disk alone, from the page cache and after
its files were dropped from there. All four give the same tokens, or it fails. Also what keeping the prompt took: the
longest step of the running answer meanwhile beside its usual one, and what the tree's own work takes. Ends in one
JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.types import SamplingParams
from freehold.cli.bench import version
from freehold.run.engine import Engine
from freehold.run.engine.cache.blocks import BlockManager
from freehold.run.engine.sequence import Request, Sequence
from freehold.run.local.opening import open_model
from freehold.run.store import Store

GREEDY = SamplingParams(temperature=0.0)
STEPS = 40  # tokens of the other stream


def main() -> int:
    """Measure, print a line for each round, then the facts."""
    args = _arguments()
    store = Store(load_settings())
    ref = store.resolve(args.model)
    with open_model(ref, context=args.tokens + 512, threads=args.threads, packs=store.packs) as llm:
        model = llm._engine.model
        rounds = [_round(model, args, i) for i in range(args.rounds)]
    medians = {name: round(statistics.median(r[name] for r in rounds), 4) for name in rounds[0]}
    facts = {
        "bench": "prefix",
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        "tokens": args.tokens,
        "threads": llm.threads,
        "seconds": medians,
        "tree_us": _tree(),
        "of_cold": {n: round(medians[n] / medians["cold"], 4) for n in ("memory", "disk", "disk_uncached")},
    }
    print(json.dumps(facts))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000, help="that the prompts begin with alike")
    parser.add_argument("--own", type=int, default=20, help="tokens that follow and differ")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def _round(model, args: argparse.Namespace, seed: int) -> dict[str, float]:
    begin = [(seed * 7919 + 31 * i * i + 17 * i) % 5000 + 100 for i in range(args.tokens)]
    ends = [[(n * 101 + i) % 5000 + 100 for i in range(args.own)] for n in (1, 2)]
    context = args.tokens + 512
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "kv"
        options = {"context": context, "blocks": 3 * context // 32, "disk": where, "speculate": False}
        with Engine(model, **options) as engine:
            _first(engine, begin[:40])  # the weights are warm
            first = engine.generate(begin + ends[0], GREEDY, max_tokens=400)
            started = time.perf_counter()
            next(first)
            cold = time.perf_counter() - started
            gaps = _gaps(first)
            names = {path.name for path in where.iterdir()}  # of the first prompt alone
            memory, made = _first(engine, begin + ends[1])
        found = []
        for drop in (False, True):
            _prepare(where, names, drop)
            with Engine(model, **options) as engine:
                found.append(_first(engine, begin + ends[1]))
                assert engine.stats().disk_tokens == args.tokens // 32 * 32
        if {tuple(answer) for _, answer in found} != {tuple(made)}:
            raise SystemExit("error: a hit changed the answer")
    facts = {
        "cold": cold,
        "memory": memory,
        "disk": found[0][0],
        "disk_uncached": found[1][0],
        "step": statistics.median(gaps),
        "longest_step_while_writing": max(gaps),
    }
    print(*(f"{name} {1000 * value:.1f} ms" for name, value in facts.items()), sep="  ", flush=True)
    return facts


def _tree() -> dict[str, float]:
    """Return microseconds: to match 32,768 tokens, to publish a decoded one, and of a block from birth to eviction."""
    blocks, rng = BlockManager(4096), random.Random(1)

    def computed(count: int) -> Sequence:
        tokens = rng.choices(range(150_000), k=count)
        seq = Sequence(Request(tuple(tokens), GREEDY, 0, 10), tokens)
        blocks.adopt(seq)
        assert blocks.grow(seq, count)
        blocks.publish(seq, count)
        return seq

    long = computed(32_768)
    again = Sequence(long.request, [*long.tokens, 1])
    match = min(timeit.repeat(lambda: blocks.match(again), number=1, repeat=5))
    publish = min(timeit.repeat(lambda: blocks.publish(long, 32_768), number=1000, repeat=5)) / 1000
    life = min(timeit.repeat(lambda: blocks.retire(computed(640)), number=100, repeat=5)) / 100 / 20
    micro = {"match_32k": match, "publish": publish, "block": life}
    return {name: round(1e6 * value, 2) for name, value in micro.items()}


def _gaps(answer) -> list[float]:
    """Return the seconds between the tokens that follow at once, while the prompt is being written."""
    times = [time.perf_counter()]
    for _ in range(STEPS):
        next(answer)
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]


def _first(engine: Engine, prompt: list[int]) -> tuple[float, list[int]]:
    """Return the seconds to the first token, and eight tokens."""
    answer = engine.generate(prompt, GREEDY, max_tokens=8)
    started = time.perf_counter()
    made = [next(answer).id]
    seconds = time.perf_counter() - started
    return seconds, made + [out.id for out in answer]


def _prepare(folder: Path, names: set[str], drop: bool) -> None:
    """Leave the named files alone there; with `drop` they are read from the disk itself next time."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
        elif drop:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
