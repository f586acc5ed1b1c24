"""Questions of a run that wait for a person, and their answers.

Knows ids and futures; knows no route and no tool. Path: RunTools.use -> Questions.ask; approve's handler -> answer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from freehold.tools.mcp.contract import ToolAnswer, ToolQuestion

NO_ANSWER = "Nobody answered within {minutes:.0f} minutes."


class Questions:
    """The open questions of one run. `publish` shows one to whoever looks."""

    def __init__(self, publish: Callable[[ToolQuestion], None]) -> None:
        self._publish = publish
        self._open: dict[str, tuple[ToolQuestion, asyncio.Future[ToolAnswer]]] = {}

    @property
    def open(self) -> list[ToolQuestion]:
        """Those without an answer, for a page that comes later."""
        return [question for question, _ in self._open.values()]

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        """Show a question and wait; no answer until its time is a denial."""
        waiting: asyncio.Future[ToolAnswer] = asyncio.get_running_loop().create_future()
        self._open[question.call] = question, waiting
        began = time.time()
        try:
            self._publish(question)
            async with asyncio.timeout(max(question.until - began, 0)):
                return await waiting
        except TimeoutError:
            return ToolAnswer("deny", NO_ANSWER.format(minutes=(question.until - began) / 60))
        finally:
            del self._open[question.call]

    def answer(self, call: str, answer: ToolAnswer) -> bool:
        """Answer an open question; False if there is none of this call, or it has an answer."""
        _, waiting = self._open.get(call, (None, None))
        if waiting is None or waiting.done():
            return False
        waiting.set_result(answer)
        return True
