"""What LoRA adapters cost: decode steps of a batch of four, and prompts, with none, one and four of rank 16.

    python benches/engine/adapters.py qwen2.5-coder:0.5b --rounds 7

Adapters are made up, of all seven matrices, as f16. One engine holds the weights; every round measures every case
once, in turns, so that a busy moment hits all; ratios are to the same round's steps without any. A prompt is read
alone, with the first row's adapter. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.types import SamplingParams
from freehold.cli.bench import version
from freehold.run.engine import Engine
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.lora import Adapter, load_adapter
from freehold.run.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.vectors.adapters import write_for

GREEDY = SamplingParams(temperature=0.0)
BATCH, WARM = 4, 3
Row = Adapter | None


def main() -> int:
    """Measure, print a line for each case, then the facts."""
    args = _arguments()
    ref = Store(load_settings()).resolve(args.model)
    model = load_model(ref.path, threads=args.threads, name=ref.name)
    decode: dict[str, list[float]] = {}
    prefill: dict[str, list[float]] = {}
    cases: list[tuple[str, list[Row]]] = [("none", [None] * BATCH)]
    with Engine(model, context=2048, speculate=False) as engine:
        adapters = _made(model, args.rank)
        cases += [
            ("one of four rows", [adapters[0], *[None] * (BATCH - 1)]),
            ("one for all rows", [adapters[0]] * BATCH),
            ("four, a row each", list(adapters)),
        ]
        for _ in range(args.rounds):
            for name, rows in cases:
                _measure(engine, rows, args, decode.setdefault(name, []), prefill.setdefault(name, []))
    for name in (case for case, _ in cases):
        print(
            f"{name:18}", _line("decode", decode, name), _line("prompt", prefill, name), sep="  ", flush=True
        )
    print(
        json.dumps(
            {
                "bench": "adapters",
                "model": args.model,
                "machine": cpu_name(),
                "version": version(),
                "threads": engine.threads,
                "rank": args.rank,
                "adapter_bytes": adapters[0].nbytes,
                "weight_bytes": model.bytes_per_token,
                "decode_step_s": {name: _spread(decode[name]) for name, _ in cases},
                "prompt_s": {name: _spread(prefill[name]) for name, _ in cases},
            }
        )
    )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a case in a round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def _made(model: LoadedModel, rank: int) -> list[Adapter]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            load_adapter(write_for(model, Path(folder) / str(i), rank=rank, seed=i), model, f"made-{i}")
            for i in range(BATCH)
        ]


def _measure(
    engine: Engine, rows: Sequence[Row], args: argparse.Namespace, decode: list[float], prefill: list[float]
) -> None:
    """Add the median of some decode steps of a batch, and what the first row's adapter takes for a prompt."""
    running = [engine.generate(_prompt(8), GREEDY, args.steps + WARM + 8, adapter=row) for row in rows]
    for answer in running:
        answer.start()
    while not all(answer.sequence.generated for answer in running):
        _step(engine, running)
    times = [_step(engine, running) for _ in range(args.steps + WARM)][WARM:]
    for answer in running:
        answer.close()
    decode.append(statistics.median(times))
    reading = engine.generate(_prompt(args.prompt), GREEDY, max_tokens=1, adapter=rows[0])
    started = time.perf_counter()
    next(reading)
    prefill.append(time.perf_counter() - started)


def _step(engine: Engine, running: Sequence) -> float:
    started = time.perf_counter()
    engine.pump(0.0)
    seconds = time.perf_counter() - started
    for answer in running:
        answer.take()
    return seconds


def _prompt(count: int) -> list[int]:
    """Draw tokens that no cache has seen."""
    return random.choices(range(100, 20_000), k=count)


def _line(what: str, times: dict[str, list[float]], name: str) -> str:
    """Show a case's median, and its ratio to the round's step without adapters."""
    ratios = [a / b for a, b in zip(times[name], times["none"], strict=True)]
    return (
        f"{what} {1000 * statistics.median(times[name]):8.2f} ms  x {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def _spread(times: list[float]) -> list[float]:
    """Return median, least and greatest."""
    return [round(value, 6) for value in (statistics.median(times), min(times), max(times))]


if __name__ == "__main__":
    sys.exit(main())
