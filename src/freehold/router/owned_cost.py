"""What owned machines cost while the ledger's requests ran: dollars an hour, the time they were busy, their share.

A machine is paid for day and night. Three figures bound what of it answers are charged with: the busy time alone (other
work fills the rest), a stated share, and all of it. Overlapping requests keep a machine busy once. People's time is
not in it; `freehold cost` has it. Knows no price of an API.
Path: cli/cost -> owned_machine -> savings -> OwnedMachine.cost
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from freehold import catalog
from freehold.advisor import ownership
from freehold.advisor.breakeven import points, ranged
from freehold.advisor.interval import Interval
from freehold.advisor.ownership import Assumption, Owned
from freehold.advisor.traffic import from_figures

HOUR_S = 3600.0
_PARTS = (  # the assumptions that an hour of a machine hangs on
    "hourly", "price", "box", "resale", "years", "overhead", "draw", "pue", "electricity", "rack",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OwnedMachine:
    """A machine, what an hour of it costs, and the share of it that is charged to the gateway, when idle too."""

    owned: Owned
    hour: Interval  # dollars
    assumed: tuple[Assumption, ...]  # with their sources
    share: Interval | None = None  # 0 to 1; None: from the busy time alone to the whole machine

    def cost(self, busy_s: float, period_s: float) -> Interval:
        """Return dollars of a period in which it was busy for `busy_s` seconds; never less than those."""
        busy = min(busy_s / period_s, 1.0) if period_s > 0 else 0.0
        share = self.share or Interval(busy, 1.0, 1.0)
        low, mid, high = (max(s, busy) for s in (share.low, share.mid, share.high))
        hours = period_s / HOUR_S
        return Interval(
            hours * low * self.hour.low, hours * mid * self.hour.mid, hours * high * self.hour.high
        )


def owned_machine(
    on: str,
    *,
    bought: bool = False,
    share: Interval | None = None,
    overrides: Mapping[str, Interval] | None = None,
) -> OwnedMachine:
    """Return the machine called `on`, such as 2xh100, with `overrides` assumptions by key in place of ours.

    Raises UsageError for unknown hardware, hardware without a price, and values that cannot be.
    """
    owned = Owned(catalog.rig(on), bought)
    fast = ownership.speed(Interval.exactly(1.0))  # an hour's cost does not hang on it
    all_of_them = ownership.assumptions(owned, fast, from_figures(), overrides or {})
    assumed = {key: a for key, a in all_of_them.items() if key in _PARTS}
    hour, _ = ranged(owned.hour, assumed, points(assumed))
    return OwnedMachine(owned, hour, tuple(assumed.values()), share)


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the (begin, end) spans lasted."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        if end > until:
            total += end - max(begin, until)
            until = end
    return total
