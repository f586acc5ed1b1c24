"""A run that answers in a chat: rounds of an answer and the tools that it calls, each written as it grows.

Knows a plan, a chat's lines and the contract of tools (chats/tools.py); the model is read by Computing, as for
every request.
Path: start -> ChatRun.compute -> Computing.run -> RunAnswer -> EventLog, RunSaver
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.chats.folder import ChatFolder
from freehold.chats.tools import ASK_S, MAX_ROUNDS, ToolAnswer, ToolQuestion, ToolResult, ToolRunner, ToolStep
from freehold.chats.types import AskedTool, ChatFinish, SavedMessage
from freehold.chats.writer import ChatWriter
from freehold.errors import FreeholdError
from freehold.server.console.runs.answer import RunAnswer
from freehold.server.console.runs.bits import without_ids
from freehold.server.console.runs.jobs import RunPlan
from freehold.server.console.runs.run import ConsoleRun
from freehold.server.console.runs.saver import RunSaver
from freehold.server.console.runs.titles import TitleRun, titling
from freehold.server.core.call import HttpCall
from freehold.server.core.computing import Computing
from freehold.server.core.problems import Refused
from freehold.types import Message, Tool, ToolCall

UNFINISHED = "The answer was stopped before this call had a result."


class ChatRun(ConsoleRun):
    """A run whose answers are `answer` and, after rounds of tools, further ones below it. It is a ToolDesk."""

    def __init__(
        self,
        origin: HttpCall,
        folder: ChatFolder,
        chat: str,
        plan: RunPlan,
        writer: ChatWriter,
        answer: SavedMessage,
        tools: ToolRunner | None,
        identity: asyncio.Task[dict[str, Any]],
    ) -> None:
        """`answer`: the open one in the chat; `identity`: what bits need to know of the model."""
        super().__init__(origin, folder, chat, plan.model)
        self._plan, self._tools, self._identity = plan, tools, identity
        self._saver = RunSaver(writer, self._disk)
        self._answer = RunAnswer(self, answer.id, self._saver, begun=plan.extends)
        self._parent = answer.parent
        self._computing: Computing | None = None  # of the answer in progress
        self._titling: TitleRun | None = None
        self._offering = False  # its servers of tools are being started
        self._asked: dict[str, tuple[asyncio.Future[ToolAnswer], str]] = {}  # with the tool's digest

    @property
    def settled(self) -> bool:
        return not self.running and self._saver.saved

    @property
    def asking(self) -> bool:
        return bool(self._asked)

    async def compute(self) -> None:
        self._begin()
        tools = await self._offered()
        for _ in range(MAX_ROUNDS):
            await self._round(tools)
            calls = self._answer.calls
            if not calls or self._tools is None:
                return
            receipt = await self._answered("tool_calls")
            facts = {"answer": self._answer.id, "calls": self._asked_tools(), "receipt": without_ids(receipt)}
            self.events.fact("calls", facts)
            await self._use(calls, self._tools)
        raise Refused(
            400, f"this answer called tools in {MAX_ROUNDS} rounds, the limit", code="too_many_calls"
        )

    async def _offered(self) -> Sequence[Tool]:
        if self._tools is None:
            return ()
        self._offering = True
        try:
            return await self._tools.offer()
        finally:
            self._offering = False

    def prefill(self) -> tuple[int, int] | None:
        return self._computing.prefill if self._computing else None

    def why(self) -> dict[str, Any] | None:
        return {"why": "tools"} if self._offering else super().why()

    def _begin(self) -> None:
        begin = {"run": self.id, "chat": self.chat, "answer": self._answer.id, "parent": self._parent}
        self.events.answer()
        self.events.fact("begin", {**begin, "model": self.model})
        self._answer.repeat()

    async def _round(self, tools: Sequence[Tool]) -> None:
        answer = self._answer
        self.work.model = self.model
        computing = self._computing = Computing(
            self,
            [self._plan.job(self.tenant, tools)],
            keep_alive=None,
            warnings=(),
            pictures=self._plan.pictures,
        )
        answer.tally = computing.tally
        await computing.run(self.model, answer.opened, answer.take)

    async def _use(self, calls: Sequence[ToolCall], tools: ToolRunner) -> None:
        """Run the calls in their order, and open the next answer below their results.

        Where the run is cut, calls without a result get one that says so: a chat with a call that nothing answers is
        one that some templates refuse.
        """
        answer, left = self._answer, list(calls)
        self._plan.extends = None
        self._plan.messages.append(Message("assistant", answer.text, answer.thinking, tuple(calls)))
        self._parent = answer.id
        try:
            for call in calls:
                self._put_result(call, await tools.use(call, self))
                left.pop(0)
        finally:
            for call in left:
                self._put_result(call, ToolResult(content=UNFINISHED, state="failed"))
            self._answer = RunAnswer(self, secrets.token_hex(8), self._saver)
            id, parent, model = self._answer.id, self._parent, self.model
            self._saver.put(lambda writer: writer.open_answer(parent=parent, model=model, id=id))
            self._begin()

    def _put_result(self, call: ToolCall, result: ToolResult) -> None:
        id, parent = secrets.token_hex(8), self._parent
        self._parent = id
        self._plan.messages.append(
            Message("tool", result.content, tool_call_id=call.id, name=call.name, failed=result.failed)
        )
        self._saver.put(
            lambda writer: writer.message(
                "tool", result.content, parent=parent, call=call.id, outcome=result.state, id=id
            )
        )
        facts = {"message": id, "parent": parent, "call": call.id}
        self.events.fact("result", {**facts, "content": result.content, "outcome": result.state})

    # --- the desk of tools -------------------------------------------------------------------------

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        """Show a question and wait for its answer; ASK_S without one is no."""
        waiting: asyncio.Future[ToolAnswer] = asyncio.get_running_loop().create_future()
        self._asked[question.call] = (waiting, question.digest)
        until = round(time.time() + ASK_S, 3)
        self.came()
        self.events.fact("ask", {**msgspec.to_builtins(question), "until": until})
        if self.server.health.stopping:
            self.cut()
        try:
            async with asyncio.timeout(ASK_S):
                return await waiting
        except TimeoutError:
            return ToolAnswer(verdict="deny", word=f"no answer came in {ASK_S / 60:.0f} minutes")
        finally:
            self._asked.pop(question.call, None)

    def say(self, step: ToolStep) -> None:
        """Show the state of a call."""
        self.came()
        self.events.fact("tool", step)

    def approve(self, call: str, answer: ToolAnswer, digest: str | None = None) -> None:
        """Hand over the user's answer. Raises Refused where nothing is asked about this call, or no more.

        `digest`: of the tool that the user was shown. One that changed is asked about again under the same call, and
        a second click on the first question must not answer that.
        """
        waiting, shown = self._asked.get(call, (None, ""))
        if waiting is None or waiting.done() or digest not in (None, shown):
            raise Refused(
                404, f"nothing is asked about the call {call[:80]!r}, or it was answered", code="no_call"
            )
        waiting.set_result(answer)

    # --- the end -----------------------------------------------------------------------------------

    async def _answered(
        self, finish: ChatFinish, error: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Write the end of the answer, and return its receipt."""
        answer = self._answer
        receipt = answer.receipt(self._plan.settings, await self._identity)
        id, calls = answer.id, self._asked_tools()
        self._saver.put(
            lambda writer: writer.end(id, finish, receipt=receipt, calls=calls, error=error),
        )
        if finish == "tool_calls":
            self.status, self.complete = 200, True
            self._logged()
            self.complete = False
        return receipt

    def _asked_tools(self) -> list[AskedTool]:
        tools = self._tools
        return [
            AskedTool(
                id=c.id,
                server=tools.server_of(c.name) if tools else "",
                name=c.name,
                arguments=c.arguments,
            )
            for c in self._answer.calls
        ]

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        if finish == "stop":
            finish = self._answer.finish
        receipt = await self._answered(finish, error)
        if self._tools is not None:
            await self._tools.aclose()
        saved = await self._saver.end()
        end = {"finish": finish, "receipt": without_ids(receipt), **({"error": error} if error else {})}
        self.events.fact("end", end if saved else {**end, "saved": False})
        if saved:
            self.events.close()
        if finish in ("stop", "length"):
            self._titling = await titling(self)  # kept: a loop forgets tasks that nothing names

    def _disk(self, trouble: FreeholdError | None) -> None:
        if trouble is not None:
            text = f"This answer is not saved: {trouble.message}. It stays in memory and is saved once that works."
            self.events.fact("note", {"code": "unsaved", "text": text})
            return
        self.events.fact("note", {"code": "saved", "text": "The answer is saved again."})
        if not self.running:
            self.events.close()

    async def close(self) -> None:
        await super().close()
        await self._saver.abandon()
