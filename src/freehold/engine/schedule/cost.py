"""What steps cost on this machine: by their rows, and by how far back the rows of prompts look.

Knows seconds; knows no sequence, no guess, no clock. No shape is assumed for steps of few rows: on one
machine eight rows cost little more than one, on another sixteen cost less than twelve, since another kernel
takes over. Rows of prompts are bound by arithmetic, so each adds its own price to a step.
Path: Scheduler.learn -> StepCost.add, RowCost.add; Speculation.extend -> best_extra; Scheduler.schedule -> RowCost.rows
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

# Rows of a step that are tried: a tile's widths, then steps of about a third; a cost is soon known for each.
LADDER = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TRIED = frozenset(LADDER)
# Others on the machine only ever slow a step down, so a cost is the lower quartile of so many latest steps: what the
# step takes while it is left alone, which is what rows must be compared by.
SAMPLES = 16
STALE = 500  # steps after which a cost counts as unknown: depth and neighbours change it
# The same for a size that guesses were tried with. Newest tokens alone are measured again and again, but a size that
# looked dear is left alone, and what was measured while others had the machine would keep it from being tried: after a
# pack was written beside the first answers, sixteen of them made a tenth of their guesses.
FORGET = 64
ROW_GUESS = 0.06  # cost of one more row over a lone one's, until it was measured
MARGIN = 1.05  # guesses must promise this much more than plain decoding


class StepCost:
    """Seconds of a step by its rows, learnt from the steps themselves."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._cost: dict[int, float] = {}
        self._until: dict[int, int] = {}  # rows -> step at which their cost is forgotten
        self._rows: list[int] = []  # sorted
        self._steps = 0

    def add(self, rows: int, seconds: float, guessed: bool = False) -> None:
        """Take in how long a step took; `guessed`: some of its rows were guesses."""
        self._steps += 1
        if rows not in self._samples:
            self._samples[rows] = deque(maxlen=SAMPLES)
            insort(self._rows, rows)
        samples = self._samples[rows]
        samples.append(seconds)
        self._cost[rows] = sorted(samples)[(len(samples) - 1) // 4]
        self._until[rows] = max(self._until.get(rows, 0), self._steps + (FORGET if guessed else STALE))
        self._drop_stale()

    def count(self, rows: int) -> int:
        """Return how many recent steps had so many rows."""
        return len(self._samples.get(rows, ()))

    def near(self, rows: int) -> bool:
        """Tell whether so many rows, or nearly so many, were measured lately."""
        at = bisect_left(self._rows, rows - rows // 5)
        return at < len(self._rows) and self._rows[at] <= rows + rows // 5

    def seconds(self, rows: int) -> float:
        """Return the cost of so many rows; between and beyond what was measured, a hopeful guess."""
        known = self._cost.get(rows)
        if known is not None or not self._rows:
            return known or 0.0
        at = bisect_left(self._rows, rows)
        above = self._rows[at] if at < len(self._rows) else None
        if at == 0:
            return self._cost[self._rows[0]]
        below = self._rows[at - 1]
        if above is not None and 2 * above <= 3 * below + 2:  # neighbours on the ladder, or nearer
            share = (rows - below) / (above - below)
            return self._cost[below] * (1 - share) + self._cost[above] * share
        hope = self._cost[below] + ROW_GUESS * self._cost[self._rows[0]] * (rows - below)
        return hope if above is None else min(hope, self._cost[above])

    def at_most(self, rows: int) -> float:
        """Return what so many rows will hardly exceed: each no dearer than those of the nearest fewer measured."""
        at = bisect_left(self._rows, rows + 1)
        if at == 0:
            return self.seconds(rows)
        below = self._rows[at - 1]
        return self._cost[below] * rows / below

    def _drop_stale(self) -> None:
        for rows in [r for r in self._rows if self._until[r] <= self._steps]:
            del self._samples[rows], self._cost[rows], self._until[rows]
            self._rows.remove(rows)


MOST_ROWS = 4096  # no step is larger
ROW_SAMPLES = 8  # chunks, of a depth or of any, that say what a row costs
DEPTH = (
    512  # positions within which depth is not told apart: nearer chunks differ by noise more than by depth
)


class RowCost:
    """Seconds that a prompt's row adds to a step: a price, and a price for each position it looks back on.

    The latter from chunks far apart, the former from the latest ones, both by medians (as Theil and Sen have
    it), which a few disturbed steps do not move.
    """

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=ROW_SAMPLES)  # mean depth, seconds a row
        self._at: dict[int, deque[tuple[float, float]]] = {}  # the same by depth
        self.slope = 0.0  # seconds for each position that a row looks back on
        self._base = 0.0

    @property
    def flat(self) -> float:
        """Seconds of a row that looks back on nothing; 0 while nothing is known."""
        return self._each(0)

    @property
    def known(self) -> bool:
        """Tell whether anything was measured."""
        return bool(self._latest)

    def add(self, rows: int, first: int, seconds: float) -> None:
        """Take in what a chunk of `rows` rows from position `first` on added to a step."""
        sample = (first + rows / 2, seconds / rows)
        self._latest.append(sample)
        self._at.setdefault(int(sample[0]) // DEPTH, deque(maxlen=ROW_SAMPLES)).append(sample)
        if len(self._at) > 1:
            self.slope = max(self._fitted_slope(), 0.0)
        prices = [y - self.slope * x for x, y in self._latest]
        # A rise counts once two of the latest three show it, a fall when half of all do: tokens wait for the former.
        self._base = max(median(prices), median(prices[-3:]))

    def _fitted_slope(self) -> float:
        """Return the median slope between depths, each seen as its middle sample."""
        middles = [(median(x for x, _ in at), median(y for _, y in at)) for at in self._at.values()]
        return median((y - b) / (x - a) for i, (x, y) in enumerate(middles) for a, b in middles[:i] if x != a)

    def seconds(self, rows: int, first: int) -> float:
        """Return what so many rows from position `first` on would add; 0 while nothing is known."""
        return rows * self._each(first + rows / 2)

    def rows(self, seconds: float, first: int) -> int:
        """Return how many rows from position `first` on fit into so many seconds; 0 while nothing is known."""
        each = self._each(first)
        if each <= 0.0 or seconds <= 0.0:
            return 0
        # rows * (each + slope * rows / 2) = seconds, solved without the cancellation of the school's formula
        return int(2 * seconds / (each + (each * each + 2 * self.slope * seconds) ** 0.5))

    def _each(self, depth: float) -> float:
        """Return the seconds of a row; a line fitted to noise may fall below nothing, a row never does."""
        if not self._latest:
            return 0.0
        return max(self._base + self.slope * depth, min(y for _, y in self._latest) / 16)


TILE = 16  # kernels multiply 16 rows at a time, so a step costs by the tiles it begins
HOPE = 0.75  # of what a tile of a prompt costs alone: a tile more beside answers, until it was tried
# Steps beside answers after which a size that none of them had counts as never tried. What was measured while others
# had the machine would keep it from being tried again: 190 steps of 8 rows, which took two thirds of what 56 take.
FORGET = 64


class MixedCost:
    """Seconds of a step of answers' newest tokens and prompts' rows, by its tiles and what the latter look back on."""

    def __init__(self, alone: RowCost) -> None:
        self._alone = alone
        self._price = RowCost()  # for its slope
        self._samples: dict[int, deque[tuple[float, float]]] = {}  # tiles -> (positions seen, seconds)
        self._seen: dict[int, int] = {}  # tiles -> step of the latest sample
        self._steps = 0

    @property
    def slope(self) -> float:
        """Seconds for each position that a row looks back on."""
        return self._price.slope or self._alone.slope

    def add(self, rows: int, chunk: int, depth: float, lone: float, seconds: float) -> None:
        """Take in a step of `rows`, `chunk` of them of prompts at a mean depth, whose answers alone take `lone`."""
        self._price.add(chunk, max(int(depth - chunk / 2), 0), max(seconds - lone, 0.0))
        tiles = -(-rows // TILE)
        self._samples.setdefault(tiles, deque(maxlen=ROW_SAMPLES)).append((chunk * depth, seconds))
        self._steps += 1
        self._seen[tiles] = self._steps
        for old in [k for k, step in self._seen.items() if self._steps - step >= FORGET]:
            del self._samples[old], self._seen[old]

    def flat(self, tiles: int, lone: float) -> float:
        """Return what a step of so many tiles takes, looking back apart; a hopeful guess until it was tried."""
        samples = self._samples.get(tiles)
        if samples:
            costs = [seconds - self.slope * seen for seen, seconds in samples]
            return max(median(costs), median(costs[-3:]), lone)
        each = self._alone.flat * TILE
        less = max((k for k in self._samples if k < tiles), default=0)
        if less:
            return self.flat(less, lone) + HOPE * each * (tiles - less)
        more = min(self._samples, default=0)
        return lone + ((self.flat(more, lone) - lone) / more if more else each) * tiles

    def rows(self, spent: int, seen: float, first: int, lone: float, seconds: float) -> int:
        """Return how many rows of a prompt from position `first` on fit into a step that may take `seconds`.

        It has `spent` rows already, which look back on `seen` positions.
        """
        best, tiles = 0, -(-(spent + 1) // TILE)
        while (room := seconds - self.slope * seen - self.flat(tiles, lone)) > 0.0:
            fit = tiles * TILE - spent
            # rows * (first + rows / 2) * slope = room
            if self.slope * fit * (first + fit / 2) > room:
                root = (first * first + 2 * room / self.slope) ** 0.5
                return max(best, int(2 * room / self.slope / (first + root)))
            best, tiles = fit, tiles + 1
            if best > MOST_ROWS:
                break
        return best

    def seconds(self, rows: int, seen: float, lone: float) -> float:
        """Return what a step of so many rows takes."""
        return self.flat(-(-rows // TILE), lone) + self.slope * seen


def best_extra(
    gains: Sequence[float],
    plain: int,
    cost: Callable[[int], float],
    fits: Callable[[int], bool] = lambda _: True,
) -> int:
    """Return how many guesses, likeliest first, give the most tokens a second beside `plain` lone rows.

    `gains` are the chances that each guess becomes a token, falling. 0 when no number promises to pay; `fits` tells
    whether a step may have so many rows.
    """
    best, extra = MARGIN * plain / cost(plain), 0
    expected = float(plain)
    for count, gain in enumerate(gains, 1):
        expected += gain
        if plain + count in _TRIED or count == len(gains):
            if not fits(plain + count):
                break
            rate = expected / cost(plain + count)
            if rate > best:
                best, extra = rate, count
    return extra
