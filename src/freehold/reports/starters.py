"""The models that a person without any begins with, a row each, and how fast a speed is in a word.

The page's first screen shows the same models as `freehold run` without a name. Knows no wording of the page.
Path: answer -> starters_json -> choosing.starters
"""

from __future__ import annotations

from typing import Any, Literal

from freehold.choosing import starters
from freehold.config import Settings

SCHEMA = 1
SHOWN = 5
Pace = Literal["fast", "readable", "slow", "unusable"]
# Tokens a second. A person reads about 5: below one, an answer of 300 tokens takes over five minutes.
FAST, READABLE, SLOW = 15.0, 5.0, 1.0


def pace(tokens_per_second: float) -> Pace:
    """Return how fast an answer is for who reads it while it is written."""
    if tokens_per_second >= FAST:
        return "fast"
    if tokens_per_second >= READABLE:
        return "readable"
    return "slow" if tokens_per_second >= SLOW else "unusable"


def starters_json(settings: Settings) -> dict[str, Any]:
    """Return up to SHOWN models that run well here and can be fetched here, the best first."""
    return {
        "schema": SCHEMA,
        "models": [
            {
                "name": each.name,
                "bytes": each.download.bytes,
                "source": each.download.source,
                "held": each.held,
                "disk": each.disk,
                "memory": each.memory,
                "speed": each.speed.as_json(),
                "pace": pace(each.speed.mid),
                "about": each.about,
            }
            for each in starters(settings, SHOWN)
        ],
    }
