"""Whole answers from the chunks of streams.

Knows chunks; knows no engine. Path: LLM.chat -> complete -> LocalJob.stream -> Completion
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeGuard

from freehold.local.answering import LocalJob
from freehold.types import Chunk, Completion, ToolCall

# Several prompts, as `LLM.generate` takes them: texts, or lists of token ids.
Prompts = list[str] | list[list[int]] | tuple[str, ...] | tuple[Sequence[int], ...]


def is_batch(prompt: object) -> TypeGuard[Prompts]:
    """Tell a list of prompts from one prompt of token ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or len(prompt) == 0:
        return False
    return isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def complete(job: LocalJob) -> Completion:
    """Compute an answer to its end."""
    return completion(job.stream(), job.seed)


def completion(chunks: Iterable[Chunk], seed: int) -> Completion:
    """Join the chunks of a whole answer."""
    got = list(chunks)
    calls: list[ToolCall] = []
    for piece in (p for c in got for p in c.tool_calls):
        piece.join(calls)
    last = got[-1]
    if last.finish_reason is None or last.usage is None:
        raise RuntimeError("a stream ended without its last chunk")  # our own invariant
    return Completion(
        text="".join(c.text for c in got),
        thinking="".join(c.thinking for c in got),
        token_ids=tuple(i for c in got for i in c.token_ids),
        logprobs=tuple(p for c in got for p in c.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        seed=seed,
        dropped_messages=sum(c.dropped_messages for c in got),
        tool_calls=tuple(calls),
    )
