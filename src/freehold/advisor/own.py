"""What a user's own cases say, put into a ranking made of published results.

Models tried on the same cases share out among themselves the places that they held, the one that passed most first;
of a draw, who stood first stays so. A model that was not tried keeps its place: nothing was measured of it. One that
stood apart, below the bar or without a published result, joins the ranking's end. So own evidence beats published
evidence between those tried, and says nothing of others. Knows counts; knows no case.
Path: cli/trying -> by_own -> Advice
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from freehold.advisor.interval import Interval

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice


@dataclass(frozen=True, slots=True)
class Own:
    """What a model did with a user's cases. `range`: the share passed in per cent."""

    cases: int
    passed: int
    range: Interval


def by_own(advice: Advice, own: Mapping[str, Own]) -> Advice:
    """Return the advice with the tried models, by id, in the order of their own results."""
    apart = [j for j in (*advice.below, *advice.unproven) if j.model.id in own]
    picks = [*advice.picks, *apart]
    places = [i for i, j in enumerate(picks) if j.model.id in own]
    tried = sorted((picks[i] for i in places), key=lambda j: -own[j.model.id].passed)
    for place, judged in zip(places, tried, strict=True):
        picks[place] = judged
    below = tuple(j for j in advice.below if j not in apart)
    unproven = tuple(j for j in advice.unproven if j not in apart)
    return replace(advice, picks=tuple(picks), below=below, unproven=unproven, own=dict(own))
