"""A run that computes an answer again and compares its token ids with those of the receipt, one by one.

Ends at the first difference. What is not as it was (files, engine, prompt) is said instead, before anything is
computed. Nothing is added to the chat.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from freehold.base.errors import FreeholdError
from freehold.base.serving import Begin, ModelDirectory, ModelHandle
from freehold.base.types import Chunk
from freehold.base.version import __version__
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.pictures import ChatPictures
from freehold.serve.chats.types import ChatFinish, ChatSettings, SavedChat, SavedMessage, ToolRunner
from freehold.serve.http.console.runs.jobs import RunPlan, SamplingFields
from freehold.serve.http.console.runs.run import ConsoleRun, units
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.computing import Computing, without_unseen
from freehold.serve.http.core.problems import Refused


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
        plan: RunPlan,
        tools: ToolRunner | None,
    ) -> None:
        """`kept`: what bits_of returned for the message; `plan`: of plan_again."""
        receipt = message.receipt or {}
        self._kept, self._plan = kept, plan
        super().__init__(origin, folder, chat.card.id, receipt["bits"]["model"])
        self._message, self._receipt, self._tools = message, receipt, tools
        self._recomputed = Bits()
        self._text: list[str] = []

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
            pictures = self._plan.pictures
            fit = without_unseen(self, again=True)
            computing = Computing(self, [job], keep_alive=None, warnings=(), fit=fit, pictures=pictures)
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


def plan_again(chat: SavedChat, message: SavedMessage, kept: Bits, stored: ChatPictures) -> RunPlan:
    """Plan an answer once more, as its receipt says that it was made; reads the disk.

    `kept`: what bits_of returned for the message. Raises Refused for settings that no answer was made with.
    """
    receipt = message.receipt or {}
    made_with = msgspec.convert(receipt["bits"]["settings"], ChatSettings)
    if message.state not in ("whole", "length"):  # it was cut: its tokens up to there
        made_with.max_tokens = len(kept.ids)
    plan = RunPlan.of(chat, message.parent or "", receipt["bits"]["model"], made_with, stored)
    plan.sampling = {k: v for k, v in receipt["sampling"].items() if k != "logit_bias"}
    return plan


def bits_of(message: SavedMessage) -> Bits:
    """Return the token ids of an answer. Raises Refused where there are none, and where its receipt is not ours.

    An imported chat has receipts that anything may have written. Millions of ids take seconds: not in the loop.
    """
    bits = (message.receipt or {}).get("bits")
    if not isinstance(bits, dict):
        why = "its engine reports no token ids" if message.receipt else "it has no receipt"
        if message.receipt and message.receipt.get("asked_again"):
            why = "a call in it could not be read, and the model was asked again"
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


# --- what an answer consists of besides its text: its token ids, packed, and how two answers compare
# Kept in a receipt so that an answer can be computed again and compared bit for bit. Ids take three bytes each (no
# vocabulary has 16 million tokens), and a byte says how many UTF-16 units of text each token added, so that a token's
# text is found without its tokenizer.

_LONG = 255  # in `ends`: this many units, and those of the next byte


def digest(ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids, four bytes each."""
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()


@dataclass(slots=True)
class Bits:
    """The token ids of an answer, and the units of text that each added: thinking first, then the content."""

    ids: list[int] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], text: str) -> None:
        """Add a chunk. Text of several tokens counts for the last one: their parts are not known."""
        if ids:
            self.ids += ids
            self.grown += [0] * (len(ids) - 1) + [units(text)]
        elif text and self.grown:
            self.grown[-1] += units(text)

    def packed(self) -> dict[str, Any]:
        """Return what a receipt keeps."""
        ids = b"".join(i.to_bytes(3, "little") for i in self.ids)
        grown = b"".join(bytes([_LONG] * (n // _LONG) + [n % _LONG]) for n in self.grown)
        return {
            "answer": digest(self.ids),
            "tokens": len(self.ids),
            "ids": b64encode(ids).decode(),
            "ends": b64encode(grown).decode(),
        }

    @classmethod
    def of(cls, packed: Mapping[str, Any]) -> Bits:
        """Read what `packed` wrote; ValueError for anything else."""
        raw, ends = (b64decode(str(packed.get("ids", ""))), iter(b64decode(str(packed.get("ends", "")))))
        ids = [int.from_bytes(raw[i : i + 3], "little") for i in range(0, len(raw) - 2, 3)]
        grown = []
        for _ in ids:
            size = more = next(ends, 0)
            while more == _LONG:
                size += (more := next(ends, 0))
            grown.append(size)
        if digest(ids) != packed.get("answer"):
            raise ValueError("its token ids do not have the digest that its receipt states")
        return cls(ids, grown)

    def begins(self, index: int) -> int:
        """Return the unit of the whole text at which a token begins."""
        return sum(self.grown[:index])

    def index_at(self, unit: int) -> int:
        """Return the token that writes the unit."""
        at = 0
        for index, size in enumerate(self.grown):
            at += size
            if at > unit:
                return index
        return len(self.ids)

    def piece(self, index: int, text: str) -> str:
        """Return what a token wrote of `text`; a token whose text came with a later one gives that one's."""
        if index >= len(self.ids):
            return ""
        begin = end = self.begins(index)
        for size in islice(self.grown, index, None):
            end += size
            if end > begin:
                break
        return sliced(text, begin, end)


def sliced(text: str, begin: int, end: int) -> str:
    """Cut by UTF-16 units."""
    if text.isascii():
        return text[begin:end]
    raw = text.encode("utf-16-le", "surrogatepass")[2 * begin : 2 * end]
    return raw.decode("utf-16-le", "replace")


def without_ids(receipt: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a receipt as it is shown: the ids are as long as the answer, and no page reads them."""
    bits = receipt.get("bits") if receipt else None
    if receipt is None or not isinstance(bits, dict):
        return receipt
    return {**receipt, "bits": {name: bits[name] for name in bits if name not in ("ids", "ends")}}


def compared(a: Bits, a_text: str, b: Bits, b_text: str, *, ids: bool) -> dict[str, Any]:
    """Tell whether two answers are equal, or where they part. `ids`: both have one vocabulary; otherwise by text."""
    if ids:
        differs = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), None)
        if differs is None and len(a.ids) == len(b.ids):
            return {"equal": True}
        first = second = min(len(a.ids), len(b.ids)) if differs is None else differs
    else:
        if a_text == b_text:
            return {"equal": True}
        unit = _common(a_text, b_text)
        first, second = a.index_at(unit), b.index_at(unit)
    return {
        "equal": False,
        "first": first,
        "was": a.piece(first, a_text),
        "is": b.piece(second, b_text),
        "at": a.begins(first),
    }


def _common(a: str, b: str) -> int:
    """Return how many UTF-16 units two texts have in common from their beginning."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return units(a[:same])
