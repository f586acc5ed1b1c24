"""What a user states about themselves: purpose, users, revenue, seat, and what they will do with a model.

What was not said is unknown, and stays so: a condition over it has three values. Knows no licence.
Path: cli/license or freehold.license -> Facts -> holds(condition) -> verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from freehold.catalog.licence import AMOUNTS, Atom, Condition
from freehold.config import nearest
from freehold.errors import UsageError

PURPOSES = {
    "commercial": "products or services of a company, paid or free",
    "internal": "work inside a company; nothing of the model leaves it",
    "evaluation": "tests in a company that serve no user",
    "research": "personal or academic, not connected to a business",
}
# What each fact asks of the user, so that an undecided verdict can name what would decide it.
QUESTIONS = {
    "purpose": "what the model is for (commercial, internal, evaluation or research)",
    "users": "monthly users of your products",
    "revenue_month": "your group's revenue in a month, in dollars",
    "revenue_year": "your group's revenue in 12 months, in dollars",
    "offers_access": "whether third parties get access to the model itself",
    "embeds": "whether customers use a product or service built on it",
    "model_service": "whether your group sells inference or fine-tuning of language models",
    "assistant": "whether you sell an AI work assistant",
    "redistributes": "whether you distribute the weights",
    "modifies": "whether you change or fine-tune the model",
    "distils": "whether outputs will train another model",
    "seat": "the country of your principal place of business",
    "multimodal": "whether this model accepts more than text",
    "same_family": "whether the model you train is of the same family",
    "narrow": "whether the model you train only classifies or extracts",
    "end_user": "whether you only use another company's product",
    "bypasses_guardrails": "whether you weaken guardrails in the model",
}
# The facts behind a word of a condition, where they are not the fact of that name.
BEHIND = {
    "commercial": ("purpose",),
    "production": ("purpose",),
    "internal": ("purpose",),
    "shares": ("redistributes", "offers_access"),
    "supplies": ("redistributes", "offers_access", "embeds"),
    "model_service": ("model_service", "offers_access"),
    "eu": ("seat",),
    "uk": ("seat",),
    "korea": ("seat",),
}
# fmt: off
EU = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "EU", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT",
    "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
    "AX", "GF", "GP", "MF", "MQ", "RE", "YT",  # parts of Finland and France with codes of their own
})
# ISO 3166-1; whatever else is typed lies nowhere, and would pass every limit by place
COUNTRIES = EU | {
    "AD", "AE", "AF", "AG", "AI", "AL", "AM", "AO", "AQ", "AR", "AS", "AU", "AW", "AZ", "BA", "BB", "BD", "BF",
    "BH", "BI", "BJ", "BL", "BM", "BN", "BO", "BQ", "BR", "BS", "BT", "BV", "BW", "BY", "BZ", "CA", "CC", "CD",
    "CF", "CG", "CH", "CI", "CK", "CL", "CM", "CN", "CO", "CR", "CU", "CV", "CW", "CX", "DJ", "DM", "DO", "DZ",
    "EC", "EG", "EH", "ER", "ET", "FJ", "FK", "FM", "FO", "GA", "GB", "GD", "GE", "GG", "GH", "GI", "GL", "GM",
    "GN", "GQ", "GS", "GT", "GU", "GW", "GY", "HK", "HM", "HN", "HT", "ID", "IL", "IM", "IN", "IO", "IQ", "IR",
    "IS", "JE", "JM", "JO", "JP", "KE", "KG", "KH", "KI", "KM", "KN", "KP", "KR", "KW", "KY", "KZ", "LA", "LB",
    "LC", "LI", "LK", "LR", "LS", "LY", "MA", "MC", "MD", "ME", "MG", "MH", "MK", "ML", "MM", "MN", "MO", "MP",
    "MR", "MS", "MU", "MV", "MW", "MX", "MY", "MZ", "NA", "NC", "NE", "NF", "NG", "NI", "NO", "NP", "NR", "NU", "NZ",
    "OM", "PA", "PE", "PF", "PG", "PH", "PK", "PM", "PN", "PR", "PS", "PW", "PY", "QA", "RS", "RU", "RW", "SA",
    "SB", "SC", "SD", "SG", "SH", "SJ", "SL", "SM", "SN", "SO", "SR", "SS", "ST", "SV", "SX", "SY", "SZ", "TC",
    "TD", "TF", "TG", "TH", "TJ", "TK", "TL", "TM", "TN", "TO", "TR", "TT", "TV", "TW", "TZ", "UA", "UG", "UM",
    "US", "UY", "UZ", "VA", "VC", "VE", "VG", "VI", "VN", "VU", "WF", "WS", "YE", "ZA", "ZM", "ZW",
}
# fmt: on
_CALLED = {"EL": "GR", "UK": "GB"}  # as the Union's own institutions call them, and most people


@dataclass(frozen=True, slots=True)
class Facts:
    """The user's facts; None and empty: not said.

    A firm's use that stays inside it (internal, evaluation) means no access for others, no weights passed on,
    nothing sold, unless said otherwise. Offering access to this model counts as selling model services, unless
    said otherwise. One of month's and year's revenue stands in for the other, at a twelfth or twelvefold; a year's
    is at least a month's.
    Raises UsageError for a value that is none.
    """

    purpose: str = ""  # one of PURPOSES
    users: int | None = None  # monthly users of all your products
    revenue_month: float | None = None  # of the whole group, in dollars
    revenue_year: float | None = None
    offers_access: bool | None = None  # third parties reach the model itself, by API for instance
    embeds: bool | None = None  # customers use a product or service built on it
    model_service: bool | None = None  # your group sells inference or fine-tuning, of whatever model
    assistant: bool | None = None  # you sell an AI work assistant
    redistributes: bool | None = None  # weights leave your house
    modifies: bool | None = None  # fine-tuned, merged, requantised
    distils: bool | None = None  # outputs train another model
    seat: str = ""  # ISO 3166 code of your country, or EU
    multimodal: bool | None = None  # the model takes more than text; a catalogue model says so itself
    same_family: bool = False  # the model trained on outputs is of the family the licence covers
    narrow: bool = False  # the model trained on outputs only sorts or extracts
    end_user: bool = False  # you only use a product of others; who runs a model does not
    bypasses_guardrails: bool = False  # you weaken guardrails in the model

    def __post_init__(self) -> None:
        """Refuse values that are not a valid purpose, country or amount."""
        if self.purpose and self.purpose not in PURPOSES:
            raise UsageError(f"purpose {self.purpose!r} is none of {', '.join(PURPOSES)}")
        if self.seat and self._country() not in COUNTRIES:
            raise UsageError(
                f"seat {self.seat!r} is not a country code",
                "write ISO 3166's two letters, such as DE, US or GB, or EU",
            )
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e15:
                raise UsageError(f"{name} = {value!r} is not within 0..1e15")

    def flag(self, word: str, multimodal: bool | None = None) -> bool | None:
        """Say whether a word of a condition holds; None if that was not said."""
        if word == "multimodal":
            return self.multimodal if multimodal is None else multimodal
        if word in ("commercial", "production", "internal"):
            return self._purpose(word)
        if word in ("eu", "uk", "korea"):
            seats = {"eu": EU, "uk": {"GB"}, "korea": {"KR"}}[word]
            return self._country() in seats if self.seat else None
        if word in ("shares", "supplies"):
            return _any([self.flag(fact) for fact in BEHIND[word]])
        if word == "model_service" and self.model_service is None:
            return self.flag("offers_access")
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
        if month is None or year is None:
            return year if month is None else month * 12
        return max(month, year)

    def _country(self) -> str:
        return _CALLED.get(self.seat.upper(), self.seat.upper())

    def _purpose(self, word: str) -> bool | None:
        if not self.purpose:
            return None
        return {
            "commercial": self.purpose != "research",
            "production": self.purpose in ("commercial", "internal"),
            "internal": self.purpose in ("internal", "evaluation"),
        }[word]


_OUTWARD = ("offers_access", "embeds", "assistant", "redistributes")


def holds(condition: Condition, facts: Facts, multimodal: bool | None = None) -> bool | None:
    """Say whether a condition holds of these facts; None if what was not said would decide."""
    if not condition.ways:
        return True
    ways = [_all([_atom(a, facts, multimodal) for a in way]) for way in condition.ways]
    return _any(ways)


def undecided(condition: Condition, facts: Facts, multimodal: bool | None = None) -> tuple[str, ...]:
    """Return the facts that were not given and could still decide a condition."""
    missing: dict[str, None] = {}
    for way in condition.ways:
        values = [_atom(a, facts, multimodal) for a in way]
        if False not in values:
            open_words = [a.word for a, value in zip(way, values, strict=True) if value is None]
            missing |= {fact: None for word in open_words for fact in _unanswered(word, facts)}
    return tuple(missing)


def behind(word: str) -> tuple[str, ...]:
    """Return the facts that decide a word of a condition."""
    return BEHIND.get(word, (word,))


def question(fact: str) -> str:
    """Return what a fact asks of the user."""
    return QUESTIONS[fact]


def _unanswered(word: str, facts: Facts) -> list[str]:
    if word in AMOUNTS:
        return [word]
    return [f for f in behind(word) if f in ("purpose", "seat", "multimodal") or facts.flag(f) is None]


def from_table(table: Mapping[str, Any], where: str) -> Facts:
    """Build facts from a [company] table; raise UsageError for an unknown key or a wrong value, naming `where`."""
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
    try:
        return Facts(**table)
    except UsageError as e:
        raise UsageError(f"{where}: {e.message}", e.hint) from e


def _atom(atom: Atom, facts: Facts, multimodal: bool | None) -> bool | None:
    if atom.above is None:
        value = facts.flag(atom.word, multimodal)
    else:
        amount = facts.amount(atom.word)
        value = None if amount is None else amount > atom.above
    return value if value is None or not atom.negated else not value


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else (None if None in values else True)


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else (None if None in values else False)
