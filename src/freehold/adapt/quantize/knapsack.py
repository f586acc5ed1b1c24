"""One option for each item, so that costs are least and sizes stay under a limit: by gain per byte, deterministic.

Knows numbers. An item's options that no price of a byte would choose are left out first (the lower convex hull of
cost over size); then every item starts with its smallest, and the steps to the next larger ones are taken in the order
of cost saved per byte. That is the optimum for the bytes it uses; what is left at the end buys the best single steps
that still fit.
Path: mix.mixed -> chosen_options
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class SizedOption(NamedTuple):
    """What an item may be: its bytes, and what it costs (lower is better)."""

    size: int
    cost: float


class _Step(NamedTuple):
    gain: float  # cost saved per byte
    item: int
    option: int  # the one to change to


def chosen_options(items: Sequence[Sequence[SizedOption]], limit: int) -> list[int] | None:
    """Return the index of each item's option; None where even the smallest ones exceed `limit` together."""
    hulls = [_hull(options) for options in items]
    chosen = [hull[0] for hull in hulls]
    left = limit - sum(options[i].size for options, i in zip(items, chosen, strict=True))
    if left < 0:
        return None
    steps = [
        _Step(_gain(options[a], options[b]), item, b)
        for item, (options, hull) in enumerate(zip(items, hulls, strict=True))
        for a, b in itertools.pairwise(hull)
    ]
    blocked: set[int] = set()
    for step in sorted(steps, key=lambda s: (-s.gain, s.item, s.option)):
        if step.item in blocked:
            continue  # its earlier step did not fit, and a larger one would not either
        extra = items[step.item][step.option].size - items[step.item][chosen[step.item]].size
        if extra <= left:
            chosen[step.item], left = step.option, left - extra
        else:
            blocked.add(step.item)
    return chosen


def _hull(options: Sequence[SizedOption]) -> list[int]:
    """Return indices on the lower convex hull, by size; ties go to the first."""
    order = sorted(range(len(options)), key=lambda i: (options[i].size, options[i].cost, i))
    kept: list[int] = []
    for i in order:
        if kept and options[i].cost >= options[kept[-1]].cost:
            continue
        while len(kept) > 1 and _gain(options[kept[-2]], options[kept[-1]]) <= _gain(
            options[kept[-1]], options[i]
        ):
            kept.pop()
        kept.append(i)
    return kept


def _gain(a: SizedOption, b: SizedOption) -> float:
    return (a.cost - b.cost) / max(b.size - a.size, 1)
