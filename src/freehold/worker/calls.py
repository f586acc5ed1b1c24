"""Calls of a model that have one reply instead of a stream: token counts, embeddings, adapters.

Knows their limits and how texts to embed are dealt into portions; knows no socket.
Path: EngineHandle.call -> check_pending -> PendingCall -> ModelCall
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from freehold.errors import Overloaded
from freehold.serving import EmbedJob, Vectors
from freehold.worker.wire import ModelCall, Writer, size

# Pending calls of one model. A call that counts tokens holds its text until its reply, and two threads tokenize a
# megabyte of it a second; a portion of texts to embed takes some tenths of a second of steps.
MOST_CALLS: dict[str, int] = {"tokens": 64, "embed": 256}
MOST_CALLS_SIZE, SIZE_PER_S = 32 << 20, 1e6
# Texts of one embedding call, and their characters and ids; a longer text is a portion of its own.
PORTION_TEXTS, PORTION_SIZE = 64, 1 << 16
# token_texts is not among them: it completes a request that was admitted already.
_GROUPS: dict[str, str] = dict.fromkeys(["tokenize", "detokenize", "render", "count"], "tokens")


class PendingCall:
    """A call whose reply is due."""

    def __init__(self, call: ModelCall, reply: asyncio.Future[Any]) -> None:
        self.id, self.call, self.reply, self.deaths = call.id, call, reply, 0
        self.group = _GROUPS.get(call.method, call.method)
        self.size = size(call.args) if self.group in MOST_CALLS else 0
        self.client = call.client

    def message(self, _: Writer) -> ModelCall:
        """Return the message for an engine that takes another's place."""
        return self.call

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.reply.done():
            self.reply.set_exception(error)


def check_pending(new: PendingCall, pending: Iterable[PendingCall], model: str) -> None:
    """Raise Overloaded where as many calls of its group are pending as may, or they hold as much as they may.

    Clients share both limits: one within its part is not refused because of the calls of others.
    """
    group = [call for call in pending if call.group == new.group]
    most = MOST_CALLS.get(new.group)
    if most is None or not group:
        return
    waiting = [call.size for call in group]
    own = [call.size for call in group if call.client == new.client]
    parts = len({new.client, *(call.client for call in group)})
    total = sum(waiting)
    fits_part = not own or (len(own) < most // parts and sum(own) + new.size <= MOST_CALLS_SIZE // parts)
    if (len(waiting) >= most or total + new.size > MOST_CALLS_SIZE) and not (parts > 1 and fits_part):
        what = "count tokens" if new.group == "tokens" else "be embedded"
        raise Overloaded(
            f"{len(waiting):,} requests with {total:,} characters wait to {what} by {model}; at most {most:,} "
            f"with {MOST_CALLS_SIZE:,} may",
            "ask again in a moment",
            total / SIZE_PER_S,
        )


def portions(job: EmbedJob) -> Iterator[EmbedJob]:
    """Deal a job's texts out into jobs of some tenths of a second."""
    first = size = 0
    for i, text in enumerate(job.texts):
        if i > first and (i - first == PORTION_TEXTS or size + len(text) > PORTION_SIZE):
            yield replace(job, texts=job.texts[first:i], first=job.first + first)
            first, size = i, 0
        size += len(text)
    yield replace(job, texts=job.texts[first:], first=job.first + first)


def joined(parts: list[Vectors]) -> Vectors:
    """Return the vectors of all portions as one."""
    return Vectors(
        b"".join(part.data for part in parts),
        parts[0].width,
        tuple(n for part in parts for n in part.tokens),
        tuple(i for part in parts for i in part.cut),
    )


class LoadWaiters:
    """Callers that wait until a model is loaded."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait for `release`; raise the error given to `fail`."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def release(self) -> None:
        """Wake all waiting loads; each removes itself from the list."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def fail(self, error: Exception) -> None:
        """End all with an error."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_exception(error)
