"""The simulated engine again, one step at a time and without a shortcut: what engine.py has to equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.outgrow.capacity.engine import BRIEF_S, LEAST_TOKENS, LONGEST_S, EngineModel
from freehold.outgrow.capacity.trace import TracedRequest


@dataclass
class Slow:
    request: TracedRequest
    left: int = 0
    at: int = 0  # the next position that is read
    made: int = 0
    first: float = 0.0
    last: float = 0.0


def play(requests: Sequence[TracedRequest], model: EngineModel) -> list[Slow]:
    """Return the requests with the times of their tokens; the engine's memory is unbounded and nothing is cached."""
    limits, time = model.limits, model.time
    coming = [Slow(r, r.prompt) for r in requests]
    everything, waiting, reading, decoding = list(coming), [], [], []
    clock = 0.0
    while coming or waiting or reading or decoding:
        if not (waiting or reading or decoding):
            clock = max(clock, coming[0].request.at)
        while coming and coming[0].request.at <= clock:
            waiting.append(coming.pop(0))
            clock += time.request
        while waiting and (not limits.streams or len(reading) + len(decoding) < limits.streams):
            if not limits.shortest and limits.chunk and sum(s.left for s in reading) >= limits.chunk:
                break
            reading.append(waiting.pop(0))
        batch, depth = len(decoding), sum(s.request.prompt + s.made for s in decoding)
        order = sorted(reading, key=lambda s: s.left) if limits.shortest else list(reading)
        chunk = tokens_for_prompts(model, batch, depth, order) if order else 0
        seconds = time.of_batch(batch) + time.depth * depth
        ended = []
        for s in order:
            part = min(s.left, chunk)
            cost = part * time.prompt + (part * s.at + part * (part - 1) / 2) * time.positions
            seconds += cost * (time.beside if batch else 1.0)
            s.left, s.at, chunk = s.left - part, s.at + part, chunk - part
            if not s.left:
                ended.append(s)
        clock += seconds
        for s in decoding:
            s.made += 1
        for s in ended:
            s.made, s.first = 1, clock + time.arrival
            reading.remove(s)
            decoding.append(s)
        for s in [s for s in decoding if s.made >= s.request.answer]:
            s.last = clock + time.arrival
            decoding.remove(s)
    return everything


def tokens_for_prompts(model: EngineModel, batch: int, depth: int, order: list[Slow]) -> int:
    limits, time = model.limits, model.time
    tokens = max((limits.chunk or 1 << 40) - batch, 1)
    each = time.prompt + time.positions * order[0].at
    if batch and limits.pace and each:
        alone = time.of_batch(batch) + time.depth * depth
        limit = max(min(limits.pace * alone, LONGEST_S), limits.floor_s, alone)
        if limits.burst_s and sum(s.left * time.prompt <= BRIEF_S for s in order) > 1:
            limit = max(limit, limits.burst_s)
        return min(tokens, max(int((limit - alone) / (time.beside * each)), LEAST_TOKENS))
    if limits.alone_s and each and not batch:
        return min(tokens, max(int(limits.alone_s / each), LEAST_TOKENS))
    return tokens
