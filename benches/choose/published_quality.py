"""Compare published results with what would have been predicted of them: by family left out, and by time.

`python benches/choose/published_quality.py [--since 2025-07 --since 2025-12] [--cases] [--write]`. Each known result on
a task's scale is hidden in turn and carried over from the model's other results, along lines drawn without its family,
or through models released before a month alone. Prints median error and how often the 80 % ranges held, per scale;
`--cases` names those outside; `--write` puts the tables into docs/design/predictions.md. Ends in one JSON line; exit 1
when a claim fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from freehold.base.catalog.benchmarks import (  # noqa: E402
    BENCHMARKS,
    Task,
    tasks,
)
from freehold.base.catalog.model import Model  # noqa: E402
from freehold.base.catalog.models import models  # noqa: E402
from freehold.choose.advisor.quality import Evidence, Quality, Scale, benchmark  # noqa: E402  # noqa: E402

PAGE = ROOT / "docs" / "design" / "predictions.md"
MARKS = ("<!-- quality: begin -->", "<!-- quality: end -->")
CLAIM = (0.75, 0.92)  # of all ranges that say 80 %: with the family left out, and since the last month
NOWHERE = Path("/nowhere/catalogue.toml")  # no user's own facts


@dataclass(frozen=True)
class Case:
    """A result that was hidden, and what was predicted of it; None: no evidence was found to predict it from."""

    scale: str
    model: str
    true: float
    predicted: Quality | None

    @property
    def held(self) -> bool:
        """Whether the range holds the true result."""
        return self.predicted is not None and self.true in self.predicted.range

    @property
    def error(self) -> float:
        """Points that the middle of the range is off."""
        assert self.predicted is not None
        return abs(self.predicted.range.mid - self.true)


def rulers(known: Iterable[Model]) -> Iterator[tuple[Task, str, bool]]:
    """Yield each scale once, with the first task that it is the scale of, and whether there is no time to think."""
    seen: set[tuple[str, bool]] = set()
    for task in tasks():
        name = Scale(task, known).benchmark if task.benchmarks else ""
        if name and (name, task.quick) not in seen:
            seen.add((name, task.quick))
            yield task, name, task.quick


def blind(model: Model, name: str) -> Model:
    """Return a model without its results on a scale."""
    return replace(model, scores=tuple(s for s in model.scores if s.benchmark != benchmark(name)))


def true(model: Model, everything: Evidence, name: str, quick: bool) -> float | None:
    """Return the known result that a scale has of a model."""
    found = everything.of(model)
    result = None if quick else found.get(f"{name}/thinking")
    result = result or found.get(name)
    return result.value if result else None


def by_family(known: list[Model]) -> Iterator[Case]:
    """Predict each result by lines drawn without the model's family."""
    everything = Evidence(known)
    for task, name, quick in rulers(known):
        for model in known:
            value = true(model, everything, name, quick)
            if value is not None:
                others = [m for m in known if m.family != model.family]
                yield Case(
                    name, model.id, value, Scale(task, others, quick=quick, ruler=name).of(blind(model, name))
                )


def by_time(known: list[Model], since: str) -> Iterator[Case]:
    """Predict each result of a model released since a month by lines through those released before it."""
    everything = Evidence(known)
    before = [m for m in known if m.released and m.released < since]
    for task, name, quick in rulers(known):
        scale = Scale(task, before, quick=quick, ruler=name)
        for model in known:
            value = true(model, everything, name, quick) if model.released >= since else None
            if value is not None:
                yield Case(name, model.id, value, scale.of(blind(model, name)))


def row(name: str, cases: list[Case]) -> str:
    """Return one line of the table; a scale's names the tasks that it judges."""
    seen = [c for c in cases if c.predicted]
    judges = ", ".join(t.id for t in tasks() if name in t.benchmarks[:1])
    name = f"{judges}: {name}" if judges else name
    if not seen:
        return f"| {name} | {len(cases)} | 0 | | |"
    off = median(c.error for c in seen)
    return f"| {name} | {len(cases)} | {len(seen)} | {off:.1f} | {sum(c.held for c in seen)} of {len(seen)} |"


def table(title: str, cases: list[Case]) -> list[str]:
    """Return a table of one way of leaving out, per scale and over all."""
    names = list(dict.fromkeys(c.scale for c in cases))
    lines = [f"| {title} | known | predicted | median error | in the 80 % range |", "|---|---|---|---|---|"]
    lines += [row(n, [c for c in cases if c.scale == n]) for n in names]
    return [*lines, row("all", cases), ""]


def share(cases: list[Case]) -> float:
    """Return how many of what was predicted lies in its range."""
    seen = [c for c in cases if c.predicted]
    return sum(c.held for c in seen) / max(len(seen), 1)


def errors(known: list[Model]) -> list[str]:
    """Return how far two sources of one result differ, per benchmark that a task is judged by."""
    everything = Evidence(known)
    names = dict.fromkeys(benchmark(t.benchmarks[0]) for t in tasks() if t.benchmarks)
    told = ", ".join(f"{n} {everything.between(n):.2f} ({BENCHMARKS[n].items:,} items)" for n in names)
    return [f"Deviation between two sources of one result, on the logits, and items of a run: {told}.", ""]


def main() -> int:
    """Run both ways, print the tables, and say whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", action="append", help="first month of the models predicted by time")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/design/predictions.md")
    parser.add_argument("--cases", action="store_true", help="print each case outside its range")
    given = parser.parse_args()
    known = list(models(NOWHERE))
    months = given.since or ["2025-07", "2025-12"]
    ways = {"left out: the family": list(by_family(known))}
    ways |= {f"released since {month}": list(by_time(known, month)) for month in months}
    lines = [*errors(known)]
    for title, cases in ways.items():
        lines += table(title, cases)
    print("\n".join(lines))
    if given.cases:
        for c in (c for cases in ways.values() for c in cases if c.predicted and not c.held):
            print(f"{c.scale} {c.model} {c.true:g}: {c.predicted.range} from {c.predicted.evidence}")  # type: ignore[union-attr]
    if given.write:
        _write(lines)
    shares = {title: round(share(cases), 3) for title, cases in ways.items()}
    claimed = ("left out: the family", f"released since {months[-1]}")
    good = all(CLAIM[0] <= shares[title] <= CLAIM[1] for title in claimed)
    print(json.dumps({"bench": "published_quality", "inside": shares, "claim": CLAIM, "holds": good}))
    return 0 if good else 1


def _write(lines: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{head}{MARKS[0]}\n" + "\n".join(lines) + f"{MARKS[1]}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
