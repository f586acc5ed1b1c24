"""What people want of a model, and which published results say something about it.

Knows words and benchmarks; knows no model's score (advisor/quality.py puts the two together).
Path: cli/advise -> task("code completion") -> Task -> advisor.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.errors import UsageError

MOST_CHARS = 400  # of a description of a task


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work. `benchmarks`: the closest first; one that ends in "/base" is of base models alone."""

    id: str
    title: str
    words: tuple[str, ...]
    benchmarks: tuple[str, ...]
    pace: float  # tokens a second below which somebody waits
    prompt: int  # tokens of a usual request
    answer: int
    sample: str  # a request to try a model with
    min_context: int = 4000
    tools: bool = False  # the model has to call tools
    encoder: bool = False  # the work is an embedding model's
    quick: bool = False  # there is no time to think aloud first, however fast the model
    patient: bool = False  # there is, however slow
    fills: bool = False  # the model has to fill in between what stands before and after
    base_too: bool = False  # a model that follows no instructions will do
    specialist: tuple[str, ...] = ()  # parts of names of models made for it


@cache
def tasks() -> tuple[Task, ...]:
    """Return every kind of work that is known."""
    text = resources.files("freehold.catalog").joinpath("data", "tasks.toml").read_text(encoding="utf-8")
    return tuple(_task(table) for table in tomllib.loads(text)["task"])


def _task(table: dict[str, Any]) -> Task:
    lists: dict[str, Any] = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return Task(**(table | lists))


def task(said: str) -> Task:
    """Return the kind of work that a description names: an id, or the one with most of its words in it.

    Earlier kinds win a draw. Raises UsageError when no word is known, and lists the kinds there are.
    """
    if len(said) > MOST_CHARS:
        raise UsageError(f"a task of {len(said):,} characters is over {MOST_CHARS}", "say it in a few words")
    asked = "-".join(said.lower().split())
    for one in tasks():
        if asked == one.id:
            return one
    words = set(re.findall(r"[a-z]+", said.lower()))
    best = max(tasks(), key=lambda one: len(words & set(one.words)))
    if not words & set(best.words):
        kinds = ", ".join(one.id for one in tasks())
        raise UsageError(f"nothing is known of the task {said!r}", f"name one of {kinds}")
    return best
