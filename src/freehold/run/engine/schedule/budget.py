"""What steps cost, how many seconds one may take, and how many tokens of prefill that is.

Knows what steps cost and how long running answers may wait; knows no tenant, no block and no clock. One budget a
step: the newest tokens of running answers come first, prefill gets what is left. Beside interactive answers a step
may take a small multiple of what their tokens take alone, so that a prompt of any length delays each token by no
more; without them a step is as long as a cancellation or a new request may wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import inf
from statistics import median
from typing import NamedTuple

# What steps cost on this machine: by their tokens, and by the positions that tokens of prompts attend to.
# No shape is assumed for steps of few tokens: on one machine eight cost little more than one, on another
# sixteen cost less than twelve, since another kernel takes over. Prefill is bound by arithmetic, so each of
# its tokens adds its own cost to a step.
# Other processes only ever slow a step down, so a cost is the lower quartile of the latest SAMPLES steps: what the step
# takes on an idle machine, which is what sizes must be compared by.
SAMPLES = 16
STALE = 500  # steps after which a cost counts as unknown: depth and neighbours change it
# The same for a size that had draft tokens or prefill. Newest tokens alone are measured again and again, but a size
# that looked dear is not tried, and a cost measured on a busy machine would keep it so: after a pack was written beside
# the first answers, sixteen of them verified a tenth of their draft tokens; 190 steps had 8 tokens of prefill, which
# took two thirds of what 56 take.
FORGET = 64
COLD = 2.0
EXTRA_TOKEN = 0.06  # cost of one more token in a step over that of one alone, until it was measured


class StepCost:
    """Seconds of a step by its tokens, learnt from the steps themselves."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._cost: dict[int, float] = {}
        self._until: dict[int, int] = {}  # tokens -> step at which their cost is forgotten
        self._sizes: list[int] = []  # measured, sorted
        self._drafted: set[int] = set()  # sizes that a step with draft tokens had
        self._steps = 0
        self.lone = 0.0  # seconds of a single token, as last known; 0 while nothing was measured
        # The least that it ever was: beside other processes, and at depth, it takes longer
        self.lone_at_best = 0.0

    def add(self, tokens: int, seconds: float, drafted: bool = False) -> None:
        """Add a sample; `drafted`: some of the step's tokens were of a draft.

        The first such step of a size is left out if it took COLD times what is expected: it touched memory for the
        first time, as no later one will.
        """
        self._steps += 1
        if drafted and tokens not in self._drafted:
            self._drafted.add(tokens)
            if seconds > COLD * self.seconds(tokens) > 0.0:
                return
        if tokens not in self._samples:
            self._samples[tokens] = deque(maxlen=SAMPLES)
            insort(self._sizes, tokens)
        samples = self._samples[tokens]
        samples.append(seconds)
        cost = self._cost[tokens] = sorted(samples)[(len(samples) - 1) // 4]
        self.lone = cost if tokens == 1 else min(self.lone or cost, cost)
        self.lone_at_best = min(self.lone_at_best or self.lone, self.lone)
        self._until[tokens] = max(self._until.get(tokens, 0), self._steps + (FORGET if drafted else STALE))
        self._drop_stale()

    def count(self, tokens: int) -> int:
        """Return how many recent steps had this many tokens."""
        return len(self._samples.get(tokens, ()))

    def near(self, tokens: int) -> bool:
        """Return whether about this many tokens were measured lately."""
        at = bisect_left(self._sizes, tokens - tokens // 5)
        return at < len(self._sizes) and self._sizes[at] <= tokens + tokens // 5

    def seconds(self, tokens: int) -> float:
        """Return the cost of this many tokens; between and beyond what was measured, an optimistic estimate."""
        known = self._cost.get(tokens)
        if known is not None or not self._sizes:
            return known or 0.0
        at = bisect_left(self._sizes, tokens)
        above = self._sizes[at] if at < len(self._sizes) else None
        if at == 0:
            return self._cost[self._sizes[0]]
        below = self._sizes[at - 1]
        if above is not None and 2 * above <= 3 * below + 2:  # neighbours on the ladder, or nearer
            share = (tokens - below) / (above - below)
            return self._cost[below] * (1 - share) + self._cost[above] * share
        estimate = self._cost[below] + EXTRA_TOKEN * self._cost[self._sizes[0]] * (tokens - below)
        return estimate if above is None else min(estimate, self._cost[above])

    def between(self, tokens: int) -> float:
        """Return the cost on a straight line between the nearest sizes measured, however far apart they are.

        For comparing shares of a step: an estimate that is optimistic there would be paid by another client.
        """
        at = bisect_left(self._sizes, tokens)
        if tokens in self._cost or at in (0, len(self._sizes)):
            return self.seconds(tokens)
        below, above = self._sizes[at - 1], self._sizes[at]
        share = (tokens - below) / (above - below)
        return self._cost[below] * (1 - share) + self._cost[above] * share

    def at_most(self, tokens: int) -> float:
        """Return what this many tokens hardly exceed: each costs no more than at the nearest smaller size measured."""
        at = bisect_left(self._sizes, tokens + 1)
        if at == 0:
            return self.seconds(tokens)
        below = self._sizes[at - 1]
        return self._cost[below] * tokens / below

    def _drop_stale(self) -> None:
        for tokens in [r for r in self._sizes if self._until[r] <= self._steps]:
            del self._samples[tokens], self._cost[tokens], self._until[tokens]
            self._sizes.remove(tokens)


CHUNK_SAMPLES = 8  # chunks, of a depth or of any, that say what a token costs
DEPTH = 512  # positions that count as one depth: nearer chunks differ by noise more than by depth


class PrefillCost:
    """Seconds that a prompt's token adds to a step: a base, and a slope over the positions it attends to.

    The slope comes from chunks far apart, the base from the latest ones, both by medians (the Theil-Sen estimator),
    which a few disturbed steps do not move.
    """

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=CHUNK_SAMPLES)  # mean depth, seconds a token
        self._at: dict[int, deque[tuple[float, float]]] = {}  # the same by depth
        self.slope = 0.0  # seconds for each position that a token attends to
        self._base = 0.0

    @property
    def flat(self) -> float:
        """Seconds of a token that attends to no other; 0 while nothing is known."""
        return self._each(0)

    @property
    def known(self) -> bool:
        """Tell whether anything was measured."""
        return bool(self._latest)

    def add(self, tokens: int, first: int, seconds: float) -> None:
        """Add a sample: what a chunk of `tokens` from position `first` on added to a step."""
        sample = (first + tokens / 2, seconds / tokens)
        self._latest.append(sample)
        self._at.setdefault(int(sample[0]) // DEPTH, deque(maxlen=CHUNK_SAMPLES)).append(sample)
        if len(self._at) > 1:
            self.slope = max(self._fitted_slope(), 0.0)
        costs = [y - self.slope * x for x, y in self._latest]
        # A rise counts once two of the latest three show it, a fall when half of all do: answers wait for the former.
        self._base = max(median(costs), median(costs[-3:]))

    def _fitted_slope(self) -> float:
        """Return the median slope between depths, each seen as its middle sample."""
        middles = [(median(x for x, _ in at), median(y for _, y in at)) for at in self._at.values()]
        return median((y - b) / (x - a) for i, (x, y) in enumerate(middles) for a, b in middles[:i] if x != a)

    def seconds(self, tokens: int, first: int) -> float:
        """Return what this many tokens from position `first` on would add; 0 while nothing is known."""
        return tokens * self._each(first + tokens / 2)

    def tokens(self, seconds: float, first: int) -> int:
        """Return how many tokens from position `first` on fit into this many seconds; 0 while nothing is known."""
        each = self._each(first)
        if each <= 0.0 or seconds <= 0.0:
            return 0
        # tokens * (each + slope * tokens / 2) = seconds, solved in the form that does not cancel
        return int(2 * seconds / (each + (each * each + 2 * self.slope * seconds) ** 0.5))

    def _each(self, depth: float) -> float:
        """Return the seconds of a token; a line fitted to noise may fall below zero, so there is a floor."""
        if not self._latest:
            return 0.0
        return max(self._base + self.slope * depth, min(y for _, y in self._latest) / 16)


TILE = 16  # kernels multiply 16 rows at a time, so a step costs by the tiles it begins
UNTRIED = 0.75  # of what a tile of prefill costs alone: a tile more beside answers, until it was tried


class MixedCost:
    """Seconds of a step of answers' newest tokens and prefill, by its tiles and the positions the latter attends to."""

    def __init__(self, alone: PrefillCost) -> None:
        self._alone = alone
        self._prefill = PrefillCost()  # for its slope
        self._samples: dict[int, deque[tuple[float, float]]] = {}  # tiles -> (positions attended to, seconds)
        self._sampled: dict[int, int] = {}  # tiles -> step of the latest sample
        self._steps = 0

    @property
    def slope(self) -> float:
        """Seconds for each position that a token attends to."""
        return self._prefill.slope or self._alone.slope

    def add(self, tokens: int, prefill: int, depth: float, decode_s: float, seconds: float) -> None:
        """Add a sample: a step of `tokens`, `prefill` of them at a mean depth; its answers alone take `decode_s`."""
        self._prefill.add(prefill, max(int(depth - prefill / 2), 0), max(seconds - decode_s, 0.0))
        tiles = -(-tokens // TILE)
        self._samples.setdefault(tiles, deque(maxlen=CHUNK_SAMPLES)).append((prefill * depth, seconds))
        self._steps += 1
        self._sampled[tiles] = self._steps
        for old in [k for k, step in self._sampled.items() if self._steps - step >= FORGET]:
            del self._samples[old], self._sampled[old]

    def flat(self, tiles: int, decode_s: float) -> float:
        """Return what a step of this many tiles takes without attention; an optimistic estimate until it was tried."""
        samples = self._samples.get(tiles)
        if samples:
            costs = [seconds - self.slope * attended for attended, seconds in samples]
            return max(median(costs), median(costs[-3:]), decode_s)
        each = self._alone.flat * TILE
        less = max((k for k in self._samples if k < tiles), default=0)
        if less:
            return self.flat(less, decode_s) + UNTRIED * each * (tiles - less)
        more = min(self._samples, default=0)
        return decode_s + ((self.flat(more, decode_s) - decode_s) / more if more else each) * tiles

    def tokens(
        self, spent: int, attended: float, first: int, decode_s: float, seconds: float, most: int
    ) -> int:
        """Return how many of a prompt's `most` tokens from position `first` on fit into a step that may take `seconds`.

        It has `spent` tokens already, whose prefill attends to `attended` positions.
        """
        best, tiles = 0, -(-(spent + 1) // TILE)
        while best < most and (room := seconds - self.slope * attended - self.flat(tiles, decode_s)) > 0.0:
            fit = tiles * TILE - spent
            # tokens * (first + tokens / 2) * slope = room
            if self.slope * fit * (first + fit / 2) > room:
                root = (first * first + 2 * room / self.slope) ** 0.5
                return min(max(best, int(2 * room / self.slope / (first + root))), most)
            best, tiles = fit, tiles + 1
        return min(best, most)

    def seconds(self, tokens: int, attended: float, decode_s: float) -> float:
        """Return what a step of this many tokens takes."""
        return self.flat(-(-tokens // TILE), decode_s) + self.slope * attended


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
# follows. On a 0.5b three are 45 ms, in which 48 tokens of a prompt are computed at some 93 % of the full speed. They
# are tokens on a free machine: the crowd itself makes each take half as long again, and steps would grow with it.
# Where a token takes far longer, at depth, a step has two and a quarter of those.
SHARED_TOKENS, SHARED_NOW = 3, 2.25
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
        room = max(self.left, 0)  # a picture that is not cut may exceed a step
        most = min(left, room, self.logits_left if logits else room)
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
