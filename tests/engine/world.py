"""A scheduler with its blocks on a clock of its own: steps take what a made-up machine takes, and are instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

from freehold.base.types import Priority, SamplingParams
from freehold.run.engine.cache import CacheKind
from freehold.run.engine.cache.blocks import BlockManager
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.cache.window import SlidingWindow, quota
from freehold.run.engine.schedule.scheduler import Scheduler
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence
from tests.engine.scripted import ScriptedRunner

# A 0.5b on two cores, about: seconds of one newest token, of each more, of a prompt's token and of a position it
# attends to.
LONE_S, MORE_S, TOKEN_S, LOOK_S = 0.016, 0.002, 0.0008, 4e-7


@dataclass
class Log:
    """What became of a sequence, in seconds from its arrival."""

    arrived: float
    choice_s: float = 0.0  # of each token
    first: float = inf  # token
    ended: float = inf
    tokens: list[float] = field(default_factory=list)  # when each came, on the clock

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)]


class SlowGrammar:
    """A matcher of which nothing counts but its time: so many seconds a token."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.token_s = seconds, 0.0

    def take_seconds(self) -> float:
        self.token_s = self._seconds
        return self.token_s


class World:
    """Steps, a clock, and a log of each sequence."""

    def __init__(
        self,
        blocks: int = 1000,
        max_num_batched_tokens: int = 512,
        target_itl_s: float | None = None,
        assumed_token_s: float = 0.0,
        window: int = 0,
        states: int = 0,
    ) -> None:
        """`window`: of layers that have blocks of their own, as few as go.

        `states`: for recurrent layers beside them; then all values that steps read are checked.
        """
        self.now = 0.0
        count = quota(window, max_num_batched_tokens)
        kinds: list[CacheKind] = []
        if window > 0 and count < blocks:
            kinds.append(SlidingWindow(count, blocks, window, max_num_batched_tokens))
        if states:
            kinds.append(Recurrent(states, every=64))
        self.blocks = BlockManager(blocks, kinds)
        self.values = ScriptedRunner(self.blocks, window) if states else None
        self.scheduler = Scheduler(
            self.blocks, max_num_batched_tokens, lambda: self.now, target_itl_s, assumed_token_s
        )
        self.logs: dict[Sequence, Log] = {}
        self.tokens_computed = 0
        self.drafts = self.held = 0  # draft tokens of a step where there is room, and how many of them hold
        self._token = 0

    def add(
        self,
        prompt: int | list[int],
        answer: int = 10,
        priority: Priority = "interactive",
        tenant: str = "",
        parent: Sequence | None = None,
        grammar_s: float = 0.0,
        embed: bool = False,
        choice_s: float = 0.0,
    ) -> Sequence:
        """Let a request come; a number stands for so many tokens that no other prompt has.

        `tenant` is its client too. `grammar_s`: seconds of each token in its grammar; `choice_s`: of its choice.
        `embed`: no answer is made.
        """
        if isinstance(prompt, int):
            self._token += 1
            prompt = [self._token] * prompt
        request = Request(
            tuple(prompt),
            SamplingParams(),
            0,
            answer,
            sink=(lambda rows: None) if embed else None,
            hidden=embed,
            priority=priority,
            tenant=tenant,
            client=tenant,
        )
        matcher: Any = SlowGrammar(grammar_s) if grammar_s else None
        seq = Sequence(request, list(prompt), parent, matcher=matcher)
        self.logs[seq] = Log(self.now, choice_s)
        self.scheduler.add(seq)
        return seq

    def cancel(self, seq: Sequence) -> None:
        """Let a reader go."""
        seq.done = True
        self.scheduler.remove(seq)

    def seconds(self, batch: list[ScheduledChunk]) -> float:
        """Return what the made-up machine takes for a step."""
        decodes = sum(chunk.decodes for chunk in batch)
        prefill = sum(
            chunk.count * (TOKEN_S + LOOK_S * (chunk.first + chunk.count / 2))
            for chunk in batch
            if not chunk.decodes
        )
        return max(LONE_S + MORE_S * (decodes - 1) if decodes else 0.0, 0.5 * LONE_S) + prefill

    def step(self) -> list[ScheduledChunk]:
        """Compute a step; an idle one lets a moment pass."""
        batch = self.scheduler.schedule()
        assert len({chunk.seq for chunk in batch}) == len(batch)
        if self.drafts and all(chunk.decodes for chunk in batch):
            batch = [self._lengthened(chunk) for chunk in batch]
        for chunk in batch:
            self.blocks.prepare(chunk.seq, chunk.first, chunk.count, len(chunk.draft))
        if self.values is not None and batch:
            self.values.run(batch, choose=False)
        seconds = self.seconds(batch) if batch else 0.01
        self.now += seconds
        if batch:
            self.scheduler.learn(batch, seconds)
        for chunk in batch:
            self._after(chunk)
        return batch

    def fail(self) -> None:
        """Compute a step that is interrupted before any of it is accounted for."""
        batch = self.scheduler.schedule()
        for chunk in batch:
            self.blocks.prepare(chunk.seq, chunk.first, chunk.count)
        if self.values is not None and batch:
            self.values.run(batch, choose=False)
        for chunk in batch:
            self.blocks.publish(chunk.seq, chunk.seq.num_computed_tokens)

    def _lengthened(self, chunk: ScheduledChunk) -> ScheduledChunk:
        count = min(self.drafts, chunk.seq.left - 1)
        return self.scheduler.with_draft(chunk, [1 + i for i in range(count)]) if count > 0 else chunk

    def _after(self, chunk: ScheduledChunk) -> None:
        seq, log = chunk.seq, self.logs[chunk.seq]
        assert len(seq.block_table) * 32 >= chunk.first + chunk.num_tokens
        self.tokens_computed += chunk.num_tokens
        held = min(self.held, len(chunk.draft))
        if chunk.last and seq.matcher is not None:
            if not self.scheduler.has_grammar_time(seq):
                computed = max(chunk.first + chunk.count - 1, seq.num_computed_tokens)
                self.blocks.publish(seq, computed, len(chunk.draft))
                return
            seconds = seq.matcher.take_seconds()
            self.now += seconds
            self.scheduler.charge_grammar(seq, seconds)
        if chunk.last and log.choice_s:
            self.now += log.choice_s
            self.scheduler.charge_choice(seq, log.choice_s)
        if chunk.last and seq.request.sink is not None:
            seq.done = True
            log.first = self.now - log.arrived
        elif chunk.last:
            self._token += 1
            seq.tokens += [*chunk.draft[:held], self._token]
            log.tokens.append(self.now)
            log.first = min(log.first, self.now - log.arrived)
            seq.done = seq.left == 0
        self.blocks.publish(seq, chunk.first + chunk.count + held, len(chunk.draft))
        if seq.done:
            log.ended = self.now - log.arrived
            self.scheduler.remove(seq)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self.now < end:
            self.step()

    def finish(self, steps: int = 100_000) -> None:
        """Run until every answer has ended."""
        for _ in range(steps):
            if not self.scheduler.live:
                return
            self.step()
        raise AssertionError(f"{len(self.scheduler.live)} sequences never ended")
