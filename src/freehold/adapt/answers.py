"""A teacher's answers: sampled in batches, judged, and kept in a file, so that an interrupted run asks none twice.

The first try is greedy; a rejected answer is tried again, sampled. Rejected are answers that are empty, cut at the
limit, repeat a piece many times, or fail their line's judge: a student would learn those as well. Each answer follows
from its prompt and its seed alone, so a continued run keeps the same ones.
Knows questions and a model that samples; knows no student.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.evals.samples import JUDGES, Judge, check_keys, judge
from freehold.adapt.lines import DataLines, conversation, conversation_key, read_lines
from freehold.adapt.run import on_disk
from freehold.adapt.sampling import GREEDY, SampledAnswer, SamplingModel
from freehold.base.errors import StoreError, UsageError
from freehold.base.types import Message, SamplingParams
from freehold.run.tokenizer import Tokenizer

BATCH = 32  # questions whose answers are computed together and reach the disk together
RETRY = SamplingParams(temperature=0.7, top_p=0.95)
LONGEST_PIECE = 16  # tokens of a piece whose repetition is looked for
LEAST_RUN = 48  # tokens that repeat it: a table's rules and a row of zeros are shorter


@dataclass(frozen=True, slots=True)
class Taught:
    """An answer to the question on `line`, or `why` there is none: its last try's fault. `tokens`: of all tries."""

    line: int
    answer: str
    why: str
    tries: int
    tokens: int

    @property
    def fault(self) -> str:
        """The kind of fault, without its details."""
        return self.why.partition(":")[0]


class AnswerBook:
    """The answers of one run, in a file of JSON lines. A last line that a kill left half written is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held: dict[int, Taught] = {}
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        try:
            for line in whole.splitlines():
                taught = Taught(**json.loads(line))
                self.held[taught.line] = taught
        except (ValueError, TypeError) as e:
            raise StoreError(f"{path} is damaged: {e}", "start anew with --fresh") from e

    def ask(
        self,
        teacher: SamplingModel,
        questions: Sequence[TeacherPrompt],
        *,
        seed: int,
        max_tokens: int,
        tries: int = 1,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Taught]:
        """Have every question answered that was not yet; return all answers in the order of the questions.

        `on_batch`: called with the number of questions answered so far.
        """
        left = [q for q in questions if q.line not in self.held]
        for first in range(0, len(left), BATCH):
            batch = left[first : first + BATCH]
            self._add(self._answered(teacher, batch, seed, max_tokens, tries))
            on_batch(len(questions) - len(left) + first + len(batch))
        return [self.held[q.line] for q in questions]

    def _answered(
        self, teacher: SamplingModel, batch: Sequence[TeacherPrompt], seed: int, max_tokens: int, tries: int
    ) -> list[Taught]:
        taught: dict[int, Taught] = {}
        spent: Counter[int] = Counter()
        prompts = {q.line: teacher.render(q.messages) for q in batch}
        waiting: list[TeacherPrompt] = []
        for question in batch:
            if len(prompts[question.line]) < teacher.context:
                waiting.append(question)
            else:
                why = f"long: {len(prompts[question.line]):,} tokens of a prompt"
                taught[question.line] = Taught(question.line, "", why, 0, 0)
        for attempt in range(1, tries + 1):
            samples = teacher.sample(
                [prompts[q.line] for q in waiting],
                seeds=[seed_of(seed, q.line, attempt) for q in waiting],
                max_tokens=max_tokens,
                sampling=GREEDY if attempt == 1 else RETRY,
            )
            for question, [answer] in zip(waiting, samples, strict=True):
                spent[question.line] += len(answer.ids)
                taught[question.line] = judged(
                    question, answer, teacher.tokenizer, attempt, spent[question.line]
                )
            waiting = [q for q in waiting if taught[q.line].why]
        return [taught[q.line] for q in batch]

    def _add(self, answers: Sequence[Taught]) -> None:
        """Write a batch to disk, then count its answers. Raises StoreError on a full disk."""
        with on_disk(self._path), self._path.open("ab") as file:
            file.write("".join(json.dumps(asdict(each)) + "\n" for each in answers).encode())
            file.flush()
            os.fsync(file.fileno())
        self.held |= {each.line: each for each in answers}


def judged(
    question: TeacherPrompt, answer: SampledAnswer, tokenizer: Tokenizer, tries: int, tokens: int
) -> Taught:
    """Return an answer with its fault, if it has one."""
    text = tokenizer.decode(answer.ids).strip()
    why = _fault(question, answer, text)
    return Taught(question.line, "" if why else text, why, tries, tokens)


def loops(ids: Sequence[int]) -> bool:
    """Tell whether a piece of up to 16 tokens follows itself over 48 tokens or more, three times at least."""
    tokens = np.asarray(ids, np.int64)
    for piece in range(1, LONGEST_PIECE + 1):
        same = tokens[piece:] == tokens[:-piece]
        ends = np.flatnonzero(np.concatenate([[True], ~same, [True]]))  # between two of them all are the same
        if len(same) and np.diff(ends).max() - 1 >= max(LEAST_RUN - piece, 2 * piece):
            return True
    return False


def seed_of(seed: int, line: int, attempt: int) -> int:
    """Return the seed of a try, from its question's line and nothing else."""
    return int(np.random.SeedSequence((seed, line, attempt)).generate_state(1, np.uint64)[0] >> 1)


def _fault(question: TeacherPrompt, answer: SampledAnswer, text: str) -> str:
    """Say what is wrong with an answer, in a few words that begin with the kind; nothing where it is good."""
    if not text:
        return "empty"
    if loops(answer.ids):
        return "loops"
    if answer.finish_reason == "length":
        return f"cut: at {len(answer.ids)} tokens"
    if question.check is not None and not (mark := question.check.mark(text)).passed:
        return f"{question.check.kind}: {mark.why}"
    return ""


# --- the prompts that a teacher answers -------------------------------------------------------------
# One a line, with a judge of the answer where the line has one.
#     {"prompt": "Convert 3 km to metres as JSON."}
#     {"messages": [{"role": "system", ...}, {"role": "user", ...}], "regex": "^\\d+ m$"}
#     {"prompt": "Write is_even(n) in Python.", "tests": ["assert is_even(4)"]}
# Judges are those of evals/samples.py, except the one that is a model.

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
        return conversation_key(self.messages)


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
