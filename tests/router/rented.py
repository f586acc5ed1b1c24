"""Rented models by script, for tests that need no wire: faults, chunks, and every text that would have left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from freehold.base.errors import FreeholdError
from freehold.base.serving import Begin, EmbedJob, Job, SpeechJob, SpeechPart, SpeechSource, Vectors
from freehold.base.types import Chunk, SamplingParams, Segment, TokenLogprob, Usage
from freehold.route.providers.contract import (
    Cause,
    Cleared,
    Provider,
    RemoteModel,
    RentedTranscript,
    UpstreamFault,
)
from freehold.run.sounds.opening import MeasuredSound


@dataclass
class Answers:
    """What a model does with a request. `faults` are raised by the first attempts, one each."""

    text: str = "An answer from afar."
    faults: Sequence[FreeholdError] = ()
    breaks_at: int | None = None  # piece before which the stream breaks; 0: before the first
    silent_at: int | None = None  # piece before which it sends nothing more
    ends_early: bool = False  # the stream ends without its end
    usage: Usage | None = field(default_factory=lambda: Usage(100, 20))
    delay: float = 0.0
    counts: int | None = None
    logprob: float = -0.1

    def fail(self) -> None:
        """Raise the next fault."""
        if self.faults:
            first, *self.faults = self.faults
            raise first


def fault(cause: Cause, *, status: int = 0, retry_after_s: float | None = None) -> UpstreamFault:
    return UpstreamFault(cause, f"the provider failed: {cause}", status=status, retry_after_s=retry_after_s)


class FakeRented:
    """RentedModels; `answers`: name of the provider's model -> what it does."""

    def __init__(self, **answers: Answers) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Cleared[Job]]] = []
        self.embedded: list[tuple[str, Cleared[EmbedJob]]] = []
        self.heard: list[tuple[str, Cleared[SpeechJob]]] = []
        self.counted: list[tuple[str, Cleared[Job]]] = []
        self.closed: list[str] = []
        self.open = 0
        self.kept: list[str] = []

    async def start(
        self,
        cleared: Cleared[Job],
        model: RemoteModel,
        *,
        first_token_s: float,
        timeout_s: float,
    ) -> FakeAnswer:
        cleared.check(model.provider.name)
        self.asked.append((model.model, cleared))
        does = self.answers.setdefault(model.model, Answers())
        does.fail()
        self.open += 1
        answer = FakeAnswer(does, cleared.work, lambda: self._ended(model.model))
        try:
            async with asyncio.timeout(timeout_s if cleared.work.whole else first_token_s):
                await answer.first()
        except TimeoutError:
            await answer.aclose()
            raise fault("timeout") from None
        except BaseException:
            await answer.aclose()
            raise
        return answer

    def keep(self, providers: Iterable[Provider]) -> None:
        self.kept = [provider.name for provider in providers]

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors:
        cleared.check(model.provider.name)
        self.embedded.append((model.model, cleared))
        does = self.answers.setdefault(model.model, Answers())
        does.fail()
        texts = cleared.work.texts
        return Vectors(b"\0\0\x80?" * len(texts), 1, tuple(3 for _ in texts))

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        cleared.check(model.provider.name)
        does = self.answers.setdefault(model.model, Answers())
        if does.counts is not None:
            self.counted.append((model.model, cleared))
        return does.counts

    async def hear(
        self,
        cleared: Cleared[SpeechJob],
        model: RemoteModel,
        recording: SpeechSource,
        sound: MeasuredSound,
        *,
        timeout_s: float,
    ) -> RentedTranscript:
        cleared.check(model.provider.name)
        self.heard.append((model.model, cleared))
        does = self.answers.setdefault(model.model, Answers())
        does.fail()
        if does.delay:
            await asyncio.sleep(does.delay)
        segment = Segment(0.0, sound.seconds, does.text)
        return RentedTranscript(SpeechPart((segment,), (0.0,), sound.seconds, "en"), None)

    def _ended(self, model: str) -> None:
        self.open -= 1
        self.closed.append(model)


class FakeAnswer:
    def __init__(self, does: Answers, job: Job, ended: Callable[[], None]) -> None:
        self._does, self._job, self._ended = does, job, ended
        self.answer_id = "answer-afar"
        self.reported: Usage | None = None
        self.begin = Begin(128_000, (), SamplingParams(), job.max_tokens or 4096)
        self._pieces = self._made()
        self._closed = False
        self._first: tuple[int, Chunk] | None = None

    @property
    def more(self) -> bool:
        return self._first is not None

    async def first(self) -> None:
        try:
            self._first = await anext(self._pieces)
        except StopAsyncIteration:
            raise fault("broken") from None

    def __aiter__(self) -> FakeAnswer:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        return await anext(self._pieces)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._ended()
        await self._pieces.aclose()

    async def _made(self) -> AsyncGenerator[tuple[int, Chunk]]:
        does = self._does
        words: Sequence[str] = [word + " " for word in does.text.split()]
        for i, word in enumerate(words):
            if does.breaks_at == i:
                raise fault("broken")
            if does.silent_at == i:
                await asyncio.sleep(60)
            await asyncio.sleep(does.delay)
            scores = () if self._job.logprobs is None else (TokenLogprob(i, does.logprob),)
            for answer in range(self._job.n):
                yield answer, Chunk(word, logprobs=scores)
        if does.ends_early:
            return
        for answer in range(self._job.n):
            yield answer, Chunk(finish_reason="stop", usage=does.usage)
