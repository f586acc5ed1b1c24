"""A run that computes an answer again and compares its token ids with those of the receipt, one by one.

Ends at the first difference. What is not as it was (files, engine, prompt) is said instead, before anything is
computed. Nothing is added to the chat.
Path: again -> AgainRun.compute -> Computing.run -> compared -> EventLog
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from freehold.chats.folder import ChatFolder
from freehold.chats.types import ChatFinish, ChatSettings, SavedChat, SavedMessage, ToolRunner
from freehold.errors import FreeholdError
from freehold.server.console.runs.bits import Bits, compared, digest
from freehold.server.console.runs.jobs import RunPlan, SamplingFields
from freehold.server.console.runs.run import ConsoleRun
from freehold.server.core.call import HttpCall
from freehold.server.core.computing import Computing
from freehold.server.core.problems import Refused
from freehold.serving import Begin, ModelDirectory, ModelHandle
from freehold.types import Chunk
from freehold.version import __version__


class Decided(Refused):
    """The verdict is known before the answer's end; `data` is the event's."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(200, "the comparison is decided")
        self.data = data


class _KeptBits(Struct):
    """What is read of a receipt's bits besides the ids."""

    model: str
    digest: str
    engine: str
    prompt: str
    settings: ChatSettings


class _KeptReceipt(Struct):
    """What is read of a receipt."""

    bits: _KeptBits
    sampling: SamplingFields
    tok_s: float | None = None


class AgainRun(ConsoleRun):
    """Computes the answer `message` of a chat again."""

    def __init__(
        self,
        origin: HttpCall,
        folder: ChatFolder,
        chat: SavedChat,
        message: SavedMessage,
        kept: Bits,
        tools: ToolRunner | None,
    ) -> None:
        """`kept`: what bits_of returned for the message. Raises Refused for settings that no answer was made with."""
        receipt = message.receipt or {}
        self._kept = kept
        super().__init__(origin, folder, chat.card.id, receipt["bits"]["model"])
        self._message, self._receipt, self._tools = message, receipt, tools
        self._recomputed = Bits()
        self._text: list[str] = []
        asked_with = msgspec.convert(receipt["bits"]["settings"], ChatSettings)
        if message.state not in ("whole", "length"):  # it was cut: its tokens up to there
            asked_with.max_tokens = len(self._kept.ids)
        self._plan = RunPlan.of(chat, message.parent or "", self.model, asked_with)
        self._plan.sampling = {k: v for k, v in receipt["sampling"].items() if k != "logit_bias"}

    async def compute(self) -> None:
        begin = {
            "run": self.id,
            "chat": self.chat,
            "answer": self._message.id,
            "parent": self._message.parent,
        }
        self.events.fact("begin", {**begin, "model": self.model})
        self.work.model = self.model
        try:
            await self._check_same()
            tools = await self._tools.offer() if self._tools is not None else ()
            job = self._plan.job(self.tenant, tools)
            computing = Computing(self, [job], keep_alive=None, warnings=(), pictures=self._plan.pictures)
            await computing.run(self.model, self._opened, self._take)
            self._compare(whole=True)
        except Decided as e:
            self.events.fact("again", {**e.data, "tokens": len(self._kept.ids)})

    async def _check_same(self) -> None:
        now = await identity_of(self.models, self.model)
        bits = self._receipt["bits"]
        elsewhere = "engine" in self._receipt  # an engine beyond ours says its version when it begins
        if why := changed({**bits, "engine": now["engine"]} if elsewhere else bits, now):
            raise Decided({"equal": False, "changed": why})

    async def _opened(self, served: ModelHandle, job: int, begin: Begin) -> None:
        bits = self._receipt["bits"]
        if begin.engine and begin.engine != bits["engine"]:
            why = f"The answer was made by {bits['engine']}; this is {begin.engine}."
            raise Decided({"equal": False, "changed": why})
        if digest(begin.prompt_ids) != bits["prompt"]:
            why = "The prompt has other tokens: the chat's template, an earlier message or a tool is not as it was."
            raise Decided({"equal": False, "changed": why})

    async def _take(self, job: int, chunks: list[tuple[int, Chunk]]) -> None:
        self.came()
        for _, chunk in chunks:
            text = chunk.thinking + chunk.text + chunk.refusal
            self._recomputed.add(chunk.token_ids, text)
            self._text.append(text)
        self._compare(whole=False)

    def _compare(self, *, whole: bool) -> None:
        ids, kept = self._recomputed.ids, self._kept.ids
        if not whole and ids == kept[: len(ids)]:
            return
        was = self._message.thinking + self._message.content
        raise Decided(compared(self._kept, was, self._recomputed, "".join(self._text), ids=True))

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        self.events.fact("end", {"finish": finish, "receipt": None, **({"error": error} if error else {})})
        self.events.close()


def bits_of(message: SavedMessage) -> Bits:
    """Return the token ids of an answer. Raises Refused where there are none, and where its receipt is not ours.

    An imported chat has receipts that anything may have written. Millions of ids take seconds: not in the loop.
    """
    bits = (message.receipt or {}).get("bits")
    if not isinstance(bits, dict):
        why = "its engine reports no token ids" if message.receipt else "it has no receipt"
        raise Refused(400, f"the message {message.id} cannot be compared: {why}", code="no_bits")
    try:
        msgspec.convert(message.receipt, _KeptReceipt)
        return Bits.of(bits)
    except ValueError as e:  # msgspec's is one
        raise Refused(400, f"the message {message.id} cannot be compared: {e}", code="no_bits") from None


# --- what must be the same for the same bits: the model's files, and the engine that runs them ------


async def identity_of(models: ModelDirectory, model: str) -> dict[str, Any]:
    """Return a model's name, the stamp of its files and the engine; an empty digest where its files are elsewhere."""
    try:
        stamp = await models.stamp_of(model)
    except FreeholdError as e:  # such as a file that was replaced: the answer itself needs none of this
        stamp = f"none: {e.message}"
    return {"model": model, "digest": stamp, "engine": f"freehold {__version__}"}


def changed(bits: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what is not as it was when an answer was made; "" where all is."""
    if bits.get("model") != now["model"]:
        return f"The answer was made by {bits.get('model')}, which is now {now['model']}."
    if bits.get("digest") != now["digest"]:
        return f"The files of {now['model']} are not those that made this answer."
    if bits.get("engine") != now["engine"]:
        return f"The answer was made by {bits.get('engine')}; this is {now['engine']}."
    return ""
