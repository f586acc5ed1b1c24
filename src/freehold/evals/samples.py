"""A user's own cases: one JSON object a line, each a prompt and one judge of the answer.

    {"prompt": "Capital of France? One word.", "exact": "Paris"}
    {"messages": [{"role": "user", "content": "..."}], "contains": ["refund", "14 days"]}
    {"prompt": "...", "regex": "^\\d{4}-\\d{2}-\\d{2}$"}
    {"prompt": "...", "json": {"name": "Ann", "age": 7}}
    {"prompt": "...", "json_schema": {"type": "object", "required": ["name"]}}
    {"prompt": "Write is_prime(n) in Python.", "tests": ["assert is_prime(7)", "assert not is_prime(9)"]}
    {"prompt": "...", "judge": "The reply is friendly and asks for a photograph."}
    {"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}

The last is for those who can score texts (evaluate.py): no answer is written. `metric` names a group of cases that is
counted apart too. Every bad line is named with its number; none is left out. Knows no model.
Path: cli/report/trying, cli/bar -> read -> Samples -> trial.run
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.config import nearest
from freehold.errors import FreeholdError, UsageError
from freehold.evals.judges import JUDGES, Judge, Mark, judge
from freehold.types import Message

MOST_BYTES = 16 << 20
MOST_CASES = 2000
MOST_LINE = 256 << 10  # bytes of one case
MOST_TOKENS = 4096  # of an answer
USUAL_TOKENS = 256
_SHOWN = 5  # bad lines that an error spells out
MOST_CHOICES = 64
_KEYS = ("prompt", "messages", "max_tokens", "metric", "choices", "answer", *JUDGES)
_METRIC = re.compile(r"[A-Za-z][\w.@-]{0,39}")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `digest` names what is asked and how it is judged: another line, another digest."""

    line: int
    messages: tuple[Message, ...]
    judge: Judge
    max_tokens: int
    digest: str
    metric: str = ""  # counted apart under this name too
    choices: tuple[str, ...] = ()  # scored by log-likelihood; the judge is then of kind "choices"
    answer: int = 0  # index of the right one
    plain: bool = False  # a prompt with choices: continued as it is, without a template
    table: Mapping[str, Any] = field(default_factory=dict)  # the line


@dataclass(frozen=True, slots=True)
class Samples:
    """A file's cases. `digest` is of all of them, in any order."""

    name: str
    cases: tuple[Case, ...]
    digest: str

    @property
    def needs_judge(self) -> bool:
        """Whether some case is judged by a model."""
        return any(c.judge.kind == "judge" for c in self.cases)


def read(path: Path, by: str = "", *, scored: bool = False) -> Samples:
    """Read a file of cases. `by` names the model that judges where a case asks for one; it is part of the digests.

    `scored`: allow cases with choices.

    Raises UsageError for a file that cannot be read or is too large, and for bad lines, each with its number.
    """
    cases: dict[str, Case] = {}
    bad: list[str] = []
    for number, line in _lines(path):
        try:
            case = _case(number, line, by)
            if case.choices and not scored:
                raise UsageError("choices are scored by log-likelihood", "freehold eval does that")
            if case.digest in cases:
                raise UsageError(f"the same as line {cases[case.digest].line}")
            cases[case.digest] = case
        except FreeholdError as e:
            bad.append(f"line {number}: {e.message}" + (f" ({e.hint})" if e.hint else ""))
    if bad:
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise UsageError(f"{path}: {'; '.join(bad[:_SHOWN])}{more}", "mend or remove these lines")
    if not cases:
        raise UsageError(f"{path} has no case", 'write one a line: {"prompt": "...", "exact": "..."}')
    whole = hashlib.sha256("".join(sorted(cases)).encode()).hexdigest()
    return Samples(path.name, tuple(cases.values()), whole)


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines that are not empty, with their numbers."""
    try:
        with path.open("rb") as file:  # devices and pipes state no size, and may have no end
            if len(raw := file.read(MOST_BYTES + 1)) > MOST_BYTES:
                size = max(len(raw), os.fstat(file.fileno()).st_size)
                raise UsageError(f"{path} has {size:,} bytes, more than {MOST_BYTES:,}", "take fewer cases")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", "name a file of JSON lines") from e
    numbered = [(i, line) for i, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if len(numbered) > MOST_CASES:
        raise UsageError(
            f"{path} has {len(numbered):,} cases, more than {MOST_CASES:,}", "take a part of them"
        )
    return numbered


def _case(number: int, line: bytes, by: str) -> Case:
    table = _parsed(line)
    for key in table:
        if key not in _KEYS:
            near = nearest(key, list(_KEYS))
            raise UsageError(
                f"unknown key {key!r}", f"did you mean {near}?" if near else f"known: {', '.join(_KEYS)}"
            )
    messages = _messages(table)
    tokens = table.get("max_tokens", USUAL_TOKENS)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= MOST_TOKENS:
        raise UsageError(f"max_tokens = {tokens!r} is not within 1..{MOST_TOKENS:,}")
    metric = table.get("metric", "")
    if metric != "" and not (isinstance(metric, str) and _METRIC.fullmatch(metric)):
        raise UsageError(f"metric = {metric!r} is not a name of up to 40 letters, digits and . _ @ -")
    choices, answer = _choices(table)
    case_judge = _judge(table, by, choices, answer)
    identity = json.dumps([[(m.role, m.content) for m in messages], case_judge.key, tokens], sort_keys=True)
    return Case(
        number,
        messages,
        case_judge,
        tokens,
        hashlib.sha256(identity.encode()).hexdigest(),
        metric=metric,
        choices=choices,
        answer=answer,
        plain=bool(choices) and "prompt" in table,
        table=table,
    )


def _judge(table: Mapping[str, Any], by: str, choices: tuple[str, ...], answer: int) -> Judge:
    kinds = [key for key in (*JUDGES, "choices") if key in table]
    if len(kinds) != 1:
        named = " and ".join(kinds) or "no judge"
        raise UsageError(f"{named}; a case has one", f"one of {', '.join((*JUDGES, 'choices'))}")
    if choices:
        return Judge("choices", json.dumps(["choices", choices, answer]), "", _unmarked)
    return judge(kinds[0], table[kinds[0]], by)


def _unmarked(answer: str) -> Mark:
    raise AssertionError("choices are scored: evaluate")  # our own invariant


def _choices(table: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return the choices and the index of the right one, which is given as an index or as its text."""
    if "choices" not in table:
        if "answer" in table:
            raise UsageError("answer is for cases with choices", f"one of {', '.join(JUDGES)}")
        return (), 0
    options, answer = table["choices"], table.get("answer")
    if (
        not isinstance(options, list)
        or not 2 <= len(options) <= MOST_CHOICES
        or len(set(map(str, options))) < len(options)
    ):
        raise UsageError(f"choices is not a list of 2 to {MOST_CHOICES} different texts")
    choices = tuple(_text(choice, "a choice") for choice in options)
    if isinstance(answer, str) and answer in choices:
        return choices, choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UsageError(f"answer = {answer!r} is neither a choice nor an index from 0 to {len(choices) - 1}")
    return choices, answer


def _parsed(line: bytes) -> Mapping[str, Any]:
    if len(line) > MOST_LINE:
        raise UsageError(f"{len(line):,} bytes are more than a case may have ({MOST_LINE:,})")
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"is not JSON: {e}"[:120]) from None
    if not isinstance(table, dict):
        raise UsageError("is not a JSON object")
    return table


def _messages(table: Mapping[str, Any]) -> tuple[Message, ...]:
    if ("prompt" in table) == ("messages" in table):
        raise UsageError("a case has either prompt or messages")
    if "prompt" in table:
        return (Message("user", _text(table["prompt"], "prompt")),)
    turns = table["messages"]
    if not isinstance(turns, list) or not turns:
        raise UsageError("messages is not a list of messages")
    messages = []
    for one in turns:
        if not isinstance(one, dict) or set(one) != {"role", "content"} or one["role"] not in _ROLES:
            raise UsageError(f"a message has role ({', '.join(_ROLES)}) and content, and nothing else")
        messages.append(Message(one["role"], _text(one["content"], "content")))
    if messages[-1].role != "user":
        raise UsageError("the last message must be the user's")
    return tuple(messages)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{what} is empty or no text")
    return value
