"""One answer of a run while it grows: its events, its lines in the chat, its token ids, its receipt.

Knows chunks; knows no job and no disk. Path: Computing.run -> RunAnswer.take -> EventLog.text, RunSaver.grow
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from freehold.chats.types import ChatFinish, ChatSettings
from freehold.providers.demands import NEVER_DROPS
from freehold.server.console.runs.bits import Bits, digest
from freehold.server.core.problems import Refused
from freehold.server.core.receipt import Tally, context
from freehold.serving import Begin, ModelHandle
from freehold.types import Chunk, Message, ToolCall

if TYPE_CHECKING:
    from freehold.server.console.runs.run import ConsoleRun
    from freehold.server.console.runs.saver import RunSaver

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
