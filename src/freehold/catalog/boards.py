"""Public boards: dated tables of results in which one runner, or one keeper, lists many models.

`data/boards/*.csv` is one file a board, rows of our models alone; comments above the header say what was read where,
and `source = ` what a score cites. Knows no model beyond its id. A wrong row is our own fault and says where.
Path: models._finish -> of(id) -> Score.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from importlib import resources

from freehold.catalog.benchmarks import BENCHMARKS
from freehold.catalog.model import Score
from freehold.errors import StoreError

COLUMNS = ["model", "benchmark", "value", "setting"]


def of(model: str) -> tuple[Score, ...]:
    """Return what the boards say of a model, by its id."""
    return boards().get(model, ())


@cache
def boards() -> dict[str, tuple[Score, ...]]:
    """Return every board's rows, by model."""
    scores: dict[str, tuple[Score, ...]] = {}
    folder = resources.files("freehold.catalog").joinpath("data", "boards")
    for file in sorted(folder.iterdir(), key=lambda p: p.name):
        if file.name.endswith(".csv"):
            for model, score in parse(file.name, file.read_text(encoding="utf-8")):
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
