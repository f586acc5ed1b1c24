"""The little language in which licence data says when a term holds: `commercial and users > 100_000_000`.

Knows the words that may stand there and how they join (`or` of `and`s, `not` before a word); knows no user
and gives no answer: that is the advisor's work, which has three values.
Path: licence.py -> parse -> Condition -> advisor.facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What each word asks, so that an undecided verdict can name the fact that would decide.
FLAGS = {
    "commercial": "what the model is for (purpose)",
    "production": "what the model is for (purpose)",
    "internal": "what the model is for (purpose)",
    "offers_access": "whether third parties get access to the model itself",
    "assistant": "whether you sell an AI work assistant",
    "redistributes": "whether you pass the weights on",
    "shares": "whether you pass the weights on or offer access to them",
    "modifies": "whether you change or fine-tune the model",
    "distils": "whether outputs will train another model",
    "end_user": "whether you only use somebody else's product",
    "bypasses_guardrails": "whether you weaken guardrails in the model",
    "eu": "where your principal seat is",
    "uk": "where your principal seat is",
    "korea": "where your principal seat is",
    "multimodal": "whether this model takes more than text",
}
AMOUNTS = {
    "users": "monthly users of your products",
    "revenue_month": "your group's revenue in a month, in dollars",
    "revenue_year": "your group's revenue in 12 months, in dollars",
}
_ATOM = re.compile(r"(not )?([a-z_]+)(?: > ([0-9_]+))?")


@dataclass(frozen=True, slots=True)
class Atom:
    """One word: a flag, or an amount and the figure it must exceed."""

    word: str
    negated: bool = False
    above: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when every atom of any of its `ways` does. No ways at all: always."""

    ways: tuple[tuple[Atom, ...], ...] = ()


def parse(text: str) -> Condition:
    """Read a condition; an empty text always holds. Raises ValueError naming the word that is none."""
    if not text.strip():
        return Condition()
    return Condition(tuple(tuple(map(_atom, way.split(" and "))) for way in text.split(" or ")))


def _atom(text: str) -> Atom:
    found = _ATOM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no condition")
    negated, word, above = bool(found[1]), found[2], found[3]
    if word not in (AMOUNTS if above else FLAGS):
        raise ValueError(f"{word!r} is no {'amount' if above else 'flag'}")
    return Atom(word, negated, int(above) if above else None)
