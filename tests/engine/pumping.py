"""Streams of one engine, computed by one thread together, as a server does."""

from __future__ import annotations

from collections.abc import Sequence

from freehold.run.engine import Engine, Generation, TokenOut


def pumped(engine: Engine, running: Sequence[Generation]) -> list[list[TokenOut]]:
    """Let one thread compute all tokens, as a server does."""
    got: list[list[TokenOut]] = [[] for _ in running]
    for answer in running:
        answer.start()
    while not all(answer.done for answer in running):
        engine.pump(0.01)
        for answer, outs in zip(running, got, strict=True):
            outs += answer.take()
    return got
