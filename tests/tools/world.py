"""Servers of tools of these tests, and a desk that answers as it was set up to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from freehold.base.types import ToolCall
from freehold.serve.chats.types import ToolAnswer, ToolQuestion, ToolStep
from freehold.serve.tools.mcp.use import ToolServers

HOSTILE = Path(__file__).parent / "hostile.py"
CALL = ToolCall("c1", "echo", '{"text": "hi"}')


def program(*words: str) -> dict[str, Any]:
    """Return a server's table: the hostile program, misbehaving as the words say."""
    return {"command": [sys.executable, str(HOSTILE), *words]}


class Desk:
    """Answers questions with `answers` in turn, the last one again and again, and notes what it saw."""

    def __init__(self, *answers: str | ToolAnswer) -> None:
        self._answers = [a if isinstance(a, ToolAnswer) else ToolAnswer(verdict=a) for a in answers]  # type: ignore[arg-type]
        self.asked: list[ToolQuestion] = []
        self.steps: list[ToolStep] = []

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        self.asked.append(question)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def say(self, step: ToolStep) -> None:
        self.steps.append(step)

    @property
    def states(self) -> list[str]:
        return [step.state for step in self.steps]


@contextmanager
def below() -> Iterator[list[psutil.Process]]:
    """Yield the list of processes that started below this one, filled at the end with those that still run."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    left: list[psutil.Process] = []
    yield left
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.pid not in before and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)


def pool(home: Path, **tables: dict[str, Any]) -> ToolServers:
    """Return servers that are configured as `tables` say."""
    return ToolServers(lambda: tables, home)
