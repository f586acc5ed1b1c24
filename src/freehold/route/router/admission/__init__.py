"""Whether a router of prompts earns its place: measured against what needs no router, on tasks it has not seen.

verdict.py judges; here is what it judges on, a table of questions that two models answered: CSV or JSON lines, plain or
gzip. Columns: id, task, prompt, weak, strong (scores from 0 to 1), and, where they are there, score (of the user's own
router: higher goes to the strong model), seen (1: that router was trained on this task), weak_cost and strong_cost (any
unit). Every bad row is named by its line. Knows no router.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.base.errors import UsageError

MOST_BYTES = 256 << 20  # unpacked
MOST_ROWS = 200_000
FEWEST_ROWS = 50
_NEEDED = ("id", "task", "prompt", "weak", "strong")
_SHOWN = 5

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class AnsweredTable:
    """One row a question. `task`: number of its task in `tasks`."""

    name: str
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    task: np.ndarray
    weak: Floats
    strong: Floats
    score: Floats | None = None
    seen: np.ndarray | None = None
    weak_cost: Floats | None = None
    strong_cost: Floats | None = None

    @property
    def rows(self) -> int:
        """How many questions."""
        return len(self.ids)

    @property
    def gain(self) -> Floats:
        """What the strong model's answer is worth more, by question."""
        return self.strong - self.weak


def read_table(path: Path) -> AnsweredTable:
    """Read a table. Raises UsageError for a file that cannot be read, missing columns and bad rows."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    ids: set[str] = set()
    for line, raw in _rows(path):
        try:
            row = _row(raw)
            if row["id"] in ids:
                raise ValueError(f"id {row['id']!r} occurs twice")
        except ValueError as e:
            bad.append(f"line {line}: {e}")
            continue
        ids.add(row["id"])
        rows.append(row)
        if len(rows) > MOST_ROWS:
            raise UsageError(f"{path} has more than {MOST_ROWS:,} rows", "use a sample of them")
    if bad:
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise UsageError(f"{path}: {'; '.join(bad[:_SHOWN])}{more}", "mend or remove these rows")
    return _table(path, rows)


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> AnsweredTable:
    tasks = sorted({row["task"] for row in rows})
    if len(rows) < FEWEST_ROWS:
        raise UsageError(
            f"{path}: so few questions decide nothing: {len(rows):,}", f"give {FEWEST_ROWS} or more"
        )
    number = {name: i for i, name in enumerate(tasks)}
    columns = {name: _column(path, rows, name) for name in ("score", "seen", "weak_cost", "strong_cost")}
    if (columns["weak_cost"] is None) != (columns["strong_cost"] is None):
        raise UsageError(f"{path} has one of weak_cost and strong_cost", "give both, or neither")
    return AnsweredTable(
        name=path.name,
        ids=tuple(row["id"] for row in rows),
        prompts=tuple(row["prompt"] for row in rows),
        tasks=tuple(tasks),
        task=np.array([number[row["task"]] for row in rows]),
        weak=np.array([row["weak"] for row in rows]),
        strong=np.array([row["strong"] for row in rows]),
        **columns,
    )


def _column(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return an optional column: all of it, or None."""
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return None
    if len(values) < len(rows):
        raise UsageError(
            f"{path}: {len(rows) - len(values):,} rows have no {name}", "fill it, or leave it out"
        )
    return np.array(values, dtype=np.float64) if name != "seen" else np.array(values) != 0


def _row(raw: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in _NEEDED if raw.get(name) in (None, "") and name != "prompt"]
    if missing or not isinstance(raw.get("prompt"), str):
        raise ValueError(f"has no {', '.join(missing) or 'prompt'}")
    row: dict[str, Any] = {"id": str(raw["id"]), "task": str(raw["task"]), "prompt": raw["prompt"]}
    for name in ("weak", "strong"):
        row[name] = _number(raw[name], name, 0.0, 1.0)
    for name, least in (("score", -math.inf), ("seen", 0.0), ("weak_cost", 0.0), ("strong_cost", 0.0)):
        cell = raw.get(name)
        row[name] = None if cell in (None, "") else _number(cell, name, least, math.inf)
    return row


def _number(cell: Any, name: str, least: float, most: float) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {str(cell)[:40]!r} is not a number") from None
    if not (math.isfinite(value) and least <= value <= most):
        limits = f"within {least:g}..{most:g}" if math.isfinite(most) else "finite and not negative"
        raise ValueError(f"{name} = {value:g} is not {limits if least > -math.inf else 'finite'}")
    return value


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line, row); the format goes by the name: .csv or .jsonl, with .gz at the end or not."""
    kind = path.suffixes[-2:] if path.suffix == ".gz" else [path.suffix]
    text = _text(path, path.suffix == ".gz")
    if kind[0] == ".csv":
        csv.field_size_limit(1 << 24)
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path} has no column {', '.join(missing)}", f"columns: {', '.join(_NEEDED)}")
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as e:
            raise UsageError(f"{path}: line {reader.line_num}: {e}", "write it as CSV with quotes") from None
    elif kind[0] in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _object(path, number, line)
    else:
        raise UsageError(
            f"{path} is neither CSV nor JSON lines by its name", "name it .csv, .jsonl, or .gz of them"
        )


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{path}: line {number} is not a JSON object", "one object a line")
    return row


def _text(path: Path, packed: bool) -> str:
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as e:
        why = (getattr(e, "strerror", None) or "it is not a whole gzip file").lower()
        raise UsageError(f"{path} cannot be read: {why}", "give a CSV or JSON lines") from e
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes", "use a sample of its rows")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: byte {e.start:,} is not UTF-8", "save it as UTF-8") from None
