"""Test items of the user's: asked of the model before and after, and looked for in what it was taught.

    {"prompt": "...", "completion": "..."}        right is exactly the completion; `messages` as in the examples
    {"prompt": "...", "contains": "..."}          or another judge of `freehold eval`

Knows texts and judges; knows no weights.
Path: finetune -> read_exam -> Exam.marks, contaminated -> before_after
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.adapt.lines import check_keys, conversation, messages_of, read_lines, text_of
from freehold.errors import ContextOverflow, UsageError
from freehold.evals.contamination import overlaps
from freehold.evals.judges import JUDGES, Judge, judge
from freehold.evals.paired import compared
from freehold.serving import Job
from freehold.types import Message

if TYPE_CHECKING:
    from freehold.local import LLM

_CHECKS = tuple(kind for kind in JUDGES if kind != "judge")
_KEYS = ("prompt", "messages", "completion", *_CHECKS)
_EXAMPLE = '{"prompt": "...", "completion": "..."}'


@dataclass(frozen=True, slots=True)
class ExamItem:
    """What is asked, and what marks the answer."""

    line: int
    messages: tuple[Message, ...]
    check: Judge


@dataclass(frozen=True, slots=True)
class Exam:
    """A file of test items."""

    items: tuple[ExamItem, ...]
    digest: str

    def marks(self, model: LLM, adapter: str, most: int) -> list[bool]:
        """Ask all items of the engine that serves, greedily, answers of up to `most` tokens; return which are right.

        Raises UsageError for an item that leaves no room for an answer: before and after it would be wrong alike.
        """
        greedy = {"temperature": 0.0, "seed": 0}
        jobs = [
            Job(messages=item.messages, max_tokens=most, sampling=greedy, adapter=adapter)
            for item in self.items
        ]
        right = [False] * len(jobs)
        for i, answer in model.answer_many(jobs):
            if isinstance(answer, ContextOverflow):
                raise UsageError(
                    f"test item of line {self.items[i].line}: {answer.message}",
                    "shorten it, or raise --max-length",
                )
            right[i] = self.items[i].check.mark(answer.text).passed
        return right

    def contaminated(self, taught: Iterable[str]) -> list[int]:
        """Return the items whose question the taught texts hold: equal, or 13 words in a row."""
        questions = [item.messages[-1].content for item in self.items]
        return [overlap.test for overlap in overlaps(taught, questions)]


def read_exam(path: Path) -> Exam:
    """Read a file of test items. Raises UsageError naming every bad line."""
    lines = read_lines(path, _item, _EXAMPLE)
    return Exam(lines.items, lines.digest)


def before_after(
    before: Sequence[bool], after: Sequence[bool], contaminated: Sequence[int]
) -> dict[str, Any]:
    """Compare marks item by item: of all, and of those that were not taught."""
    clean = [i for i in range(len(before)) if i not in set(contaminated)]
    report: dict[str, Any] = {"contaminated": list(contaminated), "all": _compared(before, after)}
    if contaminated and clean:
        report["clean"] = _compared([before[i] for i in clean], [after[i] for i in clean])
    return report


def _compared(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    pairs = compared(after, before)
    return {
        "items": len(before),
        "before": sum(before),
        "after": sum(after),
        "gained": pairs.wins,
        "lost": pairs.losses,
        "p": pairs.p,
    }


def _item(number: int, table: Mapping[str, Any]) -> ExamItem:
    check_keys(table, _KEYS)
    kinds = [kind for kind in _CHECKS if kind in table]
    if len(kinds) + ("completion" in table) > 1:
        raise UsageError("a line has one completion or one judge")
    if kinds:
        return ExamItem(number, conversation(table), judge(kinds[0], table[kinds[0]]))
    if "completion" in table:
        question = conversation({k: v for k, v in table.items() if k != "completion"})
        return ExamItem(number, question, judge("exact", text_of(table, "completion")))
    messages = messages_of(table.get("messages"), last="assistant")
    if len(messages) < 2:
        raise UsageError("a line has a question and the answer to it")
    return ExamItem(number, messages[:-1], judge("exact", messages[-1].content))
