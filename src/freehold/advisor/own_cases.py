"""Reorders a ranking made of published results by a user's own cases.

Models that ran the same cases are sorted by cases passed, within the places that they had; in a draw the earlier
place wins. A model that was not tried keeps its place. One below the bar or without a published result joins the
ranking's end once tried. So own evidence outranks published evidence among tried models and leaves others alone.
Knows counts; knows no case.
Path: cli/report/trying -> by_own -> Advice
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from freehold.advisor.advice import Advice, Own, by_results


def by_own(advice: Advice, own: Mapping[str, Own]) -> Advice:
    """Return the advice with the tried models, by id, in the order of their own results."""
    apart = [j for j in (*advice.below, *advice.unproven) if j.model.id in own]
    picks = by_results([*advice.picks, *apart], own)
    below = tuple(j for j in advice.below if j not in apart)
    unproven = tuple(j for j in advice.unproven if j not in apart)
    return replace(advice, picks=tuple(picks), below=below, unproven=unproven, own=dict(own))
