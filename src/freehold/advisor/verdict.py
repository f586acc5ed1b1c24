"""Decides whether a use is allowed: the user's facts against every licence of a model, with the deciding clause.

Refused by one clause is refused; an unknown fact or licence blocks, and the verdict names what would decide.
Not legal advice: it reads terms as data and cannot weigh them as a lawyer does.
Path: cli/license, advice -> verdict -> lineage.standing, facts.holds -> Verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from freehold.advisor.facts import Facts, holds, question, undecided
from freehold.advisor.lineage import Standing, Subject, standing, subject
from freehold.catalog.licence import Licence, Term, find
from freehold.catalog.model import Model
from freehold.errors import UsageError

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
        return tuple(question(fact) for fact in self.missing)


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
    family = _families(first, *map(subject, merged))
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


def _families(*subjects: Subject) -> frozenset[str]:
    return frozenset(one.family for s in subjects for place in standing(s) for one in place.choices)


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
        lines += [f"- {one.name}: {one.url}" + _digest(one.sha256) for one in texts]
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


def _digest(sha256: str) -> str:
    return f" (sha256 of the text that we read: {sha256})" if sha256 else ""
