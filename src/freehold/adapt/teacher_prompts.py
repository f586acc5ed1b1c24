"""The prompts that a teacher answers, and what it sees of them that its student does not.

Knows files, conversations and judges; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.evals.samples import JUDGES, Judge, check_keys, judge
from freehold.adapt.lines import DataLines, conversation, conversation_key, messages_of, read_lines, text_of
from freehold.adapt.run import text_digest
from freehold.base.errors import UsageError
from freehold.base.regular import read_bounded
from freehold.base.types import Message

# --- prompts ----------------------------------------------------------------------------------------
# One a line, with a judge of the answer where the line has one.
#     {"prompt": "Convert 3 km to metres as JSON."}
#     {"messages": [{"role": "system", ...}, {"role": "user", ...}], "regex": "^\\d+ m$"}
#     {"prompt": "Write is_even(n) in Python.", "tests": ["assert is_even(4)"]}
#     {"prompt": "Is this spam? ...", "teacher_messages": [{"role": "system", ...}, {"role": "user", ...}]}
# Judges are those of evals/samples.py, except the one that is a model.

_CHECKS = tuple(kind for kind in JUDGES if kind != "judge")
_KEYS = ("prompt", "messages", "teacher_messages", *_CHECKS)
_EXAMPLE = '{"prompt": "..."}'


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """What is asked. `check`: judges an answer; None where the line has none. `shown`: the teacher's own messages."""

    line: int
    messages: tuple[Message, ...]
    check: Judge | None = None
    shown: tuple[Message, ...] = ()  # in place of `messages` and of the run's context

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
    shown = messages_of(table["teacher_messages"], last="user") if "teacher_messages" in table else ()
    question = conversation({key: value for key, value in table.items() if key != "teacher_messages"})
    return TeacherPrompt(number, question, check, shown)


def judged_prompts(questions: Sequence[TeacherPrompt]) -> list[TeacherPrompt]:
    """Return those that have a judge."""
    return [q for q in questions if q.check is not None]


# --- what a teacher sees and its student does not ---------------------------------------------------
# Source: arXiv 2112.00861 (context distillation). Examples are turns of the chat, as a user would show them:
#     {"prompt": "Three chairs, Monday, 2 p.m.", "completion": "MO14:chair*3"}
#     {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}

MOST_SYSTEM = 1 << 18  # bytes of instructions
MOST_SHOTS = 256  # examples
_SHOT = '{"prompt": "...", "completion": "..."}'


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """Instructions and solved examples that a teacher sees before each prompt."""

    system: str = ""
    shots: tuple[Message, ...] = ()

    @classmethod
    def read(cls, system: Path | None, shots: Path | None) -> TeacherContext:
        """Read both files. Raises UsageError for what cannot be read, is empty or too long, naming every bad line."""
        text = _instructions(system) if system else ""
        examples = read_lines(shots, _shot, _SHOT).items if shots else ()
        if len(examples) > MOST_SHOTS:
            raise UsageError(
                f"{shots} has {len(examples):,} examples; the limit is {MOST_SHOTS}", "keep the best ones"
            )
        return cls(text, tuple(message for example in examples for message in example))

    def __bool__(self) -> bool:
        return bool(self.system or self.shots)

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a run's inputs say of it."""
        shots = conversation_key(self.shots) if self.shots else ""
        return {"system": text_digest(self.system), "shots": text_digest(shots)} if self else {}

    def before(self, prompt: TeacherPrompt) -> tuple[Message, ...]:
        """Return what the teacher sees of a prompt. Its own system text follows the run's instructions."""
        if prompt.shown:
            return prompt.shown
        first, *rest = prompt.messages
        own, chat = (first.content, rest) if first.role == "system" else ("", prompt.messages)
        system = "\n\n".join(text for text in (self.system, own) if text)
        return (*([Message("system", system)] if system else ()), *self.shots, *chat)


def _instructions(path: Path) -> str:
    try:
        text = read_bounded(path, MOST_SYSTEM).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: {why}", f"name a text file of at most {MOST_SYSTEM:,} bytes") from e
    if not text:
        raise UsageError(f"{path} is empty", "write the teacher's instructions into it")
    return text


def _shot(number: int, table: Mapping[str, Any]) -> tuple[Message, ...]:
    check_keys(table, ("prompt", "completion", "messages"))
    if "messages" in table:
        messages = messages_of(table["messages"], last="assistant")
        if len(table) > 1 or messages[0].role != "user":
            raise UsageError(
                "an example is a prompt and a completion, or messages that begin with the user's"
            )
        return messages
    return Message("user", text_of(table, "prompt")), Message("assistant", text_of(table, "completion"))
