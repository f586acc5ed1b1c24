"""Keeps what providers sign in their answers, and puts it into the next request of the same conversation.

A client of OpenAI's protocol sends the calls of an answer back with their ids, but not the reasoning that a provider
signed before them; without it the provider refuses the turn. Blocks are kept in memory, by tenant, labels, provider,
model and id of the call, and are never put into a request for another. Outside a provider's wire every signature has
a stamp of the model that made it, also where a client carries it; `carried`, at the one door to providers, takes the
stamp off, and leaves out what another made.
Knows no wire.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message, SignedThinking, ToolCall, ToolPiece
from freehold.route.providers.contract import Cleared, RemoteModel

Owner = tuple[str, tuple[str, ...], str, str]  # tenant, labels, provider, model

# A block of reasoning has some 2 to 20 kB, and an agent's loop some 20 calls: 16 MiB hold a few hundred loops at once.
ANSWERS, MEMORY, SECONDS = 10_000, 16 << 20, 4 * 3600.0
STAMP = "fh1."  # begins what a client carries
_NOBODY = "\0"  # begins no signature


@dataclass(frozen=True, slots=True)
class _KeptAnswer:
    owner: Owner
    calls: Mapping[str, str]  # id -> signature, "" where the call has none of its own
    signed: tuple[SignedThinking, ...]
    size: int  # bytes of memory
    until: float


class Signatures:
    """The signed blocks of recent answers: at most `answers` of them, `memory` bytes, each for `seconds` unused."""

    def __init__(
        self,
        *,
        answers: int = ANSWERS,
        memory: int = MEMORY,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._memory, self._seconds, self._clock = answers, memory, seconds, clock
        # An answer is under each of its calls' ids; the one that has been unused for longest comes first.
        self._kept: OrderedDict[tuple[Owner, str], _KeptAnswer] = OrderedDict()
        self.answers = 0
        self.bytes = 0

    def restored(self, cleared: Cleared[Job], remote: RemoteModel | None) -> Cleared[Job]:
        """Return the request with the kept blocks of `remote` in it; None: an engine of ours, which has none."""
        job = cleared.work
        if not job.messages:
            return cleared
        if remote is None:
            return cleared.with_work(_carried(job, _NOBODY))
        if not any(m.tool_calls for m in job.messages):
            return cleared
        owner = _owner(cleared, remote)
        messages = tuple(self._message(m, owner) if m.tool_calls else m for m in job.messages)
        return cleared.with_work(replace(job, messages=messages))

    def watch(self, cleared: Cleared[Job], remote: RemoteModel) -> SignatureWatch:
        """Return what each chunk of the answer has to pass."""
        return SignatureWatch(self, _owner(cleared, remote))

    def keep(self, owner: Owner, calls: Sequence[ToolCall], signed: Sequence[SignedThinking]) -> None:
        """Keep an answer's blocks under the ids of its calls."""
        by_id = {call.id: call.signature for call in calls if call.id}
        if not by_id or not (signed or any(by_id.values())):
            return
        size = sum(map(sys.getsizeof, (*by_id, *by_id.values())))
        texts = (text for block in signed for text in (block.text, block.signature, block.redacted))
        size += sum(map(sys.getsizeof, texts))
        now = self._clock()
        kept = _KeptAnswer(owner, by_id, tuple(signed), size, now + self._seconds)
        for id in by_id:
            self._drop((owner, id))
        self._put(kept)
        while self._kept and (self.answers > self._most or self.bytes > self._memory or self._oldest < now):
            self._drop(next(iter(self._kept)))

    def _message(self, message: Message, owner: Owner) -> Message:
        kept = self._match(owner, message.tool_calls)
        if kept is None:
            return message
        calls = tuple(
            call if call.signature else replace(call, signature=kept.calls.get(call.id, ""))
            for call in message.tool_calls
        )
        carries = any(
            (block.signature or block.redacted).startswith(_stamp(owner)) for block in message.signed
        )
        return replace(message, tool_calls=calls, signed=message.signed if carries else kept.signed)

    def _match(self, owner: Owner, calls: Sequence[ToolCall]) -> _KeptAnswer | None:
        """Return the kept answer that has one of these calls, and keep it anew from now."""
        kept = next((k for call in calls if (k := self._kept.get((owner, call.id))) is not None), None)
        if kept is None:
            return None
        self._drop((owner, next(iter(kept.calls))))
        now = self._clock()
        if kept.until < now:
            return None
        self._put(replace(kept, until=now + self._seconds))
        return kept

    @property
    def _oldest(self) -> float:
        return next(iter(self._kept.values())).until

    def _put(self, kept: _KeptAnswer) -> None:
        for id in kept.calls:
            self._kept[kept.owner, id] = kept
        self.answers += 1
        self.bytes += kept.size

    def _drop(self, key: tuple[Owner, str]) -> None:
        kept = self._kept.get(key)
        if kept is None:
            return
        for id in kept.calls:
            del self._kept[kept.owner, id]
        self.answers -= 1
        self.bytes -= kept.size


@dataclass(slots=True)
class _Gathered:
    calls: list[ToolCall] = field(default_factory=list)
    signed: list[SignedThinking] = field(default_factory=list)


class SignatureWatch:
    """Sees the chunks of one request's answers: keeps what is signed in them, and stamps it for the client."""

    def __init__(self, signatures: Signatures, owner: Owner) -> None:
        self._signatures, self._owner, self._stamp = signatures, owner, _stamp(owner)
        self._answers: dict[int, _Gathered] = {}

    def seen(self, answer: int, chunk: Chunk) -> Chunk:
        """Return the chunk as the client may have it; keep the answer's blocks with its last chunk."""
        if chunk.signed or chunk.tool_calls:
            chunk = replace(
                chunk,
                signed=tuple(_stamped(block, self._stamp) for block in chunk.signed),
                tool_calls=tuple(_stamped_piece(piece, self._stamp) for piece in chunk.tool_calls),
            )
            gathered = self._answers.setdefault(answer, _Gathered())
            gathered.signed += chunk.signed
            for piece in chunk.tool_calls:
                piece.join(gathered.calls)
        if chunk.finish_reason is not None and (ended := self._answers.pop(answer, None)) is not None:
            self._signatures.keep(self._owner, ended.calls, ended.signed)
        return chunk


def carried(job: Job, remote: RemoteModel) -> Job:
    """Return a job with the signatures of `remote` as it made them, and without those of any other."""
    return _carried(job, _model_stamp(remote.provider.name, remote.model))


def _carried(job: Job, stamp: str) -> Job:
    if not job.messages or not any(m.signed or m.tool_calls for m in job.messages):
        return job
    messages = tuple(_own(m, stamp) if m.signed or m.tool_calls else m for m in job.messages)
    return replace(job, messages=messages)


def _own(message: Message, stamp: str) -> Message:
    signed = tuple(b for b in (_unstamped(block, stamp) for block in message.signed) if b is not None)
    calls = tuple(_own_call(call, stamp) if call.signature else call for call in message.tool_calls)
    return replace(message, signed=signed, tool_calls=calls)


def _own_call(call: ToolCall, stamp: str) -> ToolCall:
    own = call.signature.startswith(stamp)
    return replace(call, signature=call.signature[len(stamp) :] if own else "")


def _owner(cleared: Cleared[Job], remote: RemoteModel) -> Owner:
    return cleared.work.tenant, cleared.label_names, remote.provider.name, remote.model


def _stamp(owner: Owner) -> str:
    return _model_stamp(owner[2], owner[3])


@lru_cache(maxsize=1024)
def _model_stamp(provider: str, model: str) -> str:
    """Return what begins the signatures of a provider's model, as its clients see them; it says nothing of either."""
    digest = hashlib.sha256("\n".join((provider, model)).encode()).hexdigest()
    return f"{STAMP}{digest[:12]}."


def _stamped(block: SignedThinking, stamp: str) -> SignedThinking:
    signature = stamp + block.signature if block.signature else ""
    return replace(block, signature=signature, redacted=stamp + block.redacted if block.redacted else "")


def _stamped_piece(piece: ToolPiece, stamp: str) -> ToolPiece:
    return replace(piece, signature=stamp + piece.signature) if piece.signature else piece


def _unstamped(block: SignedThinking, stamp: str) -> SignedThinking | None:
    """Return a block as its model signed it, or None where another did."""
    signature = block.signature or block.redacted
    if not signature.startswith(stamp):
        return None
    if block.redacted:
        return replace(block, signature="", redacted=block.redacted[len(stamp) :])
    return replace(block, signature=block.signature[len(stamp) :])
