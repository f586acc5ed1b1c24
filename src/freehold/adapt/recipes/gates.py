"""Gates: whether a stage's result passes, by paired tests on items that were not trained on.

Where nothing was learnt, a gate passes with a chance of at most p, however often it is tried and wherever it stops:

- McNemar's exact test is two-sided, and the result must be the better one: half of p for one look.
- Another result on the same items is another look. The k-th one must reach 2 p / (k (k + 1)). Each look passes by
  chance with half of that, and the sum of 1 / (k (k + 1)) over all k is 1, so all looks together stay within p.
- Asking items stops early only where the remaining ones cannot change the verdict, so it changes none.

Knows marks from 0 to 1; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from freehold.adapt.evals.paired import mcnemar, resampled, wilson
from freehold.adapt.recipes.recipe import GateRule

LEVEL = 0.95  # of the interval whose lower bound `at_least` is compared with


@dataclass(frozen=True, slots=True)
class GateMarks:
    """Marks of the same items, in the same order: the result's, and those of what it is compared with."""

    own: tuple[float, ...]
    other: tuple[float, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether every item is right or wrong; otherwise marks are scores."""
        return all(mark in (0.0, 1.0) for mark in (*self.own, *self.other))

    @property
    def wins(self) -> int:
        """Items on which the result is the better one."""
        return sum(a > b for a, b in zip(self.own, self.other, strict=True)) if self.other else 0

    @property
    def losses(self) -> int:
        """Items on which it is the worse one."""
        return sum(a < b for a, b in zip(self.own, self.other, strict=True)) if self.other else 0


@dataclass(frozen=True, slots=True)
class GateResult:
    """A verdict: `failures` has a line for each condition that is not met; `figures` are in receipts and JSON."""

    failures: tuple[str, ...]
    figures: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every condition is met."""
        return not self.failures


def allowed(p: float, look: int) -> float:
    """Return what the p of a look must reach, so that all looks together pass by chance with at most p."""
    return p * 2 / (look * (look + 1))


def verdict(
    rule: GateRule,
    marks: GateMarks | None,
    *,
    look: int = 1,
    lost: int = 0,
    divergence: float | None = None,
) -> GateResult:
    """Return whether a gate is met. `look`: which result on these items this is, from 1.

    `lost`: facts that a training lost. `divergence`: of a model file from its source; None: not measured.
    """
    failures: list[str] = []
    figures: dict[str, Any] = {}
    if marks is not None and rule.asks:
        figures |= {"items": len(marks.own), "share": sum(marks.own) / len(marks.own), "look": look}
    if marks is not None and rule.better_than:
        failures += _beaten(rule, marks, look, figures)
    if marks is not None and rule.at_least is not None:
        low = wilson(marks.own, LEVEL).low
        figures["low"] = low
        if low < rule.at_least:
            share = f"{figures['share']:.1%} of {len(marks.own)} items, lower bound {low:.1%}"
            failures.append(f"{share}; {rule.at_least:.1%} is required")
    if rule.forgets_at_most is not None:
        figures["lost"] = lost
        if lost > rule.forgets_at_most:
            failures.append(
                f"{lost} facts that the base knew are lost; at most {rule.forgets_at_most} may be"
            )
    if rule.kld is not None:
        figures["divergence"] = divergence
        if divergence is None:
            failures.append("its divergence from its source was not measured")
        elif divergence > rule.kld:
            failures.append(f"{divergence:.4f} nats per token from its source; at most {rule.kld:g} may be")
    return GateResult(tuple(failures), figures)


def hopeless(rule: GateRule, own: Sequence[float], other: Sequence[float], look: int, total: int) -> bool:
    """Tell whether a gate fails whatever the remaining items give. `own`: marks so far; `other`: all of them."""
    rest = total - len(own)
    best = GateMarks((*own, *(1.0,) * rest), tuple(other))
    only_items = GateRule(better_than=rule.better_than, p=rule.p, at_least=rule.at_least)
    return not verdict(only_items, best, look=look).passed


def _beaten(rule: GateRule, marks: GateMarks, look: int, figures: dict[str, Any]) -> list[str]:
    """Compare a result with another; add the figures. Scores are compared by resampling items."""
    limit = allowed(rule.p, look)
    total = len(marks.own)
    other = sum(marks.other) / total
    wins, losses = marks.wins, marks.losses
    figures |= {"other": other, "wins": wins, "losses": losses, "p_allowed": limit}
    shown = f"{figures['share']:.1%} of {total} items, {rule.better_than} {other:.1%}"
    again = f" at look {look} on these items" if look > 1 else ""
    if marks.plain:
        p = mcnemar(wins, losses)
        figures["p"] = p
        if wins > losses and p <= limit:
            return []
        text = (
            f"{shown} ({wins} gained, {losses} lost, p = {p:.2g}); p at most {limit:.2g} is required{again}"
        )
        return [text]
    steps = [a - b for a, b in zip(marks.own, marks.other, strict=True)]
    low, mean, high = resampled(steps, 1 - limit)
    figures |= {"difference": mean, "difference_low": low, "difference_high": high}
    # Resampling is too narrow where few items differ; the signs of the differences are exact.
    p = mcnemar(wins, losses)
    figures["p"] = p
    if low > 0 and wins > losses and p <= limit:
        return []
    bounds = f"difference {mean:+.3f} ({low:+.3f} to {high:+.3f} at {1 - limit:.1%}"
    return [f"{shown}; {bounds}, signs p = {p:.2g}); a difference above 0 is required{again}"]
