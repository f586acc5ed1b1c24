"""The prompts that a teacher answers: one a line, with a judge of the answer where the line has one.

    {"prompt": "Convert 3 km to metres as JSON."}
    {"messages": [{"role": "system", ...}, {"role": "user", ...}], "regex": "^\\\\d+ m$"}
    {"prompt": "Write is_even(n) in Python.", "tests": ["assert is_even(4)"]}

Judges are those of evals/judges.py, except the one that is a model. Knows texts; knows no teacher and no tokenizer.
Path: distil -> read_prompts -> TeacherPrompt
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.lines import DataLines, check_keys, conversation, read_lines
from freehold.errors import UsageError
from freehold.evals.judges import JUDGES, Judge, judge
from freehold.types import Message

_CHECKS = tuple(kind for kind in JUDGES if kind != "judge")
_KEYS = ("prompt", "messages", *_CHECKS)
_EXAMPLE = '{"prompt": "..."}'


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """What is asked. `check`: judges an answer; None where the line has none."""

    line: int
    messages: tuple[Message, ...]
    check: Judge | None = None

    @property
    def key(self) -> str:
        """Equal keys are the same question."""
        return json.dumps([[m.role, m.content] for m in self.messages])


def read_prompts(path: Path) -> DataLines[TeacherPrompt]:
    """Read a file of prompts. Raises UsageError naming every bad line, repeated questions too."""
    return read_lines(path, _question, _EXAMPLE, same=lambda q: q.key)


def _question(number: int, table: Mapping[str, Any]) -> TeacherPrompt:
    check_keys(table, _KEYS)
    kinds = [kind for kind in _CHECKS if kind in table]
    if len(kinds) > 1:
        raise UsageError(f"{' and '.join(kinds)}; a line has one judge or none")
    check = judge(kinds[0], table[kinds[0]]) if kinds else None
    return TeacherPrompt(number, conversation(table), check)
