"""Prepares what the server sends: jobs and calls, each kind in threads of its own.

Knows messages, threads and which work takes long; knows no step. Jobs are prepared by the reader thread, long ones and
formats to be compiled in others, so that a short one need not wait; calls that only count tokens in two of their own,
one for long texts; embeddings in threads of their own, where they wait for their steps.
Path: Process._read -> Intake.take -> HostedModel.start -> LiveJobs.enter
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from freehold.errors import DamagedPack, UsageError
from freehold.serving import EmbedJob, Job, Vectors
from freehold.stopping import Stopped
from freehold.types import Message, Turn
from freehold.worker.process.channel import Channel
from freehold.worker.process.contract import HostedJob, HostedModel
from freehold.worker.process.jobs import LiveJobs
from freehold.worker.process.queues import IntakeQueue
from freehold.worker.wire import (
    CallReply,
    Cancel,
    Event,
    Failed,
    FromServer,
    ModelCall,
    Submit,
    decode,
    read,
    size,
)

TOGETHER_S = 0.002  # jobs that came at once enter at once, if it takes no longer to prepare them
EMBEDDING = 4  # requests for embeddings, of each priority, that wait for steps together and share them
LONG_JOB = 16 << 10  # bytes; rendering and tokenizing more than this would keep the next job waiting,
MANY_ANSWERS = 8  # and so would making more than this: 128 take 6 ms


class Intake:
    """Takes in what the server sends, from the socket's reading thread."""

    def __init__(self, model: HostedModel, jobs: LiveJobs, channel: Channel) -> None:
        self._model, self._jobs, self._channel = model, jobs, channel
        self._long_jobs = IntakeQueue[Submit]("intake", 2, lambda job: self._start([job]))
        # A request's own template may run to its limit, and delays only such requests.
        self._templated = IntakeQueue[Submit]("template", 1, lambda job: self._start([job]))
        # A long text delays no short one, and neither delays a prompt or a format.
        self._calls, self._long_calls = (IntakeQueue("tokens", 1, self._answer) for _ in range(2))
        # One for each priority: a batch that holds all threads of a shared one would delay every request.
        self._embedding, self._batch = (IntakeQueue("embed", EMBEDDING, self._answer) for _ in range(2))

    def take(self, messages: list[FromServer]) -> None:
        """Handle messages in order; the short jobs among them enter together."""
        jobs = [m for m in messages if isinstance(m, Submit)]
        self._jobs.expect([m.id for m in jobs])
        short: list[Submit] = []
        for message in messages:
            if isinstance(message, ModelCall):
                self._threads_for(message).put(message.id, message, message.client)
            elif isinstance(message, Submit) and (peek := _peek_long(message)) is not None:
                work = self._templated if peek.template else self._long_jobs
                work.put(message.id, message, peek.client or peek.tenant)
            elif isinstance(message, Submit):
                short.append(message)
        if short:
            self._start(short)
        for message in messages:
            if isinstance(message, Cancel):
                self._cancel(message.id)

    def _cancel(self, id: int) -> None:
        self._jobs.cancel(id)
        for work in (
            self._long_jobs,
            self._templated,
            self._calls,
            self._long_calls,
            self._embedding,
            self._batch,
        ):
            work.cancel(id)

    def _threads_for(self, call: ModelCall) -> IntakeQueue[ModelCall]:
        match call:
            case ModelCall(method="embed", args=[{"priority": "batch"}]):
                return self._batch
            case ModelCall(method="embed"):
                return self._embedding
        return self._long_calls if size(call.args) > LONG_JOB else self._calls

    def _start(self, jobs: list[Submit]) -> None:
        ready: list[tuple[int, HostedJob]] = []
        began = time.monotonic()
        for message in jobs:
            try:
                if self._jobs.is_expected(message.id):
                    ready.append((message.id, self._model.start(decode(message.job, Job))))
            except Stopped:
                continue
            except Exception as e:
                self._jobs.refuse(message.id, e)
            if time.monotonic() - began > TOGETHER_S:
                self._jobs.enter(ready)
                ready, began = [], time.monotonic()
        self._jobs.enter(ready)

    def _answer(self, call: ModelCall) -> None:
        try:
            event: Event = CallReply(call.id, self._called(call))
        except DamagedPack as e:
            self._channel.give_up(e)
        except Stopped:
            raise
        except Exception as e:
            event = Failed.of(call.id, e)
        self._channel.send_events([event], None)

    def _called(self, call: ModelCall) -> Any:
        model, args = self._model, call.args
        match call.method:
            case "tokenize":
                return model.tokenize(*args)
            case "detokenize":
                return model.detokenize(*args)
            case "token_texts":
                return model.token_texts(*args)
            case "render":
                messages, think, turn = args
                return model.render([Message(*m) for m in messages], think, read(turn, Turn))
            case "count":
                return model.count(read(args[0], Job))
            case "template":
                return model.template()
            case "add_adapter":
                return model.add_adapter(*args)
            case "remove_adapter":
                return model.remove_adapter(*args)
            case "embed":
                return self._embedded(*args)
        raise UsageError(f"no call is named {call.method!r}")

    def _embedded(self, job: Any) -> Vectors:
        got = self._model.embed_job(msgspec.convert(job, EmbedJob))
        data = np.ascontiguousarray(got.vectors, "<f4").tobytes()
        return Vectors(data, got.vectors.shape[1], got.tokens, got.cut)


@dataclass(frozen=True)
class _Peek:
    """The fields that decide, beside its size, whether a job takes long to prepare; and whose it is."""

    format: object = None
    template: str = ""
    tools: tuple[object, ...] = ()
    n: object = 1  # checked where the job is prepared
    tenant: str = ""
    client: str = ""


def _peek_long(message: Submit) -> _Peek | None:
    """Return the fields that say how a job is prepared, or None for one that takes no time."""
    try:
        peek = decode(message.job, _Peek)
    except UsageError:  # it is decoded again, and then refused
        return None
    is_long = len(memoryview(message.job)) > LONG_JOB or peek.format is not None or bool(peek.tools)
    is_long = is_long or (isinstance(peek.n, int) and peek.n > MANY_ANSWERS)
    return peek if is_long or peek.template else None
