"""The expression language in which licence data says when a term holds: `commercial and users > 100_000_000`.

Knows its words and how they join (`or` of `and`s, `not` before a word); knows no user
and gives no answer: that is the advisor's work, which has three values.
Path: licence.py -> parse -> Condition -> advisor.facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What each word means. Which of the user's facts decide it is the advisor's to know.
FLAGS = {
    "commercial": "the purpose is not personal or academic research",
    "production": "it serves a product or the work inside a firm, beyond tests",
    "internal": "nothing of the model leaves the firm",
    "offers_access": "third parties get access to the model itself",
    "embeds": "customers use a product or service built on it",
    "model_service": "the group sells inference or fine-tuning of language models",
    "assistant": "the group sells an AI work assistant",
    "redistributes": "weights are passed on",
    "shares": "weights are passed on, or access to the model is offered",
    "supplies": "others get the weights, access to the model, or a product built on it",
    "modifies": "the model is changed or fine-tuned",
    "distils": "outputs train another model",
    "same_family": "the trained model is of the family the licence itself covers",
    "narrow": "the trained model only sorts or extracts, as a classifier does",
    "end_user": "the model is only used inside another company's product",
    "bypasses_guardrails": "guardrails in the model are weakened",
    "eu": "the principal place of business is in the European Union",
    "uk": "the principal place of business is in the United Kingdom",
    "korea": "the principal place of business is in South Korea",
    "multimodal": "the model takes more than text",
}
AMOUNTS = {
    "users": "monthly users of all products",
    "revenue_month": "the group's revenue in a month, in dollars",
    "revenue_year": "the group's revenue in 12 months, in dollars",
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
    match = _ATOM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a condition")
    negated, word, above = bool(match[1]), match[2], match[3]
    if word not in (AMOUNTS if above else FLAGS):
        raise ValueError(f"{word!r} is no {'amount' if above else 'flag'}")
    return Atom(word, negated, int(above) if above else None)
