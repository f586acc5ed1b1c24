"""What steps cost on this machine: by their tokens, and by the positions that tokens of prompts attend to.

Knows seconds; knows no sequence, no draft, no clock. No shape is assumed for steps of few tokens: on one
machine eight cost little more than one, on another sixteen cost less than twelve, since another kernel
takes over. Prefill is bound by arithmetic, so each of its tokens adds its own cost to a step.
Path: Scheduler.learn -> StepCost.add, PrefillCost.add; Budget.tokens -> PrefillCost.tokens, MixedCost.tokens
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from statistics import median

# Other processes only ever slow a step down, so a cost is the lower quartile of the latest SAMPLES steps: what the step
# takes on an idle machine, which is what sizes must be compared by.
SAMPLES = 16
STALE = 500  # steps after which a cost counts as unknown: depth and neighbours change it
# The same for a size that had draft tokens or prefill. Newest tokens alone are measured again and again, but a size
# that looked dear is not tried, and a cost measured on a busy machine would keep it so: after a pack was written beside
# the first answers, sixteen of them verified a tenth of their draft tokens; 190 steps had 8 tokens of prefill, which
# took two thirds of what 56 take.
FORGET = 64
EXTRA_TOKEN = 0.06  # cost of one more token in a step over that of one alone, until it was measured


class StepCost:
    """Seconds of a step by its tokens, learnt from the steps themselves."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._cost: dict[int, float] = {}
        self._until: dict[int, int] = {}  # tokens -> step at which their cost is forgotten
        self._sizes: list[int] = []  # measured, sorted
        self._steps = 0
        self.lone = 0.0  # seconds of a single token, as last known; 0 while nothing was measured
        # The least that it ever was: beside other processes, and at depth, it takes longer
        self.lone_at_best = 0.0

    def add(self, tokens: int, seconds: float, drafted: bool = False) -> None:
        """Add a sample; `drafted`: some of the step's tokens were of a draft."""
        self._steps += 1
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
