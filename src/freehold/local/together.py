"""Answers many jobs in shared steps: a batch to its end, or a stream of jobs with a bounded number in the engine.

In a stream the next job enters as one ends, so that the batch stays full. Each answer is the one that its job gets
alone. Knows jobs and chunks; knows no prompt and no file.
Path: LLM.generate -> all_together; LLM.answer_many -> as_they_end; -> LocalJob.take -> completion
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from freehold.engine import Engine
from freehold.errors import ContextOverflow, FreeholdError
from freehold.local.answering import LocalJob, completion
from freehold.serving import Job
from freehold.types import Chunk, Completion

DRIVE_S = 1.0  # how long to wait for a step that another thread computes before looking again


def all_together(engine: Engine, makers: Iterable[Callable[[], LocalJob]]) -> list[Completion]:
    """Prepare a batch and compute it to its end in this thread; an interrupt ends all of it."""
    batch = prepared(makers)
    chunks: list[list[Chunk]] = [[] for _ in batch]
    try:
        for job in batch:
            job.enter()
        while not all(job.done for job in batch):
            engine.drive(DRIVE_S)
            for got, job in zip(chunks, batch, strict=True):
                got.extend(chunk for _, chunk in job.take())
    finally:
        for job in batch:
            job.cancel()
    return [completion(got, each.seed) for got, each in zip(chunks, batch, strict=True)]


def prepared(makers: Iterable[Callable[[], LocalJob]]) -> list[LocalJob]:
    """Prepare the jobs of a batch. An error names the index of its prompt, and then none is answered."""
    return [_numbered(i, make) for i, make in enumerate(makers)]


def _numbered(index: int, make: Callable[[], LocalJob]) -> LocalJob:
    try:
        return make()
    except FreeholdError as e:
        e.message = f"prompt {index}: {e.message}"
        e.args = (e.message,)
        raise


def as_they_end(
    engine: Engine, prepare: Callable[[Job], LocalJob], jobs: Iterable[Job], at_once: int
) -> Iterator[tuple[int, Completion | ContextOverflow]]:
    """Yield (number of the job, its answer) in the order in which they end; closing the iterator ends all.

    A job that the context cannot hold yields its error, and the others continue. Raises what else a job raises.
    """
    waiting = enumerate(jobs)
    running: dict[int, tuple[LocalJob, list[Chunk]]] = {}
    try:
        while True:
            while len(running) < at_once and (entry := next(waiting, None)) is not None:
                number, submitted = entry
                try:
                    job = prepare(submitted)
                except ContextOverflow as e:
                    yield number, e
                    continue
                running[number] = job, []
                job.enter()
            if not running:
                return
            engine.drive(DRIVE_S)
            for number, (job, chunks) in [*running.items()]:
                chunks.extend(chunk for _, chunk in job.take())
                if job.done:
                    del running[number]
                    yield number, completion(chunks, job.seed)
    finally:
        for job, _ in running.values():
            job.cancel()
