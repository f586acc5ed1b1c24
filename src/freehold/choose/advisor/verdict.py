"""Decides whether a use is allowed: the user's facts against every licence of a model, with the deciding clause.

Refused by one clause is refused; an unknown fact or licence blocks, and the verdict names what would decide.
Not legal advice: it reads terms as data and cannot weigh them as a lawyer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from freehold.base.catalog.licence import AMOUNTS, Atom, Condition, Licence, Term, find
from freehold.base.catalog.model import Model
from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.choose.advisor.lineage import Standing, Subject, standing, subject

# --- what a user states about themselves: purpose, users, revenue, seat, what becomes of the model --
# What was not said is unknown, and stays so: a condition over it has three values.
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
            raise UsageError(f"purpose {self.purpose!r} is not one of {', '.join(PURPOSES)}")
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


def _unanswered(word: str, facts: Facts) -> list[str]:
    if word in AMOUNTS:
        return [word]
    return [f for f in behind(word) if f in ("purpose", "seat", "multimodal") or facts.flag(f) is None]


def from_table(table: Mapping[str, Any], where: str) -> Facts:
    """Build facts from a [company] table; raise UsageError for an unknown key or a wrong value, naming `where`."""
    known = {f.name: str(f.type) for f in fields(Facts)}
    for key, value in table.items():
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {key!r}",
                suggestion(key, list(known)),
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


# --- the verdict ------------------------------------------------------------------------------------

ANSWERS = ("refused", "unknown", "conditions", "allowed")
DISCLAIMER = "This reads licence terms as data. It is not legal advice."
# No verdict waits for these; where they are not known the card says so.
_FOOTNOTES = ("patents", "termination", "law")
# The weights of a service are not available, so these need no answer there.
_NEEDS_WEIGHTS = ("modify", "redistribute")
# A permission is a reason where it is wanted: topic -> the flag that says so (empty: always).
_FLAGS = {"commercial": "", "modify": "modifies", "redistribute": "shares", "outputs": "distils"}
_BEARINGS = ("refuses", "undecided", "unknown", "requires", "requires if", "allows")


@dataclass(frozen=True, slots=True)
class Reason:
    """One clause and how it bears on the answer.

    refuses, requires, allows: it does. undecided, requires if: it would, if `waits_for` says so.
    unknown: the term or the licence itself is not known. `via`: through which models it is inherited.
    """

    bearing: str
    topic: str
    clause: str
    says: str
    licence: str  # identifier; empty where the licence is not known
    source: str
    model: str = ""
    via: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    term: Term | None = None

    @property
    def sentence(self) -> str:
        """The term's sentence; `says` where no term decides."""
        return self.term.sentence if self.term else self.says


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for a subject: refused, unknown, conditions or allowed; weightiest reasons first."""

    subject: str
    answer: str
    reasons: tuple[Reason, ...]
    licences: tuple[str, ...]
    facts: Facts

    @property
    def deciding(self) -> tuple[Reason, ...]:
        """The reasons that make the answer what it is."""
        wanted = {
            "refused": ("refuses",),
            "unknown": ("undecided", "unknown"),
            "conditions": ("requires", "requires if"),
            "allowed": ("allows",),
        }[self.answer]
        return tuple(r for r in self.reasons if r.bearing in wanted)

    @property
    def missing(self) -> tuple[str, ...]:
        """The facts that would decide an unknown answer, by name; none where they would not change the answer."""
        if self.answer != "unknown":
            return ()
        return tuple(dict.fromkeys(w for r in self.reasons if r.bearing == "undecided" for w in r.waits_for))

    @property
    def questions(self) -> tuple[str, ...]:
        """The same as questions, one for each."""
        return tuple(QUESTIONS[fact] for fact in self.missing)


def verdict(
    subject_or_name: str | Model | Licence | Subject,
    facts: Facts,
    merged: Sequence[str | Model | Licence | Subject] = (),
    teachers: Sequence[str | Model | Licence | Subject] = (),
) -> Verdict:
    """Judge a model or a licence for these facts; lineage.OWN where only teachers bind.

    `merged`: models that yours is made of besides; all their terms bind it. `teachers`: models on whose
    outputs it is trained. Making those outputs is a use of the teacher for your purpose, so its limits of use
    bind, and its rules on outputs; all its terms where its licence calls such a model a derivative. Raises
    ModelNotFound for an unknown name.
    """
    first = subject(subject_or_name)
    changed = replace(facts, modifies=True) if merged or teachers else facts
    reasons = _of(first, changed)
    for other in merged:
        reasons += _of(subject(other), changed)
    ours = (first, *map(subject, merged))
    family = frozenset(one.family for s in ours for place in standing(s) for one in place.choices)
    for teacher in teachers:
        reasons += _taught(subject(teacher), changed, family)
    unique = _unique(reasons)
    bearings = {r.bearing for r in unique}
    if "refuses" in bearings:
        answer = "refused"
    elif bearings & {"undecided", "unknown"}:
        answer = "unknown"
    else:
        answer = "conditions" if bearings & {"requires", "requires if"} else "allowed"
    name = " + ".join([first.name, *(subject(o).name for o in merged)])
    named = tuple(dict.fromkeys(r.licence for r in unique if r.licence))
    return Verdict(name, answer, unique, named, changed)


def _of(subject: Subject, facts: Facts) -> list[Reason]:
    """Return what every licence of a subject and its ancestors says to these facts."""
    reasons: list[Reason] = []
    for place in standing(subject):
        choices = [_terms(place, one, one.terms, facts) for one in place.choices]
        reasons += _best(choices) if choices else [_nobody(place)]
    return reasons


def _taught(teacher: Subject, facts: Facts, family: frozenset[str]) -> list[Reason]:
    """Return what binds a model that is trained on a teacher's outputs; `family`: what its own licences cover."""
    facts = replace(facts, distils=True)
    reasons: list[Reason] = []
    for place in standing(teacher):
        place = replace(place, via=("outputs of " + teacher.name, *place.via[1:]))
        per_choice = [_as_teacher(place, one, facts, one.family in family) for one in place.choices]
        reasons += _best(per_choice) if per_choice else [_nobody(place)]
    return reasons


def _as_teacher(place: Standing, one: Licence, facts: Facts, related: bool) -> list[Reason]:
    """Judge a teacher's terms: the ones on outputs for the model that is trained, the others for running it.

    The teacher itself is not received, unless its licence counts the trained model as a derivative of it.
    """
    trained = replace(facts, same_family=facts.same_family or related)
    if one.outputs_bind:
        return _terms(place, one, one.terms, trained)
    run = replace(
        trained,
        redistributes=False,
        offers_access=False,
        embeds=False,
        modifies=False,
        model_service=facts.flag("model_service"),
    )
    others = [t for t in one.terms if t.topic != "outputs"]
    return _terms(place, one, one.about("outputs"), trained) + _terms(place, one, others, run)


def _terms(place: Standing, one: Licence, terms: Sequence[Term], facts: Facts) -> list[Reason]:
    return [r for t in terms if (r := _bear(place, one, t, facts)) is not None]


def _bear(place: Standing, one: Licence, term: Term, facts: Facts) -> Reason | None:
    """Say how one term bears on the facts; None if it does not."""
    truth = holds(term.when, facts, place.multimodal)
    if truth is False or (term.effect == "unknown" and term.topic in _FOOTNOTES):
        return None
    if truth is None and one.kind == "service" and term.topic in _NEEDS_WEIGHTS:
        return None
    waits = undecided(term.when, facts, place.multimodal) if truth is None else ()
    if term.effect == "refuses":
        bearing = "refuses" if truth else "undecided"
    elif term.effect == "unknown":
        bearing = "unknown" if truth else "undecided"
    elif term.effect == "requires":
        bearing = "requires" if truth else "requires if"
    elif term.topic in _FLAGS and truth and (not _FLAGS[term.topic] or facts.flag(_FLAGS[term.topic])):
        bearing = "allows"
    else:
        return None
    source = term.source or f"{one.url} (checked {one.checked.isoformat()}, {one.evidence})"
    return Reason(
        bearing, term.topic, term.clause, term.says, one.id, source, place.model, place.via, waits, term
    )


def _nobody(place: Standing) -> Reason:
    """Block on a licence that is not known, and say whose."""
    name = f"{place.expression!r} is not a licence in the catalogue" if place.expression else "not known"
    says = f"the licence of {place.model} is {name}"
    return Reason("unknown", "licence", "no clause", says, "", "the catalogue", place.model, place.via)


def _best(choices: list[list[Reason]]) -> list[Reason]:
    """Of licences to choose from, take the one that allows most."""
    return min(choices, key=_obstacles)


def _obstacles(reasons: list[Reason]) -> tuple[int, int, int]:
    bearings = [r.bearing for r in reasons]
    return (
        bearings.count("refuses"),
        bearings.count("undecided") + bearings.count("unknown"),
        bearings.count("requires") + bearings.count("requires if"),
    )


def _unique(reasons: list[Reason]) -> tuple[Reason, ...]:
    """Order by weight, kept stable within one, and drop what several ancestors say alike: the weightiest stays."""
    first: dict[tuple[str, str, str, str], Reason] = {}
    for r in sorted(reasons, key=lambda r: _BEARINGS.index(r.bearing)):
        first.setdefault((r.licence or r.model, r.topic, r.clause, r.says), r)
    return tuple(first.values())


# --- lists what to do before serving or shipping a model --------------------------------------------
# NOTICE lines, names, badges and policies, from a verdict.
# The words a licence prescribes are given as it prescribes them; the licence texts themselves are not copied
# but named, with where to get them.

NOTICE, DUTIES = "NOTICE", "OBLIGATIONS.md"
_TASKS = {
    "copy": "pass on a copy of the licence",
    "notices": "keep all copyright and origin notices that came with the model",
    "notice": "ship the NOTICE file of this pack",
    "changes": "mark the files you changed",
    "display": "show the prescribed words",
    "prefix": "start the model's name with the prescribed word",
    "credit": "credit the makers as they request",
    "policy": "comply with the use policy, and require your users to comply",
    "pass-on": "include the same use restrictions in your own terms",
    "law": "use the model lawfully, and do not misrepresent it",
    "limit": "apply the same limit to what you make from it",
    "ask": "register with the licensor, or notify it",
}


@dataclass(frozen=True, slots=True)
class Duty:
    """One thing to do: `task` with `text` (words to show, or an address), and the clause that asks for it."""

    task: str
    text: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class DutyPack:
    """Everything that a verdict asks for, and what it still waits for."""

    verdict: Verdict
    duties: tuple[Duty, ...]  # due now
    later: tuple[Duty, ...]  # due if a fact that was not given turns out so

    @property
    def notice_lines(self) -> tuple[str, ...]:
        """Lines of the NOTICE file; a fact that was not given does not leave one out."""
        wanted = (
            d.text for d in (*self.duties, *self.later) if d.reason.term and d.reason.term.duty == "notice"
        )
        return tuple(dict.fromkeys(wanted))

    def words(self, duty: str) -> tuple[str, ...]:
        """Return the words to `display`, or the ones the name begins with (`prefix`)."""
        wanted = (d.text for d in self.duties if d.reason.term and d.reason.term.duty == duty)
        return tuple(dict.fromkeys(wanted))

    def files(self) -> dict[str, str]:
        """Return the pack as file names and contents; NOTICE only where a licence asks for one."""
        files = {DUTIES: self._duties()}
        if self.notice_lines:
            files[NOTICE] = "\n".join(self.notice_lines) + "\n"
        return files

    def _duties(self) -> str:
        v = self.verdict
        lines = [
            f"# Obligations for {v.subject}",
            "",
            DISCLAIMER,
            f"Answer for the stated facts: {v.answer}.",
            "",
        ]
        lines += _section("Do", self.duties) + _section("Do, if the case applies", self.later)
        if v.questions:
            lines += ["## Facts that would decide it", "", *(f"- {q}" for q in v.questions), ""]
        texts = [one for one in map(find, v.licences) if one]
        lines += ["## Licence texts to include", ""]
        for one in texts:
            digest = f" (sha256 of the text that we read: {one.sha256})" if one.sha256 else ""
            lines.append(f"- {one.name}: {one.url}{digest}")
        return "\n".join(lines) + "\n"


def pack(verdict: Verdict) -> DutyPack:
    """Return the duties of a verdict; raise UsageError where it refuses, for there is nothing to prepare."""
    if verdict.answer == "refused":
        why = verdict.deciding[0]
        raise UsageError(
            f"no pack for {verdict.subject}: {why.says}", f"{why.clause}; ask the licensor for other terms"
        )
    due = [_duty(r) for r in verdict.reasons if r.bearing == "requires"]
    later = [_duty(r) for r in verdict.reasons if r.bearing == "requires if"]
    return DutyPack(verdict, tuple(due), tuple(later))


def _duty(reason: Reason) -> Duty:
    assert reason.term is not None  # only terms require
    return Duty(_TASKS[reason.term.duty], reason.term.text, reason)


def _section(title: str, duties: tuple[Duty, ...]) -> list[str]:
    if not duties:
        return []
    lines = [f"## {title}", ""]
    lines += [f"- {d.task}: {d.reason.sentence} ({d.reason.clause}; {d.reason.source})" for d in duties]
    return [*lines, ""]
