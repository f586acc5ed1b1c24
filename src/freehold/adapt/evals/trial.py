"""Runs a user's cases on models, the same for each, and keeps every answer, so that a run that was stopped continues.

A file of the data folder holds the answers of one model to one set of cases: evals/SAMPLES-MODEL.jsonl, named by the
digests of both, readable by its owner alone. A first line says what it is; a line that was cut short is answered
again. A model behind a server's handle is asked as a
local one is (ServedChat). Knows no ranking and prints nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from freehold.adapt.evals.samples import Case, Samples, ask
from freehold.base.errors import ContextOverflow, StoreError
from freehold.base.serving import Job, ModelHandle, Stream
from freehold.base.types import (
    ChatModel,
    Chunk,
    FormatLike,
    Message,
    OnPrefill,
    Overflow,
    SamplingParams,
    as_format,
)

if TYPE_CHECKING:
    import asyncio

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
    return [TrialResult(s, tuple(answer for _, answer in _pairs(samples, s, home))) for s in chosen]


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
            case.messages, max_tokens=case.max_tokens, sampling=SamplingParams(temperature=0.0, seed=0)
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


# --- a file of JSON lines that grows by one line at a time, so that a run that was stopped continues
# Each line is on its way to the disk when `write` returns: Ctrl-C and a kill lose none, and one that was cut
# short counts as not there. The file is readable by its owner alone.

MOST_KEPT = 64 << 20  # bytes of one file of answers
Write = Callable[[Mapping[str, Any]], None]


class AppendedLines:
    """Append rows to a file; a new file gets `head` as its first row."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path, self._head = path, head

    def __enter__(self) -> Write:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(opened, "a+b", buffering=0)
            size = self._file.seek(0, os.SEEK_END)
            if not size:
                self._write(self._head)
            else:
                self._file.seek(size - 1)
                if self._file.read(1) != b"\n":  # the line before was cut short
                    self._file.write(b"\n")
        except OSError as e:
            raise StoreError(f"{self._path} cannot be written: {e.strerror}", "free some space") from e
        return self._write

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        line = memoryview((json.dumps(row, ensure_ascii=True) + "\n").encode())
        try:
            while line:  # a disk that fills takes a part and raises at the next
                line = line[self._file.write(line) or 0 :]
        except OSError as e:
            raise StoreError(f"{self._path} cannot be written: {e.strerror}", "free some space") from e


def kept_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, none where there is no file; damaged lines are left out.

    Raises StoreError for a file that cannot be read or has grown too large.
    """
    try:
        if path.stat().st_size > MOST_KEPT:
            raise StoreError(f"{path} is over {MOST_KEPT:,} bytes", "delete it; the cases are answered again")
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}", "check its permissions") from e
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


# --- a ModelHandle as a ChatModel -------------------------------------------------------------------
# Cases are asked of whatever a server's directory offers, routes and rented models too.
# The handle lives in an event loop of another thread; a caller waits for each chunk.

_T = TypeVar("_T")


class ServedChat:
    """One model, asked through its handle."""

    def __init__(self, handle: ModelHandle, loop: asyncio.AbstractEventLoop) -> None:
        self._handle, self._loop = handle, loop
        self.warnings: dict[str, None] = {}  # what a provider could not do of what was asked, each once

    @property
    def name(self) -> str:
        return self._handle.name

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Answer `messages`; of `sampling` temperature and seed go with the request."""
        settings = {} if sampling is None else {"temperature": sampling.temperature, "seed": sampling.seed}
        job = Job(
            messages=tuple(messages),
            max_tokens=max_tokens,
            sampling={name: value for name, value in settings.items() if value is not None},
            stop=tuple(stop),
            logprobs=logprobs,
            think=think,
            overflow=overflow,
            format=as_format(format),
        )
        answer = self._wait(self._handle.start(job))
        self.warnings.update(dict.fromkeys(answer.begin.warnings))
        try:
            while (chunk := self._wait(_next(answer))) is not None:
                yield chunk
        finally:
            self._wait(answer.aclose())

    def check_think(self, think: bool | None) -> None:
        """Leave it to the model: `stream` raises where it has no such switch."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many prompt tokens a chat has."""
        return self._wait(self._handle.count(Job(messages=tuple(messages))))

    def close(self) -> None:
        """Do nothing: the directory unloads its models."""

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        import asyncio

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(stream: Stream) -> Chunk | None:
    try:
        return (await stream.__anext__())[1]
    except StopAsyncIteration:
        return None
