"""A cascade by log-probability on tasks with checkable answers: what it saves, what it loses, and whether it wins.

    python benches/gateway/cascade.py --answers cascade.jsonl        asks both models, or continues where it was
    python benches/gateway/cascade.py --answers cascade.jsonl --read only reads the answers

Twelve kinds of generated questions with one right answer each, asked of a small and of a large owned model, greedily.
The small one answers first; where the mean probability of its first tokens (exp of the mean log-probability, as
`escalate = { when = "logprob" }` takes it) lies below a threshold, the large one is asked too. Printed for each
threshold: quality, and the large model's seconds and tokens that are left, each beside always-large by a paired
bootstrap over whole kinds, and the quality above escalating the same share at random. Always-small is what the first
lines say. Last, the admission's verdict on the same table. Seconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import freehold
from freehold.base.types import Message, SamplingParams
from freehold.route.router.admission import AnsweredTable
from freehold.route.router.admission.verdict import OWN, admit

EACH = 15  # questions of a kind
CHECK = 64  # tokens whose log-probabilities count
MOST = 32  # tokens of an answer
WORDS = (
    "planet", "silver", "garden", "bridge", "window", "pencil", "coffee", "market", "doctor", "ticket", "summer",
    "orange", "mirror", "castle", "forest",
)  # fmt: skip
BELOW = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
RESAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """A question, and the only right answer."""

    kind: str
    prompt: str
    right: str


def questions(each: int = EACH) -> list[Question]:
    """Return the same questions every time."""
    draw = random.Random(20261127)
    made = []
    for kind, make in KINDS.items():
        for _ in range(each):
            text, right = make(draw)
            made.append(Question(kind, f"{text} Answer with the result only.", str(right)))
    return made


def _numbers(draw: random.Random, low: int, high: int, n: int = 2) -> list[int]:
    return [draw.randint(low, high) for _ in range(n)]


def _add(draw: random.Random) -> tuple[str, object]:
    a, b = _numbers(draw, 100, 999)
    return f"What is {a} + {b}?", a + b


def _subtract(draw: random.Random) -> tuple[str, object]:
    a, b = sorted(_numbers(draw, 100, 999))
    return f"What is {b} - {a}?", b - a


def _multiply(draw: random.Random) -> tuple[str, object]:
    a, b = draw.randint(3, 9), draw.randint(11, 99)
    return f"What is {a} * {b}?", a * b


def _chain(draw: random.Random) -> tuple[str, object]:
    a, b, c = _numbers(draw, 2, 20, 3)
    return f"What is {a} + {b} * {c}?", a + b * c


def _largest(draw: random.Random) -> tuple[str, object]:
    found = _numbers(draw, 10, 999, 6)
    return f"What is the largest of {', '.join(map(str, found))}?", max(found)


def _reverse(draw: random.Random) -> tuple[str, object]:
    word = draw.choice(WORDS)
    return f"Write the word {word} backwards.", word[::-1]


def _count(draw: random.Random) -> tuple[str, object]:
    word = draw.choice(WORDS)
    letter = draw.choice(word)
    return f"How often does the letter {letter} occur in {word}?", word.count(letter)


def _third(draw: random.Random) -> tuple[str, object]:
    words = draw.sample(WORDS, 5)
    return f"What is the third word of: {' '.join(words)}?", words[2]


def _slice(draw: random.Random) -> tuple[str, object]:
    word, a = draw.choice(WORDS), draw.randint(0, 2)
    return f'What does this Python print? print("{word}"[{a}:{a + 3}])', word[a : a + 3]


def _length(draw: random.Random) -> tuple[str, object]:
    word = draw.choice(WORDS) * draw.randint(1, 2)
    return f'What does this Python print? print(len("{word}"))', len(word)


def _loop(draw: random.Random) -> tuple[str, object]:
    n = draw.randint(3, 9)
    return f"What does this Python print? print(sum(range({n})))", sum(range(n))


def _modulo(draw: random.Random) -> tuple[str, object]:
    a, b = draw.randint(20, 99), draw.randint(3, 9)
    return f"What does this Python print? print({a} % {b})", a % b


KINDS: dict[str, Callable[[random.Random], tuple[str, object]]] = {
    "add": _add, "subtract": _subtract, "multiply": _multiply, "chain": _chain, "largest": _largest,
    "reverse": _reverse, "count": _count, "third": _third, "slice": _slice, "length": _length, "loop": _loop,
    "modulo": _modulo,
}  # fmt: skip


def is_right(answer: str, right: str) -> bool:
    """Say whether the last number, or the last word, of an answer is the right one."""
    found = re.findall(r"-?\d+" if right.lstrip("-").isdigit() else r"[A-Za-z]+", answer.replace(",", ""))
    return bool(found) and found[-1].lower() == right.lower()


def ask(model: str, path: Path) -> None:
    """Ask a model every question that the file has no answer of."""
    known = {(row["model"], row["number"]) for row in _rows(path)}
    waiting = [(i, q) for i, q in enumerate(questions()) if (model, i) not in known]
    if not waiting:
        return
    with closing(freehold.load(model, context=1024)) as llm, path.open("a") as out:
        llm.chat("Hello", max_tokens=2)  # what loads at the first request is not the first question's
        for number, question in waiting:
            started, text, logprobs, tokens = time.perf_counter(), "", [], 0
            for chunk in llm.stream(
                [Message("user", question.prompt)],
                max_tokens=MOST,
                logprobs=0,
                sampling=SamplingParams(temperature=0, seed=0),
            ):
                text += chunk.text
                logprobs += [each.logprob for each in chunk.logprobs]
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            row = {
                "model": model,
                "number": number,
                "text": text,
                "right": is_right(text, question.right),
                "sure": float(np.exp(np.mean(logprobs[:CHECK]))) if logprobs else 0.0,
                "seconds": round(time.perf_counter() - started, 4),
                "tokens": tokens,
            }
            out.write(json.dumps(row) + "\n")
            out.flush()


def _rows(path: Path) -> Iterator[dict]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def read(path: Path, small: str, large: str) -> dict:
    """Sweep the threshold over the answers; return what one JSON line says."""
    asked = questions()
    rows = {(row["model"], row["number"]): row for row in _rows(path)}
    weak, strong = ([rows[model, i] for i in range(len(asked))] for model in (small, large))
    right = {
        name: np.array([float(r["right"]) for r in of]) for name, of in (("weak", weak), ("strong", strong))
    }
    spent = {name: np.array([r["seconds"] for r in of]) for name, of in (("weak", weak), ("strong", strong))}
    tokens = np.array([r["tokens"] for r in strong], dtype=float)
    sure = np.array([r["sure"] for r in weak])
    kinds = sorted(KINDS)
    kind = np.array([kinds.index(q.kind) for q in asked])
    counts = _resampled(kind)
    print(f"{len(asked)} questions of {len(kinds)} kinds")
    for name, which in ((small, "weak"), (large, "strong")):
        print(f"{name}: {right[which].mean():.3f} right, {spent[which].sum():.1f} s")
    print(f"{'below':>6}  {'asked on':>8}  {'quality':>7}  {'loss to always-large':>26}  {'saved tokens':>22}  "
          f"{'saved seconds':>24}  {'over the same share at random':>29}")  # fmt: skip
    sweep = []
    for below in BELOW:
        up = sure < below
        quality = np.where(up, right["strong"], right["weak"])
        share = up.mean()
        at_random = share * right["strong"] + (1 - share) * right["weak"]  # expected, of the same share
        row = {
            "below": below,
            "share": float(share),
            "quality": float(quality.mean()),
            "loss": _ranged(right["strong"] - quality, np.ones(len(up)), counts),
            "saved_tokens": _ranged(np.where(up, 0, tokens), tokens, counts),
            "saved_seconds": _ranged(spent["strong"] * ~up - spent["weak"], spent["strong"], counts),
            "over_random": _ranged(quality - at_random, np.ones(len(up)), counts),
        }
        sweep.append(row)
        print(f"{below:6.2f}  {row['share']:8.2f}  {row['quality']:7.3f}  {_text(row['loss']):>26}  "
              f"{_text(row['saved_tokens']):>22}  {_text(row['saved_seconds']):>24}  "
              f"{_text(row['over_random']):>29}")  # fmt: skip
    table = AnsweredTable(
        "cascade", tuple(map(str, range(len(asked)))), tuple(q.prompt for q in asked), tuple(kinds), kind,
        right["weak"], right["strong"], score=-sure,
        weak_cost=spent["weak"], strong_cost=spent["weak"] + spent["strong"],
    )  # fmt: skip
    verdict = admit(table)
    why = verdict.no_router or (verdict.refused or {}).get(OWN, "")
    inside = next((f for f in verdict.held_out if f.name == OWN), None)
    if inside is not None:
        over = ", ".join(f"over {base} {by}" for base, by in inside.over.items())
        print(f"APGR {inside.apgr.mid:.3f} [{inside.apgr.low:.3f}, {inside.apgr.high:.3f}]; {over}")
    print(f"admission: {'refused: ' + why if why else 'admitted'}")
    return {
        "bench": "gateway/cascade", "small": small, "large": large, "questions": len(asked),
        "weak": float(right["weak"].mean()), "strong": float(right["strong"].mean()), "sweep": sweep,
        "admission": verdict.as_json(),
    }  # fmt: skip


def _resampled(kind: np.ndarray) -> np.ndarray:
    size = int(kind.max()) + 1
    drawn = np.random.default_rng(2).integers(0, size, (RESAMPLES, size))
    counts = np.stack([np.bincount(row, minlength=size) for row in drawn])
    return counts[:, kind].astype(float)


def _ranged(part: np.ndarray, whole: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Return sum(part) / sum(whole) with its 95 % bounds over resampled kinds."""
    mid = part.sum() / whole.sum()
    low, high = np.percentile((counts @ part) / (counts @ whole), [2.5, 97.5])
    return float(mid), float(low), float(high)


def _text(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def main() -> None:
    """Ask, then read."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--small", default="qwen2.5-coder:0.5b")
    given.add_argument("--large", default="qwen2.5-coder:1.5b")
    given.add_argument("--answers", type=Path, default=Path("cascade.jsonl"))
    given.add_argument("--only", choices=["small", "large"], help="ask this model alone, and read nothing")
    given.add_argument("--read", action="store_true", help="ask nothing")
    options = given.parse_args()
    for which in ("small", "large"):
        if not options.read and options.only in (None, which):
            ask(getattr(options, which), options.answers)
    if options.only is None:
        print(json.dumps(read(options.answers, options.small, options.large)))


if __name__ == "__main__":
    main()
