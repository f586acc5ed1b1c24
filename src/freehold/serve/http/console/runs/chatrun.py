"""A run that answers in a chat: rounds of an answer and the tools that it calls, each written as it grows.

Knows a plan, a chat's lines and the contract of tools (chats/types.py); the model is read by Computing, as for
every request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from freehold.base.errors import FreeholdError
from freehold.base.serving import Begin, Job, ModelHandle
from freehold.base.types import Chunk, Image, Message, Tool, ToolCall
from freehold.route.providers.contract import NEVER_DROPS
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import (
    ASK_S,
    MAX_ROUNDS,
    AskedTool,
    ChatChange,
    ChatFinish,
    ChatSettings,
    SavedChat,
    SavedMessage,
    ToolAnswer,
    ToolQuestion,
    ToolResult,
    ToolRunner,
    ToolStep,
)
from freehold.serve.chats.writer import ChatWriter
from freehold.serve.http.console.runs.again import Bits, digest, without_ids
from freehold.serve.http.console.runs.jobs import RunPlan
from freehold.serve.http.console.runs.run import ConsoleRun
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.computing import Computing, without_unseen
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.receipt import Tally, context
from freehold.serve.tools.misread import MISREAD, CallText, asked_again
from freehold.serve.tools.pictures import tool_message

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
        self._misread = 0  # calls that could not be read
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
            await self._readable(tools)
            calls = self._answer.calls
            if not calls or self._tools is None:
                return
            receipt = await self._answered("tool_calls")
            facts = {"answer": self._answer.id, "calls": self._asked_tools(), "receipt": without_ids(receipt)}
            self.events.fact("calls", facts)
            await self._use(calls, self._tools)
        message = f"this answer called tools in {MAX_ROUNDS} rounds, the limit"
        raise Refused(400, message, code="too_many_calls")

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

    async def _readable(self, tools: Sequence[Tool]) -> None:
        """Compute the answer; a call in it that cannot be read is asked for again, and then answered without tools."""
        again: list[Message] = []
        while True:
            offered = tools if self._misread < MISREAD else ()
            self._answer.listen(tool.name for tool in tools if self._plan.extends is None)
            await self._round(offered, again)
            if not self._answer.is_misread:
                return
            if not offered:
                message = "the model writes calls that cannot be read; choose a larger model, or leave its tools out"
                raise Refused(400, message, code="unreadable_calls")
            self._misread += 1
            then = "It is asked once more." if self._misread < MISREAD else "It answers without tools."
            text = f"The model wrote a tool call that cannot be read. {then}"
            self.events.fact("note", {"code": "misread", "text": text})
            again += asked_again(self._answer.begin_again())

    async def _round(self, tools: Sequence[Tool], again: Sequence[Message]) -> None:
        answer = self._answer
        self.work.model = self.model
        computing = self._computing = Computing(
            self,
            [self._plan.job(self.tenant, tools, again)],
            keep_alive=None,
            warnings=(),
            fit=without_unseen(self, again=True),
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
                result = await tools.use(call, self)
                self._put_result(call, result, await self._stored(result.images))
                left.pop(0)
        finally:
            for call in left:
                self._put_result(call, ToolResult(content=UNFINISHED, state="failed"), {})
            self._answer = RunAnswer(self, secrets.token_hex(8), self._saver)
            id, parent, model = self._answer.id, self._parent, self.model
            self._saver.put(lambda writer: writer.open_answer(parent=parent, model=model, id=id))
            self._begin()

    async def _stored(self, images: Sequence[str]) -> dict[str, Image]:
        """Store pictures before a message names them; what cannot be stored is neither kept nor shown."""
        stored: dict[str, Image] = {}
        for url in images:
            try:
                reference = await asyncio.to_thread(self.folder.add_picture, self.chat, url)
                stored[reference] = Image.at(url)
            except FreeholdError as e:
                text = f"A picture of a tool's result is left out: {e.message}."
                self.events.fact("note", {"code": "picture", "text": text})
        return stored

    def _put_result(self, call: ToolCall, result: ToolResult, images: Mapping[str, Image]) -> None:
        """Add a result to the plan, the chat and the events. `images`: its pictures, by their references."""
        id, parent = secrets.token_hex(8), self._parent
        self._parent = id
        self._plan.messages.append(
            tool_message(result.content, call.id, call.name, list(images.values()), failed=result.failed)
        )
        self._saver.put(
            lambda writer: writer.message(
                "tool",
                result.content,
                parent=parent,
                images=list(images),
                call=call.id,
                outcome=result.state,
                id=id,
            )
        )
        facts = {"message": id, "parent": parent, "call": call.id, "images": list(images)}
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
            message = f"nothing is asked about the call {call[:80]!r}, or it was answered"
            raise Refused(404, message, code="no_call")
        waiting.set_result(answer)

    # --- the end -----------------------------------------------------------------------------------

    async def _answered(
        self, finish: ChatFinish, error: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Write the end of the answer, and return its receipt."""
        answer = self._answer
        receipt = answer.receipt(self._plan.settings, await self._identity)
        id, calls = answer.id, self._asked_tools()
        self._saver.put(lambda writer: writer.end(id, finish, receipt=receipt, calls=calls, error=error))
        if finish == "tool_calls":
            self.status, self.complete = 200, True
            self._logged()
            self.complete = False
        return receipt

    def _asked_tools(self) -> list[AskedTool]:
        tools = self._tools
        return [
            AskedTool(
                id=c.id, server=tools.server_of(c.name) if tools else "", name=c.name, arguments=c.arguments
            )
            for c in self._answer.calls
        ]

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        self._answer.flush()
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


# --- one answer of a run while it grows: its events, its lines in the chat, its token ids, its receipt

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
        self._calling = CallText(())
        self._whole: list[str] = []  # text since `listen`, shown or not
        self._again = False

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        return "".join(self._thinking)

    def listen(self, names: Iterable[str]) -> None:
        """Show nothing from now on that may be a call of one of these tools which cannot be read."""
        self._calling, self._whole = CallText(names), []

    @property
    def is_misread(self) -> bool:
        """Whether the answer ended in a call that cannot be read."""
        return self._calling.is_call and not self.calls

    def begin_again(self) -> str:
        """Forget the tokens of a call that cannot be read; return its text. What was shown before it stays."""
        self.bits, self._again = Bits(), True
        self._first = self._last = 0.0
        return "".join(self._whole)

    def flush(self) -> None:
        """Show what was buffered of an answer that was stopped."""
        if text := self._calling.rest():
            self._grew(text, "")

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
            whole = chunk.text + chunk.refusal
            self._whole.append(whole)
            text.append(self._calling.shown(whole, ended=chunk.finish_reason is not None))
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
            **self._source(begin, settings, identity),
        }

    def _source(self, begin: Begin, settings: ChatSettings, identity: dict[str, Any]) -> dict[str, Any]:
        """Return what makes the same bits again, or why nothing does: the prompt had turns that the chat lacks."""
        if self._continues:  # its prompt ends in a begun answer, which no chat has
            return {"continued": True}
        return {"asked_again": True} if self._again else {"bits": self._bits(begin, settings, identity)}

    def _bits(self, begin: Begin, settings: ChatSettings, identity: dict[str, Any]) -> dict[str, Any] | None:
        if not (begin.prompt_ids and self.bits.ids):
            return None
        kept = {
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
            "settings": kept,
        }


# --- a run's lines on their way to its chat, in the order in which things happened ------------------
# The run never waits for the disk: lines queue here, a growing text as one, and go out at least every second. What
# cannot be written stays queued and is tried again: a disk that is full for a while costs nothing that was said.

SAVE_S = 0.5  # between two writes of an answer that grows
AGAIN_S = 1.0  # after a write that failed
_log = logging.getLogger("freehold.serve.http")

Line = Callable[[ChatWriter], object]  # writes one line, or raises and has written nothing


@dataclass(slots=True)
class _Growth:
    """What an answer grew by since the last write."""

    id: str
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)

    def __call__(self, writer: ChatWriter) -> None:
        writer.more(self.id, text="".join(self.text), thinking="".join(self.thinking))


class RunSaver:
    """The lines of one run that are still to be written. `report` hears of a disk that fails, and of its recovery."""

    def __init__(self, writer: ChatWriter, report: Callable[[FreeholdError | None], None]) -> None:
        self._writer, self._report = writer, report
        self._lines: deque[Line] = deque()
        self._growth: _Growth | None = None  # the last line, while it may grow
        self._writing = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(self._keep())
        self._failing: FreeholdError | None = None
        self._ended = False

    @property
    def saved(self) -> bool:
        """Whether nothing is left to write."""
        return not self._lines

    def grow(self, id: str, text: str, thinking: str) -> None:
        """Note what an answer grew by."""
        if self._growth is None or self._growth.id != id:
            self._growth = _Growth(id)
            self._lines.append(self._growth)
        if text:
            self._growth.text.append(text)
        if thinking:
            self._growth.thinking.append(thinking)

    def put(self, line: Line) -> None:
        """Append a line after all that came before."""
        self._growth = None
        self._lines.append(line)

    async def flush(self) -> bool:
        """Write what is queued; return whether all of it is written."""
        async with self._writing:
            self._growth = None  # it is being written: what comes now is a line of its own
            batch = list(self._lines)
            done, trouble = await asyncio.to_thread(self._write, batch)
            for _ in range(done):
                self._lines.popleft()
        if (trouble is None) != (self._failing is None):
            self._report(trouble)
        self._failing = trouble
        return not self._lines

    def _write(self, batch: list[Line]) -> tuple[int, FreeholdError | None]:
        for done, line in enumerate(batch):
            try:
                line(self._writer)
            except FreeholdError as e:
                return done, e
            except Exception as e:  # a line that cannot be written must not keep those after it
                _log.exception("a line of chat %s was left out: %s", self._writer.chat, e)
        return len(batch), None

    async def _keep(self) -> None:
        while not (self._ended and self.saved):
            await asyncio.sleep(AGAIN_S if self._failing else SAVE_S)
            if self._lines:
                await self.flush()
        self._writer.close()

    async def end(self) -> bool:
        """Write the rest now; what fails is tried again until it is written. Return whether all of it is."""
        self._ended = True
        return await self.flush()

    async def written(self) -> None:
        """Wait until everything is written; after `end`."""
        await asyncio.shield(self._task)

    async def abandon(self) -> None:
        """Try once more, and stop: the server ends."""
        self._task.cancel()
        if self._lines:
            await self.flush()
        self._writer.close()


# --- titles: the model that answered says in a few words what a chat is about, on idle capacity -----
# Only engines that run here already are asked: a title is worth neither money nor a load. What a model says
# is a title where it is short; otherwise the chat keeps its first line.

MOST_ANSWERS = 2  # after which a chat without a title keeps its first line
MOST_CHARS, MOST_WORDS = 60, 8  # of a title; a model that says more has not understood
SHOWN = 800  # characters of a message that the model reads
TIMEOUT_S = 120.0  # on a machine that is never idle there is no title
ASK = "Say in two to six words what this chat is about. Write these words only, no sentence.\n\n"


class TitleRun(ConsoleRun):
    """Asks the model of a run for a title of its chat, behind all other work."""

    def __init__(self, run: ConsoleRun, prompt: str) -> None:
        super().__init__(run, run.folder, run.chat, run.model)
        self._prompt, self._text = prompt, ""

    @property
    def asking(self) -> bool:
        return True  # no drain waits for a title

    async def compute(self) -> None:
        self.work.model = self.model
        job = Job(
            messages=(Message("user", self._prompt),),
            max_tokens=24,
            sampling={"temperature": 0.0},
            think=False,
            priority="batch",
            tenant=self.tenant,
            timeout_s=TIMEOUT_S,
        )
        await Computing(self, [job], keep_alive=None, warnings=()).run(self.model, self._opened, self._take)

    async def _opened(self, served: ModelHandle, job: int, begin: Begin) -> None:
        pass

    async def _take(self, job: int, chunks: list[tuple[int, Chunk]]) -> None:
        self._text += "".join(chunk.text for _, chunk in chunks)

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        if error is None and (title := cleaned(self._text)):
            with suppress(FreeholdError):  # a chat that was deleted, or a full disk
                await asyncio.to_thread(self._write, title)

    def _write(self, title: str) -> None:
        if not self.folder.read(self.chat).card.named:  # its user may have named it meanwhile
            with self.folder.writer(self.chat) as writer:
                writer.set(ChatChange(title=title))


async def titling(run: ConsoleRun) -> TitleRun | None:
    """Begin to ask for a title; None where the chat needs none, or its model is not an engine in memory."""
    loaded = {each.name for each in run.server.models.loaded()}
    if not run.server.titles or run.server.health.stopping or run.model.partition("+")[0] not in loaded:
        return None
    with suppress(FreeholdError):
        if prompt := prompt_of(await asyncio.to_thread(run.folder.read, run.chat)):
            title = TitleRun(run, prompt)
            title.start()
            return title
    return None


def prompt_of(chat: SavedChat) -> str:
    """Return what to ask the model for a chat's title; "" for a chat that has one, or keeps its first line."""
    messages = [m for m in chat.branch() if m.role in ("user", "assistant") and m.content]
    answers = sum(m.role == "assistant" for m in messages)
    if chat.card.named or not 1 <= answers <= MOST_ANSWERS:
        return ""
    names = {"user": "User", "assistant": "Assistant"}
    return ASK + "\n\n".join(f"{names[m.role]}: {m.content[:SHOWN]}" for m in messages)


def cleaned(text: str) -> str:
    """Return the title in what a model said; "" where that is none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    title = " ".join(line.removeprefix("Title:").split()).strip(" \"'*#`.:_“”«»")
    short = len(title) <= MOST_CHARS and len(title.split()) <= MOST_WORDS
    return title if short and any(char.isalnum() for char in title) else ""
