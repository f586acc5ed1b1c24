"""How fast T2 and T3 run: the kernel from L2, and a whole model beside the file that it was made from.

`python -m benches.adapt.trellis_speed [MODEL] [--type T3] [--rounds 8] [--threads N] [--keep FILE]`
Without MODEL only the kernels: weights a second of one core, with all that a product of one token needs. With MODEL, a
path or a name in the store, a file is written whose layers' matrices have `--type` with codes at random (a decoded
token costs the same whatever they say), both are loaded and measured in turns: ratios are medians of the rounds' own,
`promise` is what the bytes of a token would give, `kept` how much of that is reached. Ends in one JSON line.
Path: trellis_speed.py -> native.testing.time_matmul; GGUFWriter -> drivers/peer_freehold.Freehold
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.drivers.peer_freehold import Freehold
from benches.lib.driver import Took
from benches.lib.machine import describe, resolve
from freehold import _native as native
from freehold.run.formats import QuantType, open_gguf, row_bytes, trellis
from freehold.run.formats.gguf_writer import TensorPlan, copied_keys, write_gguf

TYPES = ("T2", "T3", "Q4_K", "Q6_K", "Q8_0")
ROWS, COLS = 512, 1536  # 0.2 to 0.8 MB: an L2 holds them
STEPS, DEPTH, PROMPT = 32, 64, 512


def main() -> None:
    """Measure the kernels, then the model if one was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--type", default="T3", choices=["T2", "T3"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=Path, help="where the file made of MODEL is written, and left")
    args = parser.parse_args()
    record: dict[str, Any] = {"bench": "trellis_speed", "isa": native.isa(), "rounds": args.rounds}
    record["gweights_s"] = {name: round(kernel(name, args.rounds), 1) for name in TYPES}
    print("  ".join(f"{name} {rate}" for name, rate in record["gweights_s"].items()), "G weights/s/core")
    path = Path(__file__)
    if args.model:
        path = resolve(args.model)
        with tempfile.TemporaryDirectory() as folder:
            made = args.keep or Path(folder) / "made.gguf"
            record |= {"type": args.type, **beside(path, write(path, made, QuantType[args.type]), args)}
    print(json.dumps(record | describe(path)))


def kernel(name: str, rounds: int) -> float:
    """Return the greatest rate of a type's kernel, in billions of weights a second."""
    rng, pool, type = np.random.default_rng(0), native.Threads(1), QuantType[name]
    if type in trellis.BITS:
        raw = random_tensor(type, (ROWS, COLS), rng)
    else:
        values = (rng.standard_normal((ROWS, COLS)) / 50).astype(np.float32)
        raw = native.quantize_rows(values, name, pool).reshape(-1)
    w = native.Matrix.pack(raw, name, ROWS, COLS, pool)
    x = rng.standard_normal((1, COLS)).astype(np.float32)
    least = min(native.testing.time_matmul(native.isa(), w, x, 100) for _ in range(rounds))
    return 100 * ROWS * COLS / least / 1e9


def random_tensor(type: QuantType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a tensor's bytes: a table like a bell, and small row scales."""
    table = np.clip(rng.normal(0, 40, trellis.STATES), -127, 127).astype(np.int8).view(np.uint8)
    rows = rng.integers(0, 256, (int(np.prod(shape[:-1])), row_bytes(type, shape[-1])), np.uint8)
    rows[:, :2] = np.array([0, 0x04], np.uint8)  # 2^-14
    return np.concatenate([table, rows.reshape(-1)])


def write(source: Path, path: Path, type: QuantType) -> Path:
    """Write `source` again with its layers' matrices in `type`."""
    rng = np.random.default_rng(0)
    with open_gguf(source) as opened:
        keys = copied_keys(opened) | {"freehold.requires": trellis.REQUIRES, "general.file_type": int(type)}
        stored = list(opened.tensors.values())
        plans = [TensorPlan(t.name, type if _of_layers(t.name, t.shape) else t.type, t.shape) for t in stored]

        def tensors() -> Iterator[np.ndarray]:
            for plan in plans:
                made = plan.type is type
                yield random_tensor(type, plan.shape, rng) if made else opened.tensors[plan.name].raw

        return write_gguf(path, keys, plans, tensors())


def _of_layers(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("blk.") and len(shape) > 1 and shape[-1] % trellis.GROUP == 0


def beside(source: Path, made: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure both models in turns."""
    racers = {"made": _loaded(made, args.threads), "source": _loaded(source, args.threads)}
    works = {
        "decode": lambda racer: racer.decode(DEPTH, STEPS),
        "prompt": lambda racer: racer.prefill(PROMPT),
    }
    read = {name: racer.engine.model.bytes_per_token for name, racer in racers.items()}
    found: dict[str, Any] = {"promise": round(read["source"] / read["made"], 3)}
    for work, run in works.items():
        took: dict[str, list[Took]] = {name: [] for name in racers}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, racer in racers.items():
                took[name].append(run(racer))
        tokens = STEPS if work == "decode" else PROMPT
        best = {name: round(tokens / min(t.seconds for t in all[1:]), 1) for name, all in took.items()}
        pairs = list(zip(took["made"], took["source"], strict=True))[1:]
        wall = statistics.median(b.seconds / a.seconds for a, b in pairs)
        cpu = statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in pairs)
        found[work] = {"ratio": round(wall, 3), "cpu_ratio": round(cpu, 3), "best_tokens_s": best}
        print(
            f"{work}: {wall:.2f} times the source's speed ({cpu:.2f} in CPU-seconds); at best {best} tokens/s"
        )
    found["kept"] = round(found["decode"]["ratio"] / found["promise"], 3)
    print(f"bytes promise {found['promise']:.2f} times, {found['kept']:.0%} of that is reached")
    return found


def _loaded(path: Path, threads: int | None) -> Freehold:
    driver = Freehold()
    driver.load(str(path), PROMPT + 512, threads=threads)
    return driver


if __name__ == "__main__":
    main()
