"""Tasks, and the published results that are evidence for each.

Knows words and benchmarks; knows no model's score (advisor/quality.py puts the two together).
Path: questions.question -> tasks -> Task -> advisor.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.errors import UsageError


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
    text = resources.files("freehold.catalog").joinpath("data", "tasks.toml").read_text(encoding="utf-8")
    return tuple(_task(table) for table in tomllib.loads(text)["task"])


def _task(table: dict[str, Any]) -> Task:
    lists: dict[str, Any] = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return Task(**(table | lists))


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
