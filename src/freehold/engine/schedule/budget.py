"""How many seconds a step may take, and how many tokens of prefill that is.

Knows what steps cost and how long running answers may wait; knows no tenant, no block and no clock. One budget a
step: the newest tokens of running answers come first, prefill gets what is left. Beside interactive answers a step
may take a small multiple of what their tokens take alone, so that a prompt of any length delays each token by no
more; without them a step is as long as a cancellation or a new request may wait.
Path: Scheduler.schedule -> Budget.open, Budget.tokens, Budget.spend; Scheduler.learn -> Budget.learn
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from freehold.engine.schedule.cost import DEPTH, TILE, MixedCost, PrefillCost, StepCost

# What a step beside running answers may take, over what their tokens take alone. The promise is three times at
# the worst; the rest is for what a measurement cannot know: a neighbour on the machine, a token that is dearer.
ITL_FACTOR = 2.2
# A burst is two or more prompts that wait for a first token and take at most BRIEF_S each; it is computed in steps of
# BURST_S. A running answer ends no later for it: it makes fewer tokens during prefill, for a time that is as much
# shorter. But its reader sees the gaps, so long prompts, and one alone, are computed in small chunks.
BURST_S, BRIEF_S = 0.2, 1.0
ITL_FLOOR_S = 0.004  # below this a reader sees no difference, and a step's own overhead counts
STEP_S = 0.25  # a step without running answers: what Ctrl-C, a cancellation and a new request wait for
# A step of several clients, in tokens that are computed alone: what another client's request waits for, whose own step
# follows. On a 0.5b four are 60 ms, in which 64 tokens of a prompt are computed at 94 % of the full speed. They are
# tokens on a free machine: the crowd itself makes each take half as long again, and steps would grow with it. Where a
# token takes far longer, at depth, a step has two and a half of those.
SHARED_TOKENS, SHARED_NOW = 4, 2.5
# Tokens of prefill a step has at least while no answer decodes, if they take no more than half a second:
# weights are unpacked once a step. Measured on a 0.5b: 32 tokens cost 10 % of the speed, 64 cost 6 %, 128 nothing.
PREFILL_TOKENS, SLOW_STEP_S = 128, 0.5
SLOW_PREFILL_TOKENS = 32  # and at least this many, whatever they cost
LONGEST_S = 1.0  # a step beside running answers, however slow the model is
PROBE = 32  # steps with prefill after which one goes without, so that the cost of answers alone stays known
STARVED_PROBE = 8  # the same while not even half a tile of prefill fits: either cost may have changed
MIXED_PREFILL_TOKENS = 2  # tokens of prefill a step has beside running answers, however little room there is
MAX_NUM_BATCHED_TOKENS = 512
# Rows of logits a step may return to sinks: 64 x 262,144 x 4 bytes are 67 MB. The heap keeps the room of the largest
# such array it has seen, so an engine would grow with every step that had more of them.
LOGIT_ROWS = 64


class Prefill(NamedTuple):
    """Tokens of a prompt in a step: where they begin, how many, and whether all their logits are requested."""

    first: int
    tokens: int
    logits: bool


class Budget:
    """One step's seconds, spent token by token; and what was learnt for the next steps."""

    def __init__(
        self,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        target_itl_s: float | None = None,
        assumed_token_s: float = 0.0,
    ) -> None:
        """`assumed_token_s`: seconds of a prompt's token, for waits that are estimated before any was measured."""
        self.max_num_batched_tokens, self._assumed_token_s = max_num_batched_tokens, assumed_token_s
        self.cost = StepCost()  # of steps that only decode
        self._target = target_itl_s
        # A token of a prompt has a cost alone, another where all its logits are requested, and one beside answers.
        self._alone, self._logits = PrefillCost(), PrefillCost()
        self._mixed = MixedCost(self._alone)
        self._since = 0  # steps with prefill since one of answers alone
        self.begin()

    # --- spending ----------------------------------------------------------------------------------

    def begin(self, shared_s: float = inf) -> None:
        """Begin a step of which nothing is spent yet; `shared_s`: its limit where several clients share it."""
        self.left = self.max_num_batched_tokens
        self.logits_left = LOGIT_ROWS
        self.longest_s = shared_s
        self.room = min(STEP_S, shared_s)  # seconds for prefill
        self._decodes = 0
        self._decode_s = 0.0
        self._attended = 0.0  # positions that the step's prefill attends to, over all its tokens
        self._has_prefill = False
        self.measuring = False  # what answers take alone, while prompts wait

    def shared_s(self) -> float:
        """Return the seconds of a step that several clients share; infinity while nothing was measured."""
        if self._target is not None:
            return self._target
        lone = self.cost.lone
        tokens_s = max(SHARED_TOKENS * self.cost.lone_at_best, SHARED_NOW * lone)
        return min(max(tokens_s, ITL_FLOOR_S), max(lone, LONGEST_S)) if lone else inf

    def open(
        self,
        decodes: int,
        newcomers: int = 0,
        shared_s: float = inf,
        choice_s: float = 0.0,
        brief: bool = False,
    ) -> None:
        """Set the room for prefill beside `decodes` answers, while `newcomers` prompts make a burst.

        `shared_s`: the step's limit where several clients share it, of which choosing tokens takes `choice_s`.
        There is no room in a step that measures what those answers take alone: it costs no answer anything. While
        `brief` prompts of other clients wait, measuring waits too, for as many steps again.
        """
        self.left -= decodes
        self._decodes = decodes
        if decodes:
            self._decode_s = self.cost.seconds(decodes)
            limit = self.limit(self._decode_s, newcomers)
            if shared_s < inf and newcomers < 2 and self._target is None:
                limit = min(max(shared_s - choice_s, self._decode_s, ITL_FLOOR_S), max(limit, LONGEST_S))
            self.room = limit - self._decode_s
            tiles = -(-(decodes + TILE // 2) // TILE)
            starved = self._mixed.flat(tiles, self._decode_s) > limit
            most = STARVED_PROBE if starved else PROBE
            due = self._since >= most or not self.cost.near(decodes)
            if due and (not brief or self._since >= 2 * most):
                self.measuring, self.left = True, 0

    def limit(self, decode_s: float, newcomers: int = 0) -> float:
        """Return the seconds of a step whose running answers alone take `decode_s`.

        `newcomers`: prompts that wait for their first token and are brief.
        """
        if self._target is not None:
            return max(self._target, decode_s)
        usual = max(min(ITL_FACTOR * decode_s, LONGEST_S), ITL_FLOOR_S, decode_s)
        return max(usual, BURST_S) if newcomers > 1 else usual

    def slowdown(self, decodes: int, newcomers: int) -> float:
        """Return how many times longer prefill takes beside `decodes` running answers than alone."""
        if not decodes:
            return 1.0
        decode_s = self.cost.seconds(decodes)
        limit = self.limit(decode_s, newcomers)
        return limit / max(limit - decode_s, 0.01 * limit)

    def tokens(self, first: int, left: int, logits: bool, seconds: float, minimum: bool) -> int:
        """Return how many of a prompt's `left` tokens from position `first` on fit into `seconds`.

        With `minimum`, the step's first prompt gets some in any case.
        """
        spent = self.max_num_batched_tokens - self.left
        most = min(left, self.left, self.logits_left if logits else self.left)
        if logits or not self._decodes:
            fit = self._cost_of(logits).tokens(seconds, first)
        else:
            until = self._spent_s() + seconds
            fit = self._mixed.tokens(spent, self._attended, first, self._decode_s, until, most)
        if minimum and not self._has_prefill:
            fit = max(fit, self._minimum(self._cost_of(logits), first, spent))
        fit = min(fit, most)
        even = (spent + fit) // TILE * TILE - spent
        return fit if fit == left or even <= 0 or self._decodes else even

    def _minimum(self, cost: PrefillCost, first: int, spent: int) -> int:
        if (
            self._decodes
        ):  # a tile that has begun costs no more for being full, while there is little to attend to
            full = -spent % TILE if first < DEPTH else 0
            return max(full, MIXED_PREFILL_TOKENS)
        if not cost.known:
            return PREFILL_TOKENS
        most = SLOW_PREFILL_TOKENS if self.longest_s < inf else PREFILL_TOKENS
        return max(min(most, cost.tokens(SLOW_STEP_S, first)), SLOW_PREFILL_TOKENS)

    def spend(self, first: int, tokens: int, logits: bool) -> None:
        """Take tokens of a prompt out of the step's room."""
        before = self._spent_s()
        self._has_prefill = True
        self.left -= tokens
        self.logits_left -= tokens if logits else 0
        if logits or not self._decodes:
            self.room -= self._cost_of(logits).seconds(tokens, first)
        else:
            self._attended += tokens * (first + tokens / 2)
            self.room -= self._spent_s() - before

    def _spent_s(self) -> float:
        """Return the seconds that a step beside answers takes with what it has now."""
        if not self._has_prefill:
            return self._decode_s
        return self._mixed.seconds(self.max_num_batched_tokens - self.left, self._attended, self._decode_s)

    def add_decode(self, grammar_s: float = 0.0) -> bool:
        """Let one more answer's newest token into the step if there is room for it and for its grammar's seconds."""
        more = self._decodes + 1
        extra = max(self.cost.seconds(more) - self._decode_s, 0.0) + grammar_s
        if self.left < 1 or extra > self.room:
            return False
        self._decodes, self._decode_s = more, self._decode_s + extra
        self.left, self.room = self.left - 1, self.room - extra
        return True

    # --- what is known -----------------------------------------------------------------------------

    def seconds(self, first: int, tokens: int, logits: bool = False) -> float:
        """Return what `tokens` of a prompt from position `first` on take by themselves; 0 while nothing is known."""
        return self._cost_of(logits).seconds(tokens, first)

    def expected(self, first: int, tokens: int, logits: bool = False) -> float:
        """Return the same for an estimate of a wait: before anything was measured, by the assumed cost."""
        known = self._cost_of(logits).known
        return self.seconds(first, tokens, logits) if known else tokens * self._assumed_token_s

    def max_decodes(self) -> int:
        """Return how many answers may run: a token each, and a step of them no longer than the target or a second.

        Where one alone takes long already, a few share its step all the same.
        """
        longest = self._target or max(LONGEST_S, ITL_FACTOR * self.cost.seconds(1))
        low, high = 1, self.max_num_batched_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost.seconds(middle) <= longest else (low, middle - 1)
        return low

    def learn(self, decodes: int, prefills: list[Prefill], drafted: int, seconds: float) -> float:
        """Update costs by a step of `seconds` with `drafted` draft tokens; return the share its decodes took."""
        self._since = self._since + 1 if prefills and decodes else 0
        if not prefills:
            self.cost.add(decodes + drafted, seconds, drafted=drafted > 0)
            return 1.0
        decode_s = min(self.cost.seconds(decodes), seconds) if decodes else 0.0
        tokens = sum(each.tokens for each in prefills)
        depth = sum(each.tokens * (each.first + each.tokens / 2) for each in prefills) / tokens
        logits = [each.logits for each in prefills]
        cost = self._logits if all(logits) else self._alone
        if not decodes and len(set(logits)) == 1 and (tokens >= TILE or not cost.known):
            cost.add(tokens, int(depth - tokens / 2), seconds)
        elif decodes and not any(logits):
            self._mixed.add(decodes + tokens, tokens, depth, decode_s, seconds)
        return decode_s / seconds if seconds > 0 else 0.0

    def _cost_of(self, logits: bool) -> PrefillCost:
        return self._logits if logits and self._logits.known else self._alone
