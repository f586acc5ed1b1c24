"""Answers constrained by twenty schemas: how many end, whether each that ends is valid, and the cost beside free text.

    python benches/engine/structured.py qwen2.5-coder:0.5b
    python benches/engine/structured.py qwen2.5-coder:0.5b --answers 2 --tokens 400

Each schema is answered `--answers` times in one batch, with the model's own sampling and seeds that follow on each
other; `jsonschema` judges. The same questions are then answered freely, for the rate. Ends in one JSON line, and with
status 1 if an answer that ended is not valid or fewer than 95 % end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.engine.schemas import CASES, Case
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.serving import Job
from freehold.base.types import Chunk, Format, Message
from freehold.cli.bench import version
from freehold.run.local import open_served
from freehold.run.local.opening import ServedModel
from freehold.run.store import Store

LEAST_ENDED = 0.95


@dataclass(frozen=True)
class Got:
    """What became of one answer."""

    text: str
    reason: str
    tokens: int
    drafted: int
    accepted: int


def main() -> int:
    """Measure, print a row for each schema, then the facts."""
    args = _arguments()
    rows = []
    with open_served(
        Store(load_settings()).resolve(args.model), context=args.context, threads=args.threads
    ) as llm:
        _answers(
            llm, CASES[0], args, held=True
        )  # makes the vocabulary's table, and reads what all prompts share
        print("| schema | ended | valid | tokens | tok/s held | tok/s free |\n|---|---|---|---|---|---|")
        for case in CASES:
            rows.append(_measure(llm, case, args))
            print(
                "| {case} | {ended} | {valid} | {tokens} | {held:.1f} | {free:.1f} |".format(**rows[-1]),
                flush=True,
            )
    facts = _facts(args, rows)
    print(json.dumps(facts))
    return 0 if facts["valid"] == facts["ended"] and facts["ended"] >= LEAST_ENDED * facts["answers"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--answers", type=int, default=10, help="to each schema")
    parser.add_argument("--tokens", type=int, default=512, help="most of an answer")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def _measure(llm: ServedModel, case: Case, args: argparse.Namespace) -> dict[str, Any]:
    held, held_s = _answers(llm, case, args, held=True)
    free, free_s = _answers(llm, case, args, held=False)
    ended = [got for got in held if got.reason == "stop"]
    return {
        "case": case.name,
        "answers": len(held),
        "ended": len(ended),
        "valid": sum(_is_valid(case, got.text) for got in ended),
        "tokens": sum(got.tokens for got in held),
        "drafted": sum(got.drafted for got in held),
        "accepted": sum(got.accepted for got in held),
        "held": sum(got.tokens for got in held) / held_s,
        "free": sum(got.tokens for got in free) / free_s,
    }


def _answers(
    llm: ServedModel, case: Case, args: argparse.Namespace, *, held: bool
) -> tuple[list[Got], float]:
    """Answer a case in one batch; return the answers and the seconds they took."""
    asked = f"{case.question} Answer in JSON that fits this schema:\n{json.dumps(case.schema)}"
    job = Job(
        messages=(Message("user", asked),),
        n=args.answers,
        max_tokens=args.tokens,
        sampling={"seed": 0},
        format=Format("json_schema", json.dumps(case.schema)) if held else None,
    )
    started = time.perf_counter()
    answering = llm.start(job)
    answering.enter()
    chunks: list[list[Chunk]] = [[] for _ in range(args.answers)]
    while not answering.done:
        llm.pump(0.1)
        for index, chunk in answering.take():
            chunks[index].append(chunk)
    return [_got(each) for each in chunks], time.perf_counter() - started


def _got(chunks: list[Chunk]) -> Got:
    usage = chunks[-1].usage
    assert usage is not None
    text = "".join(chunk.text for chunk in chunks)
    reason = chunks[-1].finish_reason or ""
    return Got(text, reason, usage.completion_tokens, usage.drafted_tokens, usage.accepted_tokens)


def _is_valid(case: Case, text: str) -> bool:
    try:
        jsonschema.Draft202012Validator(case.schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as e:
        print(f"{case.name}: {text!r} is not valid: {e}"[:500], file=sys.stderr)
        return False
    return True


def _facts(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(row[name] for row in rows)

    def ratios() -> Iterator[float]:
        yield from sorted(row["held"] / row["free"] for row in rows)

    return {
        "bench": "structured",
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        **{name: total(name) for name in ("answers", "ended", "valid", "tokens", "drafted", "accepted")},
        "held_to_free_rate": list(ratios())[len(rows) // 2],
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
