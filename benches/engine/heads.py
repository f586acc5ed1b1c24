"""Drafts by a model's own head beside plain decoding, at published shapes, with stated acceptance.

`python benches/engine/heads.py [SHAPE ...] [--accept 0.5 0.7 0.85] [--layers 24] [--streams 1 8] [--rounds 3]`.
Weights are random, so the head computes what a real one computes and its token is then replaced: by the one that the
model will choose, as often as is stated, else by another. Answers are sampled, so n-gram lookup finds nothing; both
engines must give the same tokens. They share one set of weights and answer by turns. One JSON line a shape.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.random_gguf import write
from benches.lib.shapes import SHAPES
from freehold.base.machine import cpu_name
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.sequence import Sequence
from freehold.run.engine.speculate.head import HeadDrafts
from freehold.run.models.load import LoadedModel, load_model

VOCAB = {"qwen3.5-0.8b": 248_320, "qwen3.5-35b-a3b": 248_320}
PROMPT = 32


class StatedHead:
    """Replaces what a head drafted: right as often as is stated, by the answers of the plain engine."""

    def __init__(self, head: HeadDrafts, accept: float, answers: dict[tuple[int, ...], list[int]]) -> None:
        self._head, self._accept, self._answers = head, accept, answers
        self._advance, self._draw = head.advance, random.Random(7)
        head.advance = self.advance  # type: ignore[method-assign]

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft as the head does, then state what it drafted."""
        drafted = self._advance(seqs)
        for seq in seqs:
            chain = self._head._followers[seq].chain
            answer = self._answers[seq.request.prompt]
            at = len(seq.tokens) - PROMPT + len(chain) - 1
            right = answer[at] if at < len(answer) else 5
            chain[-1] = right if self._draw.random() < self._accept else (right + 1) % 1000 + 5
        return [(self._head._followers[s].chain[-1], 0.5) for s, _ in zip(seqs, drafted, strict=True)]


def main() -> int:
    """Measure each shape; print a line for each acceptance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["qwen3.5-0.8b"], choices=[*SHAPES])
    parser.add_argument("--accept", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.85])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in args.shapes:
        print(json.dumps(_shape(name, args)))
    return 0


def _shape(name: str, args: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[name]
    keys = {**shape.keys, "block_count": args.layers + 1, "nextn_predict_layers": 1}
    keys["vocab_size"] = VOCAB.get(name, 32_768)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.gguf"
        write(path, shape.architecture, keys)
        model = load_model(path, threads=args.threads, name=name)
    assert model.drafter is not None
    share = model.drafter.bytes_per_token / model.bytes_per_token
    facts = {"bench": "heads", "shape": name, "layers": args.layers, "vocab": keys["vocab_size"]}
    facts |= {"head_share": round(share, 3), "machine": cpu_name(), "rows": []}
    for streams in args.streams:
        for accept in args.accept:
            row = {"streams": streams, "accept": accept, **_paired(model, streams, accept, args)}
            print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
            facts["rows"].append(row)
    return facts


def _paired(model: LoadedModel, streams: int, accept: float, args: argparse.Namespace) -> dict[str, Any]:
    rates: list[tuple[float, float]] = []
    answers: dict[tuple[int, ...], list[int]] = {}
    plain = Engine(model, context=512, blocks=16 * streams, speculate=False)
    drafting = Engine(model, context=512, blocks=16 * streams, head=True)
    assert drafting._speculation is not None and isinstance(drafting._speculation._source, HeadDrafts)
    StatedHead(drafting._speculation._source, accept, answers)
    for turn in range(args.rounds):
        prompts = [tuple((31 * i + 7 * j + turn) % 900 + 5 for i in range(PROMPT)) for j in range(streams)]
        without, made = _answered(plain, prompts, args.tokens)
        answers |= dict(zip(prompts, made, strict=True))
        with_head, same = _answered(drafting, prompts, args.tokens)
        if made != same:
            raise SystemExit(f"error: drafts changed an answer at acceptance {accept}")
        rates.append((without, with_head))
    stats = drafting.stats()
    return {
        "plain_tok_s": round(statistics.median(a for a, _ in rates), 2),
        "tok_s": round(statistics.median(b for _, b in rates), 2),
        "ratio": round(statistics.median(b / a for a, b in rates), 3),
        "ratio_min": round(min(b / a for a, b in rates), 3),
        "drafted": stats.drafted_tokens,
        "accepted": stats.accepted_tokens,
    }


def _answered(engine: Engine, prompts: list[tuple[int, ...]], tokens: int) -> tuple[float, list[list[int]]]:
    """Return tokens a second from the first token of all on, and the tokens."""
    jobs = [
        engine.generate(p, SamplingParams(temperature=1.0, seed=j), max_tokens=tokens)
        for j, p in enumerate(prompts)
    ]
    out: list[list[int]] = [[] for _ in jobs]
    for job in jobs:
        job.start()
    began = before = 0.0
    while not all(job.done for job in jobs):
        engine.pump(0.01)
        for job, ids in zip(jobs, out, strict=True):
            ids += [each.id for each in job.take()]
        if not began and all(out):
            began, before = time.perf_counter(), float(sum(map(len, out)))
    return (sum(map(len, out)) - before) / (time.perf_counter() - began), out


if __name__ == "__main__":
    sys.exit(main())
