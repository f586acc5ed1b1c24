"""What was trained and measured on this machine: receipts, curves of steps, results of evaluations, pairs of them.

Reads what `freehold finetune` and its like wrote, as far as it is whole: a damaged receipt is a row that says so. Knows
files and their fields; knows no training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from freehold.adapt.registry import NotedRun, noted
from freehold.serve.http.console.choose import questions, words_of
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.problems import Refused

RECEIPT, WHAT, STEPS = "receipt.json", "run.json", "steps.jsonl"
MOST_RECEIPT, MOST_STEPS = 8 << 20, 64 << 20  # bytes that are read of a file
POINTS = 2000  # of a curve
MOST_CURVES = 64
Plain = dict[str, Any]


# The JSON that the page gets; tools/console_types.py writes its types in TypeScript.


class TrainingRow(TypedDict):
    """A training, finished or not."""

    id: str
    name: str  # of the folder
    path: str | None  # only for the owner
    verb: str
    state: Literal["done", "running", "stopped", "damaged"]
    trouble: str  # of a damaged one
    base: str
    made_at: str  # ISO 8601; "" where it is not finished
    step: int  # of a run with steps, the latest
    steps: int
    cpu_seconds: float


class TrainingReceipt(TypedDict):
    """One training with its receipt and its curves."""

    row: TrainingRow
    receipt: Plain | None  # receipt.json as it is; null before the end
    inputs: Plain | None  # of a run that is not finished
    curves: dict[str, list[tuple[float, float]]]  # (step, value) by name: loss, reward, mismatch, ...
    bad_lines: int  # damaged lines of steps.jsonl, left out


class EvalFigure(TypedDict):
    """A task's metric."""

    task: str
    metric: str
    value: float
    items: int


class EvalRow(TypedDict):
    """An evaluation."""

    id: str
    name: str
    path: str | None
    state: Literal["done", "damaged"]
    trouble: str
    model: str
    at: str
    tasks: list[EvalFigure]


class TrainingList(TypedDict):
    """Trainings and evaluations, the newest first."""

    runs: list[TrainingRow]
    evals: list[EvalRow]


class Damaged(Exception):
    """A file is not what its writer writes."""


async def trainings(call: HttpCall) -> None:
    """List training runs and evaluations of this data folder, newest first."""
    await call.answer(await call.in_thread(_listed, _home(call), call.owner))


async def training(call: HttpCall) -> None:
    """Return the receipt and the step curves of a training run."""
    wanted = call.scope["path_params"]["id"]
    run_row = await call.in_thread(_opened, _home(call), wanted, call.owner)
    if run_row is None:
        raise _unknown(wanted)
    await call.answer(run_row)


async def compared(call: HttpCall) -> None:
    """Compare two evaluations item by item, as `freehold eval --compare ONE OTHER --json` does."""
    words = words_of(call, ("one", "other"))
    paths = await call.in_thread(_results, _home(call))
    ids = ["".join(words.get(name, ())) for name in ("one", "other")]
    for id in ids:
        if id not in paths:
            raise _unknown(id)
    one, other = (str(paths[id]) for id in ids)

    async def work() -> None:
        text = await questions(call).ask("compare", {"one": [one], "other": [other]})
        await call.answer(text.encode())

    await call.while_here(work())


def _home(call: HttpCall) -> Path:
    if call.server.store is None:
        raise Refused(404, "this server has no data folder", code="no_store")
    return call.server.store.settings.home


def _unknown(id: str) -> Refused:
    return Refused(404, f"there is no training or evaluation {id[:40]!r}", code="no_training")


def _id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


# --- trainings ------------------------------------------------------------------------------------------


def _listed(home: Path, owner: bool) -> TrainingList:
    runs = [row for one in noted(home) if one.verb != "eval" and (row := _row(one, owner)) is not None]
    return {"runs": runs, "evals": [_eval_row(path, owner) for path in _results(home).values()]}


def _row(one: NotedRun, owner: bool) -> TrainingRow | None:
    """Describe a training; None where neither it nor its work is there any more."""
    folder, done = _folder(one)
    if folder is None:
        return None
    row: TrainingRow = {
        "id": _id(one.out),
        "name": one.out.name,
        "path": str(one.out) if owner else None,
        "verb": one.verb,
        "state": "done" if done else "running" if one.running else "stopped",
        "trouble": "",
        "base": "",
        "made_at": "",
        "step": 0,
        "steps": 0,
        "cpu_seconds": 0.0,
    }
    try:
        receipt = _object(folder / (RECEIPT if done else WHAT))
        base = receipt.get("inputs", {}).get("base", {})
        row["base"] = str(base.get("name", "") if isinstance(base, dict) else base)
        row["verb"] = str(receipt.get("verb", one.verb))
        row["made_at"] = str(receipt.get("made_at", ""))
        row["cpu_seconds"] = float(receipt.get("cpu_seconds", 0.0))
    except (Damaged, AttributeError, TypeError, ValueError) as e:
        row["state"], row["trouble"] = "damaged", str(e)[:300]
    last = _last_line(folder / STEPS)
    for name in ("step", "steps"):
        if isinstance(last.get(name), int):
            row[name] = last[name]
    return row


def _folder(one: NotedRun) -> tuple[Path | None, bool]:
    """Return where a training lies, and whether it is finished."""
    if one.out.is_dir():
        return one.out, True
    work = one.out.with_name(f".{one.out.name}.part")
    return (work, False) if work.is_dir() else (None, False)


def _opened(home: Path, id: str, owner: bool) -> TrainingReceipt | None:
    one = next((one for one in noted(home) if _id(one.out) == id), None)
    row = _row(one, owner) if one is not None and one.verb != "eval" else None
    if one is None or row is None:
        return None
    folder, done = _folder(one)
    curves, bad = _curves(folder / STEPS) if folder else ({}, 0)
    record = None
    if folder is not None and row["state"] != "damaged":
        record = _object(folder / (RECEIPT if done else WHAT))
    return {
        "row": row,
        "receipt": record if done else None,
        "inputs": None if done or record is None else record.get("inputs"),
        "curves": curves,
        "bad_lines": bad,
    }


def _object(path: Path) -> Plain:
    """Read a JSON object. Raises Damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_RECEIPT + 1)
        if len(data) > MOST_RECEIPT:
            raise Damaged(f"{path.name} has more than {MOST_RECEIPT:,} bytes")
        value = json.loads(data, parse_constant=_no_number)
    except OSError as e:
        raise Damaged(f"{path.name} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise Damaged(f"{path.name} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} is not a JSON object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


# --- curves ---------------------------------------------------------------------------------------------


def _last_line(path: Path) -> Plain:
    """Return the last whole line of the steps; {} where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - (1 << 16), 0))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if (step := _step(line)) is not None:
            return step
    return {}


def _step(line: bytes) -> Plain | None:
    try:
        row = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _curves(path: Path) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Return a curve for each name that most lines have a number for, and how many lines are damaged."""
    try:
        with path.open("rb") as file:
            lines = file.read(MOST_STEPS).splitlines()
    except OSError:
        return {}, 0
    curves: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    rows = [row for line in lines if (row := _step(line)) is not None]
    for row in rows:
        for name, value in _numbers(row):
            curves[name].append((row["step"], value))
    most = {name: points for name, points in curves.items() if 2 * len(points) > len(rows)}
    first = dict(sorted(most.items(), key=lambda each: len(each[1]), reverse=True)[:MOST_CURVES])
    return {name: _thinned(points) for name, points in first.items()}, len(lines) - len(rows)


def _numbers(row: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """Return the numbers of a line, those of an object in it by `object.name`."""
    numbers = []
    for name, value in row.items():
        if not above and name in ("step", "steps"):
            continue
        if type(value) in (int, float):
            numbers.append((above + name, value))
        elif isinstance(value, dict) and not above:
            numbers += _numbers(value, f"{name}.")
    return numbers


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave the first, the last and evenly chosen ones between."""
    if len(points) <= POINTS:
        return points
    step = (len(points) - 1) / (POINTS - 1)
    return [points[round(i * step)] for i in range(POINTS)]


# --- evaluations ----------------------------------------------------------------------------------------


def _results(home: Path) -> dict[str, Path]:
    """Return the results that `eval -o` wrote, by id, the newest first."""
    files: list[Path] = []
    for one in noted(home):
        if one.verb == "eval":
            files += one.out.glob("*/results_*.json")
    files = sorted(dict.fromkeys(files), key=lambda path: path.name, reverse=True)
    return {_id(path): path for path in files[:1000]}


def _eval_row(path: Path, owner: bool) -> EvalRow:
    row: EvalRow = {
        "id": _id(path),
        "name": path.parent.name,
        "path": str(path) if owner else None,
        "state": "done",
        "trouble": "",
        "model": path.parent.name,
        "at": "",
        "tasks": [],
    }
    try:
        results = _object(path)
        row["model"] = str(results.get("model_name") or row["model"])
        row["at"] = _at(results.get("date"))
        counts = results.get("n-samples", {})
        row["tasks"] = [
            {
                "task": task,
                "metric": name.partition(",")[0],
                "value": value,
                "items": counts[task]["effective"],
            }
            for task, means in results["results"].items()
            for name, value in means.items()
            if "," in name and "_stderr" not in name and type(value) in (int, float)
        ]
    except (Damaged, KeyError, AttributeError, TypeError, ValueError) as e:
        row["state"], row["trouble"] = "damaged", str(e)[:300] or type(e).__name__
    return row


def _at(seconds: Any) -> str:
    if type(seconds) not in (int, float):
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
