"""Benchmarks, the public boards that publish their results, and the tasks that they are evidence for.

Knows what each measures, of how many items, in which skill; knows no model (advisor/quality.py puts them together).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from freehold.base.catalog.model import Score, data_table, texts, tupled
from freehold.base.errors import StoreError, UsageError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a model is asked and what is counted, in per cent.

    `skill`: general, code, maths, tools or documents. `items`: questions a run asks, which bound how well a repeat
    agrees. `chance`: per cent that guessing gets. `one_runner`: one party runs all models alike.
    """

    about: str
    skill: str
    items: int
    chance: float = 0.0
    one_runner: bool = False


def _read() -> dict[str, Benchmark]:
    text = (
        resources.files("freehold.base.catalog")
        .joinpath("data", "benchmarks.csv")
        .read_text(encoding="utf-8")
    )
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["name"]: Benchmark(
            row["about"], row["skill"], int(row["items"]), float(row["chance"]), bool(row["one_runner"])
        )
        for row in rows
    }


BENCHMARKS = _read()


# --- public boards: dated tables of results in which one runner, or one keeper, lists many models ---
# `data/boards/*.csv` is one file a board, rows of our models alone; comments above the header say what was
# read where, and `source = ` what a score cites.  A wrong row is our own fault and says where.

COLUMNS = ["model", "benchmark", "value", "setting"]


def of(model: str) -> tuple[Score, ...]:
    """Return what the boards say of a model, by its id."""
    return boards().get(model, ())


@cache
def boards() -> dict[str, tuple[Score, ...]]:
    """Return every board's rows, by model."""
    scores: dict[str, tuple[Score, ...]] = {}
    for where, text in texts("boards", ".csv").items():
        for model, score in parse(where, text):
            scores[model] = (*scores.get(model, ()), score)
    return scores


def parse(where: str, text: str) -> list[tuple[str, Score]]:
    """Turn one board's table into scores; raise StoreError naming file and row at fault."""
    lines = text.splitlines()
    source_lines = [line for line in lines if line.startswith("# source = ")]
    rows = csv.reader(line for line in lines if not line.startswith("#"))
    if len(source_lines) != 1 or next(rows, []) != COLUMNS:
        raise StoreError(f"{where}: a board has one line `# source = ` and the columns {', '.join(COLUMNS)}")
    return list(_scores(where, rows, source_lines[0].removeprefix("# source = ")))


def _scores(where: str, rows: Iterable[list[str]], source: str) -> Iterable[tuple[str, Score]]:
    for number, row in enumerate(rows, 1):
        try:
            model, benchmark, value, setting = row
            score = Score(benchmark, float(value), setting, source)
        except ValueError:
            raise StoreError(
                f"{where}: row {number}: {row!r} is not a model, benchmark, value, setting"
            ) from None
        if benchmark not in BENCHMARKS or not 0 <= score.value <= 100:
            raise StoreError(f"{where}: row {number}: {benchmark} = {value} is not known, or not in per cent")
        yield model, score


# --- tasks, and the published results that are evidence for each ------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work. `benchmarks`: the scale first, then what is carried over to it (advisor.quality's measures)."""

    id: str
    title: str
    words: tuple[str, ...]  # that name it
    benchmarks: tuple[str, ...]
    pace: float  # tokens a second below which a user waits
    prompt: int  # tokens of a usual request
    answer: int
    sample: str  # a request to try a model with
    hints: tuple[str, ...] = ()  # words that go with it, and name it where nothing else does
    min_context: int = 4000
    tools: bool = False  # the model has to call tools
    encoder: bool = False  # the work is an embedding model's
    reranker: bool = False  # the work is a reranker's
    finder: bool = False  # an embedding model finds the texts that it answers from
    quick: bool = False  # there is no time to think aloud first, however fast the model
    patient: bool = False  # there is, however slow
    fills: bool = False  # the model has to fill in the text between a prefix and a suffix
    base_too: bool = False  # a model that follows no instructions will do
    bar: float = 0.0  # per cent on the first benchmark below which answers are seldom usable; 0: none is set


@cache
def tasks() -> tuple[Task, ...]:
    """Return every kind of work that is known."""
    return tuple(Task(**tupled(row)) for row in data_table("tasks.toml")["task"])


def task(name: str) -> Task:
    """Return a kind of work by its id; spaces stand for hyphens. Raises UsageError with the ids there are.

    A question in a user's words is questions.question's.
    """
    wanted = "-".join(name.lower().split())
    for one in tasks():
        if one.id == wanted:
            return one
    raise UsageError(f"there is no task {name!r}", f"name one of {kinds()}")


def kinds() -> str:
    """Return the ids of all kinds of work, as an error lists them."""
    return ", ".join(one.id for one in tasks())
