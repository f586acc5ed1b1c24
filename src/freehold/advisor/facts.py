"""What somebody says of themselves: purpose, users, revenue, seat, and what they will do with a model.

What was not said is unknown, and stays so: a condition over it has three values. Knows no licence.
Path: cli/license or freehold.licence -> Facts -> holds(condition) -> verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from freehold.catalog.conditions import AMOUNTS, FLAGS, Atom, Condition
from freehold.config import nearest
from freehold.errors import UsageError

PURPOSES = {
    "commercial": "products or services of a firm, paid or free",
    "internal": "work inside a firm; nothing of the model leaves it",
    "evaluation": "tests in a firm that serve no user",
    "research": "personal or academic, with no business behind it",
}
# fmt: off
EU = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "EU", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT",
    "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Facts:
    """The user's facts; None and empty: not said.

    A firm's use that stays inside it (internal, evaluation) means no access for others, no weights passed on,
    nothing sold, unless said otherwise. One of month's and year's revenue stands in for the other, at a
    twelfth or twelvefold. Raises UsageError for a value that is none.
    """

    purpose: str = ""  # one of PURPOSES
    users: int | None = None  # monthly users of all your products
    revenue_month: float | None = None  # of the whole group, in dollars
    revenue_year: float | None = None
    offers_access: bool | None = None  # third parties reach the model itself, by API for instance
    assistant: bool | None = None  # you sell an AI work assistant
    redistributes: bool | None = None  # weights leave your house
    modifies: bool | None = None  # fine-tuned, merged, requantised
    distils: bool | None = None  # outputs train another model
    seat: str = ""  # ISO 3166 code of your country, or EU
    end_user: bool = False  # you only use a product of others; who runs a model does not
    bypasses_guardrails: bool = False  # you weaken guardrails in the model

    def __post_init__(self) -> None:
        """Refuse what is no purpose, no country and no amount."""
        if self.purpose and self.purpose not in PURPOSES:
            raise UsageError(f"purpose {self.purpose!r} is none of {', '.join(PURPOSES)}")
        if self.seat and not (len(self.seat) == 2 and self.seat.isascii() and self.seat.isalpha()):
            raise UsageError(
                f"seat {self.seat!r} is no country code", "write two letters, such as DE, US or EU"
            )
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e15:
                raise UsageError(f"{name} = {value!r} is not within 0..1e15")

    def flag(self, word: str, multimodal: bool | None = None) -> bool | None:
        """Say whether a word of a condition holds; None if that was not said."""
        if word == "multimodal":
            return multimodal
        if word in ("commercial", "production", "internal"):
            return self._purpose(word)
        if word in ("eu", "uk", "korea"):
            seats = {"eu": EU, "uk": frozenset({"GB", "UK"}), "korea": frozenset({"KR"})}[word]
            return self.seat.upper() in seats if self.seat else None
        if word == "shares":
            return _either(self.flag("redistributes"), self.flag("offers_access"))
        value: bool | None = getattr(self, word)
        inside = self.purpose in ("internal", "evaluation")
        return False if value is None and inside and word in _OUTWARD else value

    def amount(self, word: str) -> float | None:
        """Return an amount, or what stands in for it; None if neither was said."""
        if word == "users":
            return self.users
        month, year = self.revenue_month, self.revenue_year
        if word == "revenue_month":
            return year / 12 if month is None and year is not None else month
        return month * 12 if year is None and month is not None else year

    def _purpose(self, word: str) -> bool | None:
        if not self.purpose:
            return None
        return {
            "commercial": self.purpose != "research",
            "production": self.purpose in ("commercial", "internal"),
            "internal": self.purpose in ("internal", "evaluation"),
        }[word]


_OUTWARD = ("offers_access", "assistant", "redistributes")


def holds(condition: Condition, facts: Facts, multimodal: bool | None = None) -> bool | None:
    """Say whether a condition holds of these facts; None if what was not said would decide."""
    if not condition.ways:
        return True
    ways = [_all([_atom(a, facts, multimodal) for a in way]) for way in condition.ways]
    return True if True in ways else (None if None in ways else False)


def undecided(condition: Condition, facts: Facts, multimodal: bool | None = None) -> tuple[str, ...]:
    """Return the words of a condition that nobody answered and that could still decide it."""
    words: dict[str, None] = {}
    for way in condition.ways:
        values = [_atom(a, facts, multimodal) for a in way]
        if False not in values:
            words |= {a.word: None for a, value in zip(way, values, strict=True) if value is None}
    return tuple(words)


def question(word: str) -> str:
    """Return what a word of a condition asks of the user."""
    return FLAGS.get(word) or AMOUNTS[word]


def from_table(table: Mapping[str, Any], where: str) -> Facts:
    """Build facts from a [company] table; raise UsageError for an unknown key or a wrong type."""
    known = {f.name: str(f.type) for f in fields(Facts)}
    for key, value in table.items():
        if key not in known:
            near = nearest(key, list(known))
            raise UsageError(
                f"{where}: unknown key {key!r}",
                f"did you mean {near}?" if near else f"known: {', '.join(known)}",
            )
        wanted = (bool,) if "bool" in known[key] else (str,) if known[key] == "str" else (int, float)
        if type(value) not in wanted:
            raise UsageError(f"{where}: {key} = {value!r} must be a {wanted[-1].__name__}")
    return Facts(**table)


def _atom(atom: Atom, facts: Facts, multimodal: bool | None) -> bool | None:
    if atom.above is None:
        value = facts.flag(atom.word, multimodal)
    else:
        amount = facts.amount(atom.word)
        value = None if amount is None else amount > atom.above
    return value if value is None or not atom.negated else not value


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else (None if None in values else True)


def _either(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else (None if a is None or b is None else False)
