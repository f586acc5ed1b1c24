"""The receipt of a request: tokens, context, sampling and seconds actually used. Every answer carries it.

Knows the engines' reports at the begin and the end of each answer; knows no protocol, only its own receipt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.base.serving import Begin, Job
from freehold.base.types import Chunk, Usage


class Tally:
    """Begins and usages of a request's jobs. `started`: time.monotonic() of its arrival."""

    def __init__(self, jobs: Sequence[Job], started: float, warnings: Sequence[str]) -> None:
        self._jobs = list(jobs)
        self.begins: list[Begin | None] = [None] * len(jobs)
        self.usages: list[Usage] = []  # of each answer that ended
        self._longest = [0] * len(jobs)
        # Of each job, what the four counts below have of it.
        self._prompts: list[tuple[int, ...]] = [(0, 0, 0, 0)] * len(jobs)
        self._started, self.warnings = started, list(warnings)
        self.load_s = 0.0  # until the model was in memory
        self._thought = 0  # tokens of chunks that were spent on thinking
        self.completion_tokens = 0  # of all answers
        # Of all prompts; where their ids are not reported, as answers that ended count them.
        self.prompt_tokens = 0
        self.cached_tokens = 0  # of the prompts: not computed again,
        self.written_tokens = 0  # put into a provider's cache for minutes,
        self.written_hour_tokens = 0  # and for an hour
        # Seconds of decoding pictures, of computing them, and of prefill; None where none was decoded or computed.
        self.picture_s: tuple[float, float, float] | None = None

    @property
    def passed_s(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._started

    def another(self, job: Job) -> int:
        """Take in a job that continues an answer; return its number."""
        self._jobs.append(job)
        self.begins.append(None)
        self._longest.append(0)
        self._prompts.append((0, 0, 0, 0))
        return len(self._jobs) - 1

    def begun(self, job: int, begin: Begin) -> None:
        """Note the prompt; warn once if the context has room for fewer tokens than requested."""
        self.begins[job] = begin
        counted = begin.usage or Usage(len(begin.prompt_ids), 0)
        self._count(job, _of_prompt(counted))
        for left in begin.warnings:
            self.warn(left)
        wanted = self._jobs[job].max_tokens
        if begin.context and wanted is not None and wanted > begin.max_tokens and not begin.budgeted:
            self.warn(f"max_tokens was reduced to fit the context of {begin.context:,} tokens")

    def warn(self, warning: str) -> None:
        """Add a warning, once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def retract(self, warning: str) -> None:
        """Take back a warning that the answer proved wrong."""
        if warning in self.warnings:
            self.warnings.remove(warning)

    def came(self, chunk: Chunk) -> None:
        """Note what a chunk's tokens were spent on."""
        if chunk.thinking and not chunk.text:
            self._thought += len(chunk.token_ids)

    def ended(self, job: int, usage: Usage) -> None:
        """Note an answer's end. The answers of one job share its prompt: the greatest count of each kind holds."""
        self.usages.append(usage)
        self.completion_tokens += usage.completion_tokens
        self._longest[job] = max(self._longest[job], usage.completion_tokens)
        if self.picture_s is not None or usage.opening_s or usage.encoding_s:
            self.picture_s = tuple(
                max(getattr(each, name) for each in self.usages)
                for name in ("opening_s", "encoding_s", "prefill_s")
            )
        begin = self.begins[job]
        known = len(begin.prompt_ids) if begin is not None else 0
        prompt, *others = _of_prompt(usage)
        self._count(job, (known or prompt, *others))

    def _count(self, job: int, counts: tuple[int, ...]) -> None:
        before = self._prompts[job]
        after = self._prompts[job] = tuple(map(max, before, counts))
        self.prompt_tokens += after[0] - before[0]
        self.cached_tokens += after[1] - before[1]
        self.written_tokens += after[2] - before[2]
        self.written_hour_tokens += after[3] - before[3]

    def longest(self, job: int) -> int:
        """Return how many tokens the longest of a job's answers had."""
        return self._longest[job]

    @property
    def thought_tokens(self) -> int:
        """Tokens of all answers that were spent on thinking."""
        return self._thought or sum(u.thought_tokens for u in self.usages)

    def receipt(self) -> dict[str, Any]:
        """Return the whole receipt; with several prompts the first one's context, and the longest answer's use."""
        begin = next(b for b in self.begins if b is not None)
        used = max((u.prompt_tokens + u.completion_tokens for u in self.usages), default=0)
        answered: dict[str, Any] = {"model": begin.model} if begin.model else {}
        answered |= {"weights": begin.weights} if begin.weights else {}
        if begin.engine:
            resumed = [number for usage in self.usages for number in usage.resumed_on]
            answered["engine"] = {"name": begin.engine, "replica": begin.replica, "resumed": resumed}
        job = self._jobs[0]  # all jobs of a request have in common what decides an answer and its turn
        return {
            **answered,
            "context": {**context(begin), "used": used, "cached": self.cached_tokens},
            "sampling": msgspec.to_builtins(begin.sampling),
            "max_tokens": begin.max_tokens,
            "n": job.n,
            "stop": job.stop,
            "priority": job.priority,
            "overflow": job.overflow,
            "think": job.think,
            "timings": self._timings(),
            "warnings": self.warnings,
        }

    def _timings(self) -> dict[str, Any]:
        usages, seen = self.usages, self.picture_s
        pictures = {} if seen is None else {"opening_s": round(seen[0], 6), "encoding_s": round(seen[1], 6)}
        return {
            **pictures,
            "prefill_s": round(max((u.prefill_s for u in usages), default=0.0), 6),
            "decode_s": round(max((u.decode_s for u in usages), default=0.0), 6),
            "total_s": round(self.passed_s, 6),
            "drafted_tokens": sum(u.drafted_tokens for u in usages),
            "accepted_tokens": sum(u.accepted_tokens for u in usages),
            "resumed_tokens": sum(u.resumed_tokens for u in usages),
        }


def _of_prompt(usage: Usage) -> tuple[int, int, int, int]:
    return usage.prompt_tokens, usage.cached_tokens, usage.written_tokens, usage.written_hour_tokens


def context(begin: Begin) -> dict[str, int]:
    """Return what is known of the context before an answer: a stream's first event has it."""
    return {"limit": begin.context, "used": len(begin.prompt_ids), "dropped_messages": begin.dropped_messages}
