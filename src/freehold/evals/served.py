"""A ModelHandle as a ChatModel: cases are asked of whatever a server's directory offers, routes and rented models too.

The handle lives in an event loop of another thread; a caller waits for each chunk. Knows the contract of a served model
and no implementation of it.
Path: cli/bar -> ServedChat -> trial.run
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from freehold.serving import Job, ModelHandle, Stream
from freehold.types import Chunk, FormatLike, Message, OnPrefill, Overflow, SamplingParams, as_format

_T = TypeVar("_T")


class ServedChat:
    """One model, asked through its handle."""

    def __init__(self, handle: ModelHandle, loop: asyncio.AbstractEventLoop) -> None:
        self._handle, self._loop = handle, loop
        self.warnings: dict[str, None] = {}  # what a provider could not do of what was asked, each once

    @property
    def name(self) -> str:
        return self._handle.name

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Answer `messages`; of `sampling` temperature and seed go with the request."""
        settings = {} if sampling is None else {"temperature": sampling.temperature, "seed": sampling.seed}
        job = Job(
            messages=tuple(messages),
            max_tokens=max_tokens,
            sampling={name: value for name, value in settings.items() if value is not None},
            stop=tuple(stop),
            logprobs=logprobs,
            think=think,
            overflow=overflow,
            format=as_format(format),
        )
        answer = self._wait(self._handle.start(job))
        self.warnings.update(dict.fromkeys(answer.begin.warnings))
        try:
            while (chunk := self._wait(_next(answer))) is not None:
                yield chunk
        finally:
            self._wait(answer.aclose())

    def check_think(self, think: bool | None) -> None:
        """Leave it to the model: `stream` raises where it has no such switch."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many prompt tokens a chat has."""
        return self._wait(self._handle.count(Job(messages=tuple(messages))))

    def close(self) -> None:
        """Do nothing: the directory unloads its models."""

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(stream: Stream) -> Chunk | None:
    try:
        return (await stream.__anext__())[1]
    except StopAsyncIteration:
        return None
