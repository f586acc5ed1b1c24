"""Speculation beside plain decoding: an edit, code and prose, the same tokens from both, in turns.

    python benches/engine/speculation.py qwen2.5-coder:1.5b --draft qwen2.5-coder:0.5b

Both engines share one set of weights; each task is answered plainly and with guesses by turns, so that a busy
moment hits both. Rates are tokens per second of decoding, the draft model's time included; medians count.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from freehold.base.machine import cpu_name
from freehold.base.types import Completion
from freehold.cli.bench import version
from freehold.run.local import LLM, load

ROOT = Path(__file__).resolve().parents[2]
EDITED = ROOT / "src" / "freehold" / "run" / "engine" / "cache" / "blocks.py"
TASKS = {
    "edit": "Repeat this file exactly, with one change: rename the class BlockManager to BlockPool.\n\n```python\n"
    + EDITED.read_text(encoding="utf-8")[:2200]
    + "\n```",
    "code": "Write a Python class LRUCache with get, put and delete methods, a doubly linked list, docstrings "
    "and unit tests.",
    "prose": "Tell the story of a lighthouse keeper who finds a strange letter, in long flowing sentences.",
}


def main() -> int:
    """Measure, print a line for each task, then the facts."""
    args = _arguments()
    draft = args.draft or None
    with (
        load(args.model, context=args.context, threads=args.threads, speculate=False) as plain,
        load(args.model, context=args.context, threads=args.threads, draft=draft) as guessing,
    ):
        tasks = {task: _measure(plain, guessing, task, args) for task in args.tasks}
    facts = {
        "bench": "speculation",
        "model": args.model,
        "draft": draft,
        "machine": cpu_name(),
        "version": version(),
        "threads": plain.threads,
        "temperature": args.temperature,
        "tasks": tasks,
    }
    print(json.dumps(facts))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft", help="a smaller model of the same tokens")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    return parser.parse_args()


def _measure(plain: LLM, guessing: LLM, task: str, args: argparse.Namespace) -> dict[str, float]:
    rounds = []
    for seed in range(args.rounds):
        pair = [_answer(llm, task, seed, args) for llm in (plain, guessing)]
        if pair[0].token_ids != pair[1].token_ids:
            raise SystemExit(f"error: speculation changed the answer to {task!r}, seed {seed}")
        rounds.append([each.usage for each in pair])
    without, with_guesses = ([r[i].decode_tok_s for r in rounds] for i in (0, 1))
    last = rounds[-1][1]
    facts = {
        "plain_tok_s": round(statistics.median(without), 2),
        "tok_s": round(statistics.median(with_guesses), 2),
        "ratio": round(statistics.median(b / a for a, b in zip(without, with_guesses, strict=True)), 3),
        "ratio_min": round(min(b / a for a, b in zip(without, with_guesses, strict=True)), 3),
        "completion_tokens": last.completion_tokens,
        "drafted": last.drafted_tokens,
        "accepted": last.accepted_tokens,
        "tokens_per_step": round(last.tokens_per_step, 2),
    }
    print(task, *(f"{name} {value}" for name, value in facts.items()), sep="  ", flush=True)
    return facts


def _answer(llm: LLM, task: str, seed: int, args: argparse.Namespace) -> Completion:
    return llm.chat(TASKS[task], max_tokens=args.tokens, temperature=args.temperature, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
