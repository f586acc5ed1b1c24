"""Drafts by a model's own head beside plain decoding, at published shapes, with stated acceptance.

`python benches/engine/heads.py [SHAPE ...] [--accept 0.5 0.7 0.85] [--layers 24] [--streams 1 8] [--rounds 3]`.
Weights are random, so the head computes what a real one computes and its token is then replaced: by the one that the
model will choose, as often as is stated and where it is among the ids that the head chose among, else by another. All
rows of the output matrix are tokens; those after the first eighth are smaller, so that few are in an answer (`seldom`).
Answers are sampled, so n-gram lookup finds little: an engine that drafts by it alone runs beside. All engines must give
the same tokens. They share one set of weights and answer by turns. One JSON line a shape. `--processor`: by the time
of one thread, on a machine that others use too.
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
if "--processor" in sys.argv:  # before modules take the clock that they price steps by
    time.perf_counter = time.thread_time

from benches.lib.random_gguf import write
from benches.lib.shapes import COMMON, DELTA, SHAPES, Shape
from freehold.base.machine import cpu_name
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.sequence import Sequence
from freehold.run.engine.speculate.head import HeadDrafts
from freehold.run.models.load import LoadedModel, load_model

PROMPT = 32
EIGHTH = 8  # an eighth of a vocabulary holds most of a text

# Sizes of the two below are those of their config.json; layers are cut by --layers.
OWN = {
    "qwen3.5-0.8b": SHAPES["qwen3.5-0.8b"],
    "qwen3.5-35b-a3b": SHAPES["qwen3.5-35b-a3b"],
    "qwen3.5-9b": Shape(
        "qwen35",
        {
            **DELTA, "embedding_length": 4096, "feed_forward_length": 12288, "attention.head_count": 16,
            "attention.head_count_kv": 4, "ssm.time_step_rank": 32, "ssm.inner_size": 4096,
        },
        "Qwen/Qwen3.5-9B",
    ),
    "glm-4.5-air": Shape(
        "glm4moe",
        {
            **COMMON, "embedding_length": 4096, "feed_forward_length": 10944, "attention.head_count": 96,
            "attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128,
            "rope.freq_base": 1e6, "rope.dimension_count": 64, "leading_dense_block_count": 1,
            "expert_count": 128, "expert_used_count": 8, "expert_shared_count": 1,
            "expert_feed_forward_length": 1408, "expert_gating_func": 2, "expert_weights_norm": True,
            "expert_weights_scale": 1.0, "expert_group_count": 1, "expert_group_used_count": 1,
        },
        "zai-org/GLM-4.5-Air",
    ),
}  # fmt: skip
VOCAB = {"glm-4.5-air": 151_552}
QWEN_VOCAB = 248_320


class StatedHead:
    """Replaces what a head drafted: right as often as is stated, by the answers of the plain engine."""

    def __init__(self, head: HeadDrafts, accept: float, answers: dict[tuple[int, ...], list[int]]) -> None:
        self._head, self._accept, self._answers = head, accept, answers
        self._advance, self._draw = head.advance, random.Random(7)
        head.advance = self.advance  # type: ignore[method-assign]

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft as the head does, then state what it drafted."""
        self._advance(seqs)
        for seq in seqs:
            chain = self._head._followers[seq].chain
            answer = self._answers[seq.request.prompt]
            at = len(seq.tokens) - PROMPT + len(chain) - 1
            right = answer[at] if at < len(answer) else 5
            is_right = self._draw.random() < self._accept and right < self._head.ids
            chain[-1] = right if is_right else (right + 1) % 1000 + 5
        return [(self._head._followers[seq].chain[-1], 0.0) for seq in seqs]


def main() -> int:
    """Measure each shape; print a line for each acceptance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["qwen3.5-0.8b"], choices=[*OWN, []])
    parser.add_argument("--accept", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.85])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where files are kept from run to run")
    parser.add_argument("--processor", action="store_true", help="one thread, by its processor time")
    args = parser.parse_args()
    args.threads = 1 if args.processor else args.threads
    for name in args.shapes or ["qwen3.5-0.8b"]:
        print(json.dumps(_shape(name, args)))
    return 0


def _shape(name: str, args: argparse.Namespace) -> dict[str, Any]:
    vocab = VOCAB.get(name, QWEN_VOCAB)
    with tempfile.TemporaryDirectory() as folder:
        path = (args.folder or Path(folder)) / f"{name}-{args.layers}.gguf"
        if not path.exists():
            keys = {**OWN[name].keys, "block_count": args.layers + 1, "nextn_predict_layers": 1}
            write(path, OWN[name].architecture, {**keys, "vocab_size": vocab}, frequent=vocab // EIGHTH)
        model = load_model(path, threads=args.threads, name=name)
    assert model.drafter is not None
    matrix = model.weights.ends["head"].nbytes
    facts = {"bench": "heads", "shape": name, "layers": args.layers, "vocab": vocab, "machine": cpu_name()}
    facts |= {"matrix_share": round(matrix / model.bytes_per_token, 3)}
    facts |= {"head_share": round((model.drafter.bytes_per_token - matrix) / model.bytes_per_token, 3)}
    print(*(f"{key} {value}" for key, value in facts.items()), sep="  ", flush=True)
    rows = []
    for streams in args.streams:
        for accept in args.accept:
            rows.append({"streams": streams, "accept": accept, **_paired(model, streams, accept, args)})
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    return {**facts, "rows": rows}


def _paired(model: LoadedModel, streams: int, accept: float, args: argparse.Namespace) -> dict[str, Any]:
    rates: list[tuple[float, float, float]] = []
    answers: dict[tuple[int, ...], list[int]] = {}
    plain = Engine(model, context=512, blocks=16 * streams, speculate=False)
    lookup = Engine(model, context=512, blocks=16 * streams, head=False)
    drafting = Engine(model, context=512, blocks=16 * streams, head=True)
    assert drafting._speculation is not None and isinstance(drafting._speculation._source, HeadDrafts)
    head = drafting._speculation._source
    for engine in (plain, lookup, drafting):  # as in a process that has answered before
        assert engine._runner is not None
        engine._runner.touch(engine._runner.cache.slots)
    StatedHead(head, accept, answers)
    for turn in range(args.rounds):
        prompts = [tuple((31 * i + 7 * j + turn) % 900 + 5 for i in range(PROMPT)) for j in range(streams)]
        without, tokens = _answered(plain, prompts, args.tokens)
        answers |= dict(zip(prompts, tokens, strict=True))
        by_lookup, same = _answered(lookup, prompts, args.tokens)
        by_head, also = _answered(drafting, prompts, args.tokens)
        if not tokens == same == also:
            raise SystemExit(f"error: drafts changed an answer at acceptance {accept}")
        rates.append((without, by_lookup, by_head))
    stats = drafting.stats()
    seldom = sum(token >= model.tokens // EIGHTH for answer in answers.values() for token in answer)
    return {
        "plain_tok_s": round(statistics.median(a for a, _, _ in rates), 2),
        "tok_s": round(statistics.median(c for _, _, c in rates), 2),
        "ratio": round(statistics.median(c / a for a, _, c in rates), 3),
        "ratio_min": round(min(c / a for a, _, c in rates), 3),
        "ngram_ratio": round(statistics.median(b / a for a, b, _ in rates), 3),
        "drafted": stats.drafted_tokens,
        "accepted": stats.accepted_tokens,
        "accepted_at": list(stats.accepted_at),
        "ids": head.ids,
        "seldom": round(seldom / max(sum(map(len, answers.values())), 1), 3),
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
