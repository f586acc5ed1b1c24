"""Joins a question in words with the options beside it, and notes where the two differ.

An option overrides the same condition in words; where they differ, a note says so. Knows no model.
Path: choosing.advise -> join -> Conditions -> AdviceRequest, Advice.asked
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from freehold.catalog.questions import Clause, Question, results_in
from freehold.catalog.schema import known
from freehold.catalog.tasks import Task
from freehold.errors import UsageError

_Value = TypeVar("_Value")
MOST_USERS = 4096  # at a time; no published row is of more
_VOTES = "arena"  # the board whose votes are also counted by the prompt's language, on one scale
SHOWN = ("beside", "matter", "note")  # parts that an answer names apart from what it rests on


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions an answer is based on. Empty and zero: neither the question nor an option gives them."""

    question: Question
    task: Task
    languages: tuple[str, ...] = ()  # ISO 639-1 codes but English, and "mul"
    reads: tuple[str, ...] = ()  # modalities that a model must read
    on: str = ""
    users: int = 1
    context: int = 0
    max_params: float = 0.0
    budget: float | None = None
    country_not: tuple[str, ...] = ()
    cheapest: bool = False
    purpose: str = ""
    notes: tuple[str, ...] = ()

    @property
    def understood(self) -> tuple[Clause, ...]:
        """The parts of the question that the answer rests on."""
        return tuple(p for p in self.question.parts if p.what not in SHOWN)


def join(
    question: Question,
    *,
    on: str = "",
    users: int | None = None,
    context: int = 0,
    max_params: float = 0.0,
    budget: float | None = None,
    country_not: Sequence[str] = (),
    languages: Sequence[str] = (),
    cheapest: bool = False,
) -> Conditions:
    """Join a question with options. Raises UsageError where no task is named, and for invalid values."""
    asked_in = _languages(question, languages)
    task = _in_language(question.task, asked_in)  # raises
    notes = [f"{u.name} beside it: {u.says}" for u in question.unanswered]
    notes += [f"{p.words}: {p.says}" for p in question.parts if p.what in ("note", "beside")]
    if users is not None and not 1 <= users <= MOST_USERS:
        raise UsageError(f"{users:,} users at a time are not within 1..{MOST_USERS:,}")
    said_users = min(question.users, MOST_USERS)
    if question.users > MOST_USERS:
        notes.append(f"{question.users:,} users: answered for {MOST_USERS:,} at a time, the most")
    conditions = Conditions(
        question,
        task,
        languages=asked_in,
        reads=tuple(u.reads for u in question.unanswered if u.reads),
        on=_one("hardware", on, "" if budget is not None else question.hardware, notes),
        users=int(_one("users", users or 0, said_users, notes)) or 1,
        context=int(_one("context", context, question.context, notes)),
        max_params=_one("size", max_params, question.max_params, notes),
        budget=_one("budget", budget, question.budget or None, notes),
        country_not=tuple(dict.fromkeys((*country_not, *question.country_not))),
        cheapest=cheapest or question.cheapest,
        purpose="commercial" if question.commercial else "",
    )
    return _with_notes(conditions, notes, budget)


def _with_notes(conditions: Conditions, notes: list[str], budget: float | None) -> Conditions:
    question = conditions.question
    if budget is not None and question.hardware:
        notes.append(f"the question says {question.hardware}, --budget says rented hardware: --budget counts")
    if question.private and (conditions.budget is not None):
        notes.append("private: rented hardware is another's; leave the budget out to stay on your own")
    if question.model:
        notes.append(f"{question.model}: freehold why {question.model} answers for this one model")
    return replace(conditions, notes=tuple(notes))


def _in_language(task: Task, codes: Sequence[str]) -> Task:
    """Return a task whose scale is votes with the board in the one language asked for, where there is one."""
    boards = [b for b in results_in(codes[0]) if b.startswith(f"{_VOTES}_")] if len(codes) == 1 else []
    if task.benchmarks[:1] != (_VOTES,) or not boards:
        return task
    return replace(task, benchmarks=(boards[0], *task.benchmarks))


def _languages(question: Question, codes: Sequence[str]) -> tuple[str, ...]:
    """Return the languages asked for but English, which every benchmark is in."""
    for code in codes:
        if not known(code.lower()):
            raise UsageError(
                f"{code!r} is not a language code of ISO 639", "two letters: de, fr, ja; mul: many languages"
            )
    wanted = (*(c.lower() for c in codes), *question.languages)
    return tuple(code for code in dict.fromkeys(wanted) if code != "en")


def _one(what: str, option: _Value, in_question: _Value, notes: list[str]) -> _Value:
    """Return the option where it is given, else what the question says; note where both are and differ."""
    if option and in_question and option != in_question:
        notes.append(f"the question says {what} {in_question}, the option says {option}: the option counts")
    return option or in_question
