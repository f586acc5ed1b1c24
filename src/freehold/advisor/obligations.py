"""Lists what to do before serving or shipping a model: NOTICE lines, names, badges and policies, from a verdict.

The words a licence prescribes are given as it prescribes them; the licence texts themselves are not copied
but named, with where to get them. Knows no user interface.
Path: cli/license --pack -> pack -> DutyPack.notice_lines, DutyPack.files.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.advisor.verdict import DISCLAIMER, Reason, Verdict
from freehold.catalog.licence import find
from freehold.errors import UsageError

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
