"""Runs a user's cases on models, the same for each, and keeps every answer, so that a run that was stopped continues.

A file of the data folder holds the answers of one model to one set of cases: evals/SAMPLES-MODEL.jsonl, named by the
digests of both, readable by its owner alone. A first line says what it is; a line that was cut short is answered
again. Knows no ranking and prints nothing.
Path: cli/report/trying, cli/bar -> run -> TrialResult; cli/why -> kept
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freehold.errors import ContextOverflow
from freehold.evals.judges import ask
from freehold.evals.kept_lines import AppendedLines, kept_rows
from freehold.evals.samples import Case, Samples
from freehold.types import ChatModel, SamplingParams

FOLDER = "evals"
_CHARS = 32_768  # of an answer that are kept
_DIGITS = 16  # of a digest in a file's name

OnCase = Callable[[str, int, int], None]  # model, answered, in all
Open = Callable[[str], ChatModel]


@dataclass(frozen=True, slots=True)
class TrialModel:
    """A model to try: its name, and the digest of its file."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One case's answer and its mark. `passed` None: a model has still to judge it."""

    case: str
    text: str
    passed: bool | None
    why: str = ""
    seconds: float = 0.0
    tokens: int = 0
    score: float | None = None  # 0 to 1, of a graded judge; None: as `passed`


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A model's marks, in the order of the cases."""

    subject: TrialModel
    answers: tuple[Answer, ...]

    @property
    def marks(self) -> tuple[bool, ...]:
        """Whether each case passed."""
        return tuple(bool(a.passed) for a in self.answers)

    @property
    def scores(self) -> tuple[float, ...]:
        """Each case's score, 0 to 1."""
        return tuple(float(bool(a.passed)) if a.score is None else a.score for a in self.answers)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one model and one set of cases: how many of `cases` were answered, and passed."""

    samples: str  # the file's name
    digest: str  # of the cases
    model: str
    cases: int
    answered: int
    passed: int
    at: str


def run(
    samples: Samples,
    subjects: Iterable[TrialModel],
    home: Path,
    open_model: Open,
    *,
    judge: str = "",
    on_case: OnCase = lambda model, done, total: None,
) -> list[TrialResult]:
    """Answer every case with every model, greedily, and mark the answers; what is kept is not answered again.

    One model is open at a time. `judge` names the model that judges rubrics, after all answers are there.
    Raises what a model raises; all answers until then are kept.
    """
    chosen = list(subjects)
    for subject in chosen:
        _answer(samples, subject, home, open_model, on_case)
    if judge and samples.needs_judge:
        _judge(samples, chosen, home, open_model, judge)
    return [_result(samples, subject, home) for subject in chosen]


def kept(home: Path, digest: str) -> list[Kept]:
    """Return what is kept of a model's file, newest first."""
    trials = []
    for path in sorted((home / FOLDER).glob(f"*-{digest[:_DIGITS]}.jsonl")):
        head, answers = _read(path)
        if head.get("model_digest") == digest:
            trials.append(
                Kept(
                    samples=str(head.get("samples", "")),
                    digest=str(head.get("samples_digest", "")),
                    model=str(head.get("model", "")),
                    cases=int(head.get("cases", 0)),
                    answered=sum(a.passed is not None for a in answers.values()),
                    passed=sum(a.passed is True for a in answers.values()),
                    at=str(head.get("at", "")),
                )
            )
    return sorted(trials, key=lambda k: k.at, reverse=True)


def _answer(samples: Samples, subject: TrialModel, home: Path, open_model: Open, on_case: OnCase) -> None:
    path = _path(home, samples, subject)
    _, answers = _read(path)
    missing = [c for c in samples.cases if c.digest not in answers]
    done, total = len(samples.cases) - len(missing), len(samples.cases)
    on_case(subject.name, done, total)
    if not missing:
        return
    with closing(open_model(subject.name)) as model, _appending(path, samples, subject) as write:
        for number, case in enumerate(missing, done + 1):
            write(asdict(_answered(model, case)))
            on_case(subject.name, number, total)


def _answered(model: ChatModel, case: Case) -> Answer:
    started, tokens, parts = time.monotonic(), 0, []
    try:
        for chunk in model.stream(
            case.messages,
            max_tokens=case.max_tokens,
            sampling=SamplingParams(temperature=0.0, seed=0),
        ):
            parts.append(chunk.text)
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    except ContextOverflow as e:
        return Answer(case.digest, "", False, e.message)
    text, took = "".join(parts), round(time.monotonic() - started, 3)
    if case.judge.kind == "judge":
        return Answer(case.digest, text[:_CHARS], None, "", took, tokens)
    mark = case.judge.mark(text)
    return Answer(case.digest, text[:_CHARS], mark.passed, mark.why, took, tokens, mark.score)


def _judge(samples: Samples, subjects: list[TrialModel], home: Path, open_model: Open, judge: str) -> None:
    waiting = {s: [c for c, a in _pairs(samples, s, home) if a.passed is None] for s in subjects}
    if not any(waiting.values()):
        return
    with closing(open_model(judge)) as model:
        for subject, cases in waiting.items():
            path = _path(home, samples, subject)
            _, answers = _read(path)
            with _appending(path, samples, subject) as write:
                for case in cases:
                    old = answers[case.digest]
                    mark = ask(model, case.judge.rubric, case.messages, old.text)
                    answer = Answer(old.case, old.text, mark.passed, mark.why, old.seconds, old.tokens)
                    write(asdict(answer))


def _pairs(samples: Samples, subject: TrialModel, home: Path) -> Iterator[tuple[Case, Answer]]:
    _, answers = _read(_path(home, samples, subject))
    for case in samples.cases:
        yield case, answers.get(case.digest, Answer(case.digest, "", False, "not answered"))


def _result(samples: Samples, subject: TrialModel, home: Path) -> TrialResult:
    return TrialResult(subject, tuple(answer for _, answer in _pairs(samples, subject, home)))


# --- files ------------------------------------------------------------------------------------------


def _path(home: Path, samples: Samples, subject: TrialModel) -> Path:
    return home / FOLDER / f"{samples.digest[:_DIGITS]}-{subject.digest[:_DIGITS]}.jsonl"


def _appending(path: Path, samples: Samples, subject: TrialModel) -> AppendedLines:
    head = {
        "samples": samples.name,
        "samples_digest": samples.digest,
        "model": subject.name,
        "model_digest": subject.digest,
        "cases": len(samples.cases),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return AppendedLines(path, head)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Answer]]:
    """Return a file's first line and the newest answer to each case; damaged lines count as not there."""
    head: dict[str, Any] = {}
    answers: dict[str, Answer] = {}
    for row in kept_rows(path):
        if "samples_digest" in row:
            head = row
        elif (answer := _sound(row)) is not None:
            answers[answer.case] = answer
    return head, answers


def _sound(row: Mapping[str, Any]) -> Answer | None:
    try:
        answer = Answer(**row)
    except TypeError:
        return None
    sound = isinstance(answer.case, str) and answer.passed in (True, False, None)
    graded = answer.score is None or (isinstance(answer.score, float | int) and 0 <= answer.score <= 1)
    return answer if sound and graded else None
