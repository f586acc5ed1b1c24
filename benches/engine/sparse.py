"""Decode over picked latents beside dense latent attention, at DeepSeek-V3.2's shapes, in one process and in turns.

`python benches/engine/sparse.py [--depths 4096 8192 16384 32768 65536] [--layers 2] [--threads 2] [--rounds 5]`.
Attention alone, its projections apart: 128 heads over latents of 512 + 64, an index of 64 heads of 128 that picks 2,048
tokens, random values in an f16 cache. A row's key is stored, its index scored, its picks chosen and attended to. The
ceiling is what memory allows for the bytes that a row must read: dense all latents; picked its picks and all index
keys. Multiply-adds bound both: 128 heads do 139,264 for the 1,152 bytes of a latent, 64 of an index 8,192 for 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import describe
from freehold import _native as native

HEADS, LATENT, TURNED, INDEX_HEADS, INDEX, PICKED = 128, 512, 64, 64, 128, 2048
WIDTH, BLOCK, KEYS = LATENT + TURNED, native.BLOCK_TOKENS, 64
F16 = 2


@dataclass
class Layers:
    """Some layers of one kind over a cache that is filled once."""

    sparse: bool
    layers: int
    depth: int
    threads: native.Threads

    def __post_init__(self) -> None:
        pages = [(1, WIDTH, 0)] * self.layers + ([(1, INDEX, 0)] * self.layers if self.sparse else [])
        self.blocks = -(-(self.depth + BLOCK) // BLOCK)
        self.cache = native.KvCache(pages, self.blocks, "f16")
        rng = np.random.default_rng(1)
        for block in range(self.blocks):
            values = rng.standard_normal(self.cache.bytes_per_block // F16, np.float32).astype(np.float16)
            self.cache.write_block(block, values.view(np.uint8))
        self.plan = self._traced(rng)
        self.table = np.arange(self.blocks, dtype=np.int32)[None]

    def _traced(self, rng: np.random.Generator) -> native.Plan:
        def rows(width: int) -> native.Matrix:
            values = rng.standard_normal((KEYS, width), np.float32)
            return native.Matrix.pack(values.view(np.uint8).reshape(-1), "F32", KEYS, width, self.threads)

        q, kv, index_q, index_k, weights = (
            rows(n) for n in (HEADS * WIDTH, WIDTH, INDEX_HEADS * INDEX, INDEX, INDEX_HEADS)
        )
        ones, zeros = np.ones(LATENT, np.float32), np.zeros(INDEX, np.float32)
        rope = native.Rope(np.array([1e4 ** (-2 * i / TURNED) for i in range(TURNED // 2)], np.float32))
        plan, sums = native.Plan(self.threads, self.cache, 1), 0
        for layer in range(self.layers):
            absorbed, key = plan.embed(q), plan.embed(kv)
            plan.latent_store(layer, absorbed, absorbed, key, ones, 1e-6, None, self.sparse)
            if not self.sparse:
                sums = plan.latent_attention(layer, absorbed, LATENT, WIDTH**-0.5)
                continue
            at, query = self.layers + layer, plan.embed(index_q)
            plan.index_store(at, query, plan.embed(index_k), ones[:INDEX], zeros, 1e-6, rope, False)
            picks = plan.pick(at, query, plan.embed(weights), PICKED)
            sums = plan.picked_attention(layer, absorbed, picks, LATENT, WIDTH**-0.5)
        head = np.zeros((16, HEADS * LATENT), np.float32)
        plan.logits(
            sums, native.Matrix.pack(head.view(np.uint8).reshape(-1), "F32", *head.shape, self.threads), None
        )
        plan.finish()
        return plan

    @property
    def nbytes(self) -> int:
        """Bytes of the cache that a row reads."""
        if not self.sparse:
            return self.layers * self.depth * WIDTH * F16
        return self.layers * F16 * (min(self.depth, PICKED) * WIDTH + self.depth * INDEX)

    def step(self) -> float:
        """Return the seconds of a row after `depth` others."""
        one = np.zeros(1, np.int32)
        started = time.perf_counter()
        self.plan.run(one, one + self.depth, one, self.table, one)
        return time.perf_counter() - started


def main() -> int:
    """Print a row for each depth, then one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    threads = native.Threads(args.threads)
    machine = describe(Path("random"))
    print(f"{machine['cpu']}, {args.threads} threads, {machine['commit']}", file=sys.stderr)
    gb_s = native.measure_read_gb_s(args.threads)
    rows = []
    print("| depth | dense, ms | picked, ms | dense / picked | share of the bytes' ceiling, dense | picked |")
    print("|---|---|---|---|---|---|")
    for depth in args.depths:
        kinds = [Layers(sparse, args.layers, depth, threads) for sparse in (False, True)]
        times = [[kind.step() for kind in kinds] for _ in range(args.rounds + 2)][
            2:
        ]  # the first two touch and tune
        dense, picked = (statistics.median(each) for each in zip(*times, strict=True))
        shares = [k.nbytes / (gb_s * 1e9) / s for k, s in zip(kinds, (dense, picked), strict=True)]
        print(
            f"| {depth:,} | {1e3 * dense:.1f} | {1e3 * picked:.1f} | {dense / picked:.1f} |"
            f" {shares[0]:.1%} | {shares[1]:.1%} |",
            flush=True,
        )
        rows.append({"depth": depth, "dense_s": dense, "picked_s": picked, "shares": shares})
    sizes = {"layers": args.layers, "threads": args.threads, "gb_s": gb_s}
    print(json.dumps({"bench": "sparse", **machine, **sizes, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
