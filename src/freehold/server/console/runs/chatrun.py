"""A run that answers in a chat: rounds of an answer and the tools that it calls, each written as it grows.

Knows a plan, a chat's lines and the contract of tools (chats/types.py); the model is read by Computing, as for
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
from freehold.chats.types import (
    ASK_S,
    MAX_ROUNDS,
    AskedTool,
    ChatFinish,
    ChatSettings,
    SavedMessage,
    ToolAnswer,
    ToolQuestion,
    ToolResult,
    ToolRunner,
    ToolStep,
)
from freehold.chats.writer import ChatWriter
from freehold.errors import FreeholdError
from freehold.providers.demands import NEVER_DROPS
from freehold.server.console.runs.bits import Bits, digest, without_ids
from freehold.server.console.runs.jobs import RunPlan
from freehold.server.console.runs.run import ConsoleRun
from freehold.server.console.runs.saver import RunSaver
from freehold.server.console.runs.titles import TitleRun, titling
from freehold.server.core.call import HttpCall
from freehold.server.core.computing import Computing
from freehold.server.core.problems import Refused
from freehold.server.core.receipt import Tally, context
from freehold.serving import Begin, ModelHandle
from freehold.types import Chunk, Message, Tool, ToolCall

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


# --- one answer of a run while it grows -------------------------------------------------------------
# Its events, its lines in the chat, its token ids, its receipt.

MAX_UNITS = 16 << 20  # of one answer's text
_FINISHES: dict[str, ChatFinish] = {"length": "length", "tool_calls": "tool_calls"}


class RunAnswer:
    """The answer `id` of a run. `tally`: of the Computing that makes it; `begun`: the answer that it continues."""

    def __init__(
        self, run: ConsoleRun, id: str, saver: RunSaver | None, begun: Message | None = None
    ) -> None:
        self.id = id
        self.calls: list[ToolCall] = []
        self.finish: ChatFinish = "stop"
        self.tally: Tally | None = None
        self.bits = Bits()
        self._run, self._saver = run, saver
        self._continues = begun is not None
        self._text = [begun.content] if begun else []
        self._thinking = [begun.thinking] if begun else []
        self._units = 0
        self._began = time.monotonic()
        self._first = self._last = self._thought = 0.0  # seconds from the begin
        self._thinking_s = 0.0
        self._begin: Begin | None = None

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        return "".join(self._thinking)

    def repeat(self) -> None:
        """Say what the answer began with, to readers that know nothing of it."""
        if self.thinking:
            self._run.events.text("thinking", self.thinking, 0.0)
        if self.text:
            self._run.events.text("text", self.text)

    async def opened(self, served: ModelHandle, job: int, begin: Begin) -> None:
        """Take what the engine says when it has accepted the job."""
        self._begin = begin
        facts = {"model": begin.model or served.name, "context": context(begin)}
        sampling = msgspec.to_builtins(begin.sampling)
        self._run.events.fact("ready", {**facts, "sampling": sampling, "max_tokens": begin.max_tokens})

    async def take(self, job: int, chunks: list[tuple[int, Chunk]]) -> None:
        """Add chunks that came together: one event for each kind of text."""
        text, thinking = [], []
        for _, chunk in chunks:
            self.bits.add(chunk.token_ids, chunk.thinking + chunk.text + chunk.refusal)
            thinking.append(chunk.thinking)
            text.append(chunk.text + chunk.refusal)
            for piece in chunk.tool_calls:
                piece.join(self.calls)
            if chunk.finish_reason is not None:
                self.finish = _FINISHES.get(chunk.finish_reason, "stop")
        self._grew("".join(text), "".join(thinking))

    def _grew(self, text: str, thinking: str) -> None:
        now = time.monotonic() - self._began
        self._first, self._last = self._first or now, now
        self._run.came()
        if thinking:
            self._thought = self._thought or now
            self._thinking_s = now - self._thought
            self._thinking.append(thinking)
            self._run.events.text("thinking", thinking, self._thinking_s)
        if text:
            self._text.append(text)
            self._run.events.text("text", text)
        if not (text or thinking):
            return
        if self._saver is not None:
            self._saver.grow(self.id, text, thinking)
        self._units += len(text) + len(thinking)
        if self._units > MAX_UNITS:
            raise Refused(
                400,
                f"this answer has {self._units:,} characters; the limit is {MAX_UNITS:,}: ask for fewer tokens",
                code="run_too_long",
            )

    def receipt(self, settings: ChatSettings, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the receipt of `/v1`, counts and speed, and what makes the same bits again; None before any begin."""
        tally, begin = self.tally, self._begin
        if tally is None or begin is None:
            return None
        tally.retract(NEVER_DROPS)  # the chat was not refused
        generated = len(self.bits.ids) or tally.completion_tokens
        spent = self._last - self._first
        receipt = tally.receipt()
        receipt["context"]["used"] = max(receipt["context"]["used"], len(begin.prompt_ids) + generated)
        return {
            **receipt,
            "tokens": {"prompt": tally.prompt_tokens, "answer": generated, "thought": tally.thought_tokens},
            "first_s": round(self._first, 4),
            **({"thinking_s": round(self._thinking_s, 2)} if self._thinking else {}),
            "tok_s": round((generated - 1) / spent, 2) if generated > 1 and spent > 0 else None,
            **(
                {"continued": True}
                if self._continues  # its prompt ends in a begun answer, which no chat has
                else {"bits": self._bits(begin, settings, identity)}
            ),
        }

    def _bits(self, begin: Begin, settings: ChatSettings, identity: dict[str, Any]) -> dict[str, Any] | None:
        if not (begin.prompt_ids and self.bits.ids):
            return None
        asked = {
            "system": settings.system,
            "think": settings.think,
            "max_tokens": settings.max_tokens,
            "tools": settings.tools,
            "overflow": settings.overflow,
        }
        return {
            "prompt": digest(begin.prompt_ids),
            **self.bits.packed(),
            **identity,
            **({"engine": begin.engine} if begin.engine else {}),
            "settings": asked,
        }
