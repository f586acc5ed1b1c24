"""Whether a model may be changed, or may teach another: the licences' own terms, asked before and written down after.

The catalogue is asked by the name under which the store holds a model, then by the licence that was recorded with it;
for a file of the user's neither may be known, and the receipt says so. Refused is only what a clause refuses; what
depends on facts the user did not state is recorded as open. Not legal advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import ModelNotFound, UsageError
from freehold.choose.advisor.lineage import Subject, subject
from freehold.choose.advisor.verdict import DISCLAIMER, Facts, Reason, Verdict, verdict
from freehold.route.router.gateway import terms_of
from freehold.run.formats import GGUFFile, open_model_file
from freehold.run.store import ModelRef

LEAST_CHARS = 12  # of a statement of rights: enough to name a contract


@dataclass(frozen=True, slots=True)
class LicenceVerdict:
    """What licences say to a use. `answer`: refused, unknown, conditions or allowed."""

    subject: str
    answer: str
    licences: tuple[str, ...]
    reasons: tuple[Reason, ...]  # those that make the answer what it is
    may_teach: bool | None = None  # as the gateway has it; None: unknown, on conditions, or not asked
    accepted: str = ""  # the user's statement of rights beside the licence

    @property
    def refusal(self) -> Reason | None:
        """The clause that refuses, if one does."""
        return next((r for r in self.reasons if r.bearing == "refuses"), None)

    def as_json(self) -> dict[str, Any]:
        """Return its part of a receipt."""
        return {
            "subject": self.subject,
            "answer": self.answer,
            "licences": list(self.licences),
            "may_teach": self.may_teach,
            "accepted": self.accepted,
            "reasons": [
                {
                    "bearing": r.bearing,
                    "clause": r.clause,
                    "says": r.sentence,
                    "licence": r.licence,
                    "source": r.source,
                }
                for r in self.reasons
            ],
            "disclaimer": DISCLAIMER,
        }


def base_licence(base: ModelRef, facts: Facts) -> LicenceVerdict:
    """Return what the licence of a model says to its being changed."""
    base_model = licensed(base)
    return _of(base_model.name, verdict(base_model, replace(facts, modifies=True)))


def teaching(teacher: ModelRef, student: ModelRef, facts: Facts, accepted: str = "") -> LicenceVerdict:
    """Return what the licences say to training `student` on the outputs of `teacher`.

    `accepted`: a statement of the rights that the user has beside the licence; it is written into the receipt.
    Raises UsageError with the clause where one refuses and nothing is stated.
    """
    if accepted and len(accepted.strip()) < LEAST_CHARS:
        raise UsageError(
            f"--accept-teacher-terms {accepted!r} does not say which rights you have",
            "name the contract or the permission: it is written into the receipt",
        )
    teacher_model = licensed(teacher)
    judgement = verdict(licensed(student), facts, teachers=[teacher_model])
    known, may = terms_of("", teacher.name, False)
    if not known and teacher_model.expression:
        may = terms_of("", teacher_model.expression, False)[1]
    terms = _of(teacher_model.name, judgement, may, accepted.strip())
    if terms.refusal is not None and not accepted:
        clause = terms.refusal
        raise UsageError(
            f"the licence of {clause.model or teacher_model.name} refuses this: {clause.sentence} [{clause.clause}]",
            "use another teacher, or state the right that you have: --accept-teacher-terms 'contract of ...'",
        )
    return terms


def licensed(ref: ModelRef) -> Subject:
    """Return the subject that a stored model is, by its name, else by the licence recorded with it.

    A user's own file is not known by its file name: by the model that it was quantised from, where we did that.
    """
    own, base, licence = ref.source.startswith("file:"), "", ""
    if own and ref.kind == "gguf":
        with open_model_file(ref.path) as opened:
            if isinstance(opened, GGUFFile):  # freehold quantize wrote the base into it
                base = opened.metadata.get_str("freehold.base", "")
                licence = opened.metadata.get_str("general.license", "")
    try:
        return subject(base if own else ref.name)
    except ModelNotFound:
        return Subject(ref.name, ref.licence or licence, source=ref.source)


def notes(verdicts: Mapping[str, LicenceVerdict]) -> list[str]:
    """Return a line for each verdict that does not simply allow, by the role of its model."""
    lines = []
    for role, one in verdicts.items():
        named = ", ".join(one.licences) or "not known"
        if one.accepted and one.refusal is not None:
            lines.append(
                f"{role} licence {named}: refused by {one.refusal.clause}; used under: {one.accepted}"
            )
        elif one.answer != "allowed":
            first = one.reasons[0]
            lines.append(f"{role} licence {named}: {one.answer}; {first.sentence} [{first.clause}]")
    return lines


def _of(name: str, judgement: Verdict, may: bool | None = None, accepted: str = "") -> LicenceVerdict:
    return LicenceVerdict(name, judgement.answer, judgement.licences, judgement.deciding, may, accepted)


# --- the base of a run: a model itself, not one that `freehold create` made of it -------------------
# A created model is a base with a system text, a template, an adapter or settings around it. The engine
# applies them and a trainer reads the file alone, so what is measured and served would not be what was
# trained.


def check_base(model: ModelRef) -> None:
    """Raise UsageError for a created model, with the one that it was made from."""
    if model.overlay is None:
        return
    base = model.overlay.base
    raise UsageError(
        f"{model.name} was created from {base}: its system text, template and adapter are not in the file that is read",
        f"name {base}; freehold create puts them around the result again",
    )
