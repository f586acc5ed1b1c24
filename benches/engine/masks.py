"""What a token's mask costs, ours beside the peers', for twenty schemas and one model's tokens.

    python benches/engine/masks.py qwen2.5-coder:0.5b
    python benches/engine/masks.py qwen2.5-coder:0.5b --peers xgrammar

Each library compiles each schema and is walked along the same tokens of the same answer, three times with a fresh
matcher; the time is of the mask alone, and of ours all that the sampler waits for (bits, checks, one bool a token).
No weights are read. Each peer lives in an environment of its own (.peers/NAME). Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.drivers.peer_masks import PEERS, timed
from benches.engine.schemas import CASES
from benches.lib.environments import DRIVERS, NotInstalled, environment
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.types import Format, SamplingParams
from freehold.cli.bench import version
from freehold.run.engine.constrain.grammar import Grammar, GrammarMatcher, Grammars
from freehold.run.engine.sampler import choose
from freehold.run.formats.gguf import open_gguf
from freehold.run.store import Store
from freehold.run.tokenizer import Tokenizer, tokenizer_from_gguf

PEER_S = 300.0  # for one peer, all schemas; what it had answered by then counts
TARGET_US = 50.0


class _Ours:
    """A matcher as peer_masks.py walks it."""

    def __init__(self, matcher: GrammarMatcher) -> None:
        self.mask, self.advance = matcher.mask, matcher.advance


def main() -> int:
    """Measure, print the table, then the facts."""
    args = _arguments()
    tokenizer = tokenizer_from_gguf(open_gguf(Store(load_settings()).pull(args.model).path).metadata)
    cases = [{"name": c.name, "schema": c.schema, "ids": _ids(tokenizer, c.answer)} for c in CASES]
    results = {"freehold": _ours(tokenizer, cases)}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps(_asked(tokenizer, cases)))
        results |= {name: _peer(name, asked) for name in args.peers}
    facts = {
        "bench": "masks",
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        "schemas": len(CASES),
        "tokens": sum(len(c["ids"]) for c in cases),
        "target_us": TARGET_US,
        "results": {name: _summary(result) for name, result in results.items()},
    }
    _table(facts)
    print(json.dumps(facts))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="whose tokens")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    return parser.parse_args()


def _ids(tokenizer: Tokenizer, answer: Any) -> list[int]:
    return [*tokenizer.encode(json.dumps(answer, ensure_ascii=False), bos=False), max(tokenizer.eos_ids)]


def _asked(tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    return {
        "tokens": [base64.b64encode(token).decode() for token in tokens],
        "ends": sorted(tokenizer.eos_ids),
        "cases": cases,
    }


def _ours(tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> dict[str, Any]:
    grammars = Grammars(tokenizer)
    started = time.perf_counter()
    grammars.grammar(Format("json"))
    facts: dict[str, Any] = {"version": version(), "vocabulary_s": time.perf_counter() - started}

    def compile(schema: dict[str, Any]) -> Any:
        grammar: Grammar = grammars.grammar(Format("json_schema", json.dumps(schema)))
        return lambda: _Ours(grammar.matcher())

    rows = [{"case": c["name"], **timed(compile, c["schema"], c["ids"][:-1])} for c in cases]
    return {**facts, "apply_us": _apply_us(tokenizer.vocab_size), "rows": rows}


def _apply_us(size: int) -> float:
    """Return the microseconds that choosing from a masked row takes beyond one that is not."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(size).astype(np.float32)
    allowed = rng.random(size) < 0.01
    took: dict[bool, list[float]] = {True: [], False: []}
    for masked in [True, False] * 200:
        started = time.perf_counter()
        choose(logits, [1], SamplingParams(), 1, size, None, allowed if masked else None)
        took[masked].append((time.perf_counter() - started) * 1e6)
    return statistics.median(took[True]) - statistics.median(took[False])


def _peer(name: str, asked: Path) -> dict[str, Any]:
    try:
        python = environment(name)
    except NotInstalled as e:
        return {"failed": str(e), "rows": []}
    command = [str(python), str(DRIVERS / "peer_masks.py"), name, str(asked)]
    late = False
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(command, stdout=said, stderr=subprocess.PIPE, text=True, timeout=PEER_S)
            failed = done.stderr.strip()[-300:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            late, failed = True, ""
        said.seek(0)
        lines = [json.loads(line) for line in said if line.endswith("\n")]
    head = lines[0] if lines else {"failed": failed or f"nothing within {PEER_S:.0f} s"}
    if late:
        print(f"{name}: ended after {PEER_S:.0f} s", file=sys.stderr)
    return {**head, "rows": lines[1:]}


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in result["rows"] if "mask_us" in row]
    told = {k: result[k] for k in ("version", "vocabulary_s", "apply_us", "failed") if k in result}
    if not rows:
        return {**told, "schemas": 0}
    every = sorted(us for row in rows for walk in row["mask_us"] for us in walk)
    first = sorted(us for row in rows for us in row["mask_us"][0])
    compiling = [row["compile_s"] * 1e3 for row in rows]
    return {
        **told,
        "schemas": len(rows),
        "mask_us": statistics.median(every),
        "mask_p99_us": every[int(len(every) * 0.99)],
        "first_mask_us": statistics.median(first),
        "first_max_us": first[-1],
        "compile_ms": statistics.median(compiling),
        "compile_max_ms": max(compiling),
        "lacks": {row["case"]: row["failed"] for row in result["rows"] if "failed" in row},
    }


_COLUMNS = {
    "version": lambda r: r["version"],
    "schemas": lambda r: str(r["schemas"]),
    "mask µs, median": lambda r: f"{r['mask_us']:.1f}",
    "99th": lambda r: f"{r['mask_p99_us']:.0f}",
    "first walk, median": lambda r: f"{r['first_mask_us']:.1f}",
    "worst": lambda r: f"{r['first_max_us']:.0f}",
    "compile ms, median": lambda r: f"{r['compile_ms']:.1f}",
    "worst compile ms": lambda r: f"{r['compile_max_ms']:.0f}",
    "vocabulary s": lambda r: f"{r['vocabulary_s']:.2f}",
}


def _table(facts: dict[str, Any]) -> None:
    print(
        f"masks, {facts['machine']}, {facts['version']}: {facts['schemas']} schemas, {facts['tokens']} tokens\n"
    )
    print(f"| | {' | '.join(_COLUMNS)} |\n|{'---|' * (1 + len(_COLUMNS))}")
    for name, r in facts["results"].items():
        cells = [show(r) for show in _COLUMNS.values()] if r["schemas"] else [r.get("failed", "none")]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\napplied to a row: {facts['results']['freehold']['apply_us']:.0f} µs\n")


if __name__ == "__main__":
    sys.exit(main())
