"""An LLM for asyncio: requests of many tasks in one batch, and no thread for each.

Knows event loops and one thread that computes steps while requests are running; knows no prompt and no sampling, which
are LLM's. Cancelling a task stops its request within one step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, overload

from freehold.base.types import Chunk, Completion, Embeddings
from freehold.run.engine import Engine
from freehold.run.local.answering import LocalJob, Prompts, completion, is_batch
from freehold.run.local.jobs import Chat, ChatOptions, GenerateOptions, LoadOptions, keywords
from freehold.run.local.llm import LLM, Text, prepared
from freehold.run.local.opening import load

# A pause of the stepping thread with nothing to compute: other threads may be computing the steps of its requests.
WAIT_S = 0.05

# What a request's queue carries: chunks, and at the end None or the error that ended it.
Arrival = list[Chunk] | BaseException | None
Deliver = Callable[[Arrival], object]


class AsyncLLM:
    """A loaded model for asyncio: `chat`, `generate` and `embed` are awaited, `stream` is iterated over.

    Use it as an async context manager. `llm` is the same model as a synchronous LLM, with all other methods. Closing a
    stream, or cancelling the task that awaits an answer, stops the model within one step.
    """

    def __init__(self, llm: LLM) -> None:
        """Wrap a loaded model; closing this closes it."""
        self.llm = llm
        self._steps: _Steps | None = None

    @classmethod
    @keywords(LoadOptions)
    async def load(cls, model: str | Path, **options: Unpack[LoadOptions]) -> Self:
        """Load a model in a thread, with the options and the errors of `freehold.load`."""
        return cls(await asyncio.to_thread(load, model, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncLLM of {self.llm!r}>"

    async def close(self) -> None:
        """Free the weights and the cache; running requests end with EngineClosed. Safe to call twice."""
        await asyncio.to_thread(self.llm.close)

    @keywords(ChatOptions)
    async def chat(self, messages: Chat, **options: Unpack[ChatOptions]) -> Completion:
        """Answer a chat, or one user message given as text; see LLM.chat."""
        return await self._complete(lambda: self.llm._job_of(messages, options))

    @keywords(ChatOptions)
    async def stream(self, messages: Chat, **options: Unpack[ChatOptions]) -> AsyncGenerator[Chunk]:
        """Answer as `chat` does, piece by piece: `async for chunk in llm.stream("Hi")`."""
        job = await asyncio.to_thread(self.llm._job_of, messages, options)
        async for chunk in self._chunks(job):
            yield chunk

    @overload
    async def generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> Completion: ...
    @overload
    async def generate(self, prompt: Prompts, **options: Unpack[GenerateOptions]) -> list[Completion]: ...
    @keywords(GenerateOptions)
    async def generate(
        self, prompt: str | Sequence[int] | Prompts, **options: Unpack[GenerateOptions]
    ) -> Completion | list[Completion]:
        """Continue a text or token ids without a chat template, or a list of prompts as one batch; see LLM.generate."""
        if not is_batch(prompt):
            return await self._complete(lambda: self.llm._continued(prompt, options))  # type: ignore[arg-type]
        jobs = [partial(self.llm._continued, each, options) for each in prompt]
        batch = await asyncio.to_thread(prepared, jobs)
        return await _together([self._gathered(job) for job in batch])

    async def embed(self, texts: Text | Sequence[Text], **options: Any) -> Embeddings:
        """Return a vector of unit length for each text, in a thread; see LLM.embed."""
        return await asyncio.to_thread(self.llm.embed, texts, **options)

    async def _complete(self, prepare: Callable[[], LocalJob]) -> Completion:
        return await self._gathered(await asyncio.to_thread(prepare))

    async def _gathered(self, job: LocalJob) -> Completion:
        return completion([chunk async for chunk in self._chunks(job)], job.seed)

    async def _chunks(self, job: LocalJob) -> AsyncGenerator[Chunk]:
        """Yield an answer's chunks as the steps make them; ending the iteration cancels the request."""
        arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        steps = self._stepping()
        try:
            if job.begin is not None and job.begin.dropped_messages:
                yield Chunk(dropped_messages=job.begin.dropped_messages)
            steps.add(job, lambda arrival: loop.call_soon_threadsafe(arrivals.put_nowait, arrival))
            while (arrival := await arrivals.get()) is not None:
                if isinstance(arrival, BaseException):
                    raise arrival
                for chunk in arrival:
                    if (
                        chunk.finish_reason == "cancelled"
                    ):  # cancelled by close(): a task that cancels does not iterate any more
                        self.llm._check_open()
                    yield chunk
        finally:
            steps.remove(job)

    def _stepping(self) -> _Steps:
        if self._steps is None:
            self._steps = _Steps(self.llm._generating())
        return self._steps


async def _together(answers: Sequence[Coroutine[Any, Any, Completion]]) -> list[Completion]:
    """Await all of a batch; the first error cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class _Steps:
    """Computes steps in a thread of its own while requests are running, and hands out the chunks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # guards the two below
        self._running: dict[LocalJob, Deliver] = {}
        self._thread: threading.Thread | None = None

    def add(self, job: LocalJob, deliver: Deliver) -> None:
        """Queue a request; `deliver` is called in the stepping thread. Raises what LocalJob.enter raises."""
        job.enter()
        with self._lock:
            self._running[job] = deliver
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="freehold-steps", daemon=True)
                self._thread.start()

    def remove(self, job: LocalJob) -> None:
        """Cancel a request, unless it has ended."""
        with self._lock:
            self._running.pop(job, None)
        job.cancel()

    def _run(self) -> None:
        while self._goes_on():
            try:
                self._engine.drive(WAIT_S)
            except BaseException as e:  # closed: every request ends with it
                self._end(e)
                continue
            for job, deliver in self._held():
                self._hand_out(job, deliver)

    def _goes_on(self) -> bool:
        """Return whether a request is running; without any, the thread ends and the next request starts another."""
        with self._lock:
            if not self._running:
                self._thread = None
            return bool(self._running)

    def _held(self) -> list[tuple[LocalJob, Deliver]]:
        with self._lock:
            return list(self._running.items())

    def _hand_out(self, job: LocalJob, deliver: Deliver) -> None:
        try:
            chunks = [chunk for _, chunk in job.take()]
        except BaseException as e:
            return self._over(job, deliver, e)
        if chunks:
            _called(deliver, chunks)
        return self._over(job, deliver, None) if job.done else None

    def _end(self, error: BaseException) -> None:
        for job, deliver in self._held():
            self._over(job, deliver, error)

    def _over(self, job: LocalJob, deliver: Deliver, last: BaseException | None) -> None:
        with self._lock:
            self._running.pop(job, None)
        _called(deliver, last)


def _called(deliver: Deliver, arrival: Arrival) -> None:
    try:
        deliver(arrival)
    except RuntimeError:  # the event loop is closed: no task waits for it any more
        return
