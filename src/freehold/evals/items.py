"""What an evaluation is made of: tasks of items, each a question, a target and a way to mark the reply.

Plain data, and marking as a function of the reply alone. Knows no model and no file.
Path: tasks.open_task -> EvalTask -> evaluate -> TaskResult -> results
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.serving import Job
from freehold.types import Message, Tool

Metric = float | tuple[float, ...]  # of one item; several numbers count one by one


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """What a model is asked: a chat, or `text` to continue as it is; with `choices` these are scored, none written."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Tool, ...] = ()
    choices: tuple[str, ...] = ()
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def job(self, adapter: str) -> Job:
        """Return the greedy request."""
        return Job(
            messages=self.messages or None,
            prompt=None if self.messages else self.text,
            tools=self.tools,
            max_tokens=self.max_tokens,
            stop=self.stop,
            sampling={"temperature": 0.0, "seed": 0},
            adapter=adapter,
        )

    @property
    def prompt(self) -> str:
        """The prompt as results name it: the text itself, or the messages as JSON."""
        if not self.messages:
            return self.text
        return json.dumps([{"role": m.role, "content": m.content} for m in self.messages])


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered: text and calls (name, arguments as JSON), or the log-probability of each choice.

    `error`: why there is no answer; such a reply is marked wrong.
    """

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    sums: tuple[float, ...] = ()
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ItemMark:
    """An item's metrics, and in a few words why it is wrong. `fault`: a verifier's own failure, counted apart."""

    metrics: Mapping[str, Metric]
    why: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One item. `mark_key` names how it is marked: equal keys give equal marks of equal replies."""

    doc: Mapping[str, Any]
    question: EvalQuestion
    target: str
    mark: Callable[[ModelReply], ItemMark]
    mark_key: str
    runs_code: bool = False  # marked in a process of its own, beside the answers to come
    rubric: str = ""  # for a model that judges; `mark` is not called

    @property
    def doc_hash(self) -> str:
        """The item's identity, as lm-eval computes it."""
        return digest(json.dumps(self.doc, indent=2, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class EvalTask:
    """Items that are counted together. `metrics`: the first is the task's main one, which runs are compared by."""

    name: str
    items: tuple[EvalItem, ...]
    metrics: tuple[str, ...]
    version: float = 1.0
    filter: str = "none"  # lm-eval's word for what was done to answers before they were marked
    original: int = 0  # items before --limit
    config: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None  # ends what marking started; marking again starts it again


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
