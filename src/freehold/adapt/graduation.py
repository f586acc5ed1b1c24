"""Graduation: from a route's kept texts to a proposal that a model of its own takes over.

Which texts may teach, which answers are missing, what a month costs, and the state between two commands. Asks the
licences' terms and writes them down. Knows no terminal; asks no model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from freehold.adapt.evals.paired import resampled
from freehold.adapt.gathering import GatheredData, GatheredItem
from freehold.adapt.licences import licensed
from freehold.adapt.run import on_disk, text_digest
from freehold.base import private
from freehold.base.errors import ModelNotFound, NotMet, PolicyRefused, StoreError, UsageError
from freehold.base.regular import read_bounded
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.lineage import subject
from freehold.choose.advisor.verdict import DISCLAIMER, Facts, verdict
from freehold.route.router.bar import BarResult, MeasuredModel
from freehold.route.router.gateway import Gateway, GatewayModel, terms_of
from freehold.route.router.graduation import STATE, Graduand, folder_of
from freehold.route.router.ledger.rows import rows_in
from freehold.route.router.price import NANO
from freehold.run.store import ModelRef

MONTH_S, DAY_S = 30 * 86_400.0, 86_400.0
LEVEL = 0.95
MOST_STATE = 1 << 20
_OPEN = ("qwen3:32b", "gpt-oss:20b", "qwen3:8b", "qwen3:4b")  # suggested where their terms allow it


# --- whether a teacher may teach ------------------------------------------------------------------------


def teacher_terms(teacher: GatewayModel, student: ModelRef, gateway: Gateway, facts: Facts) -> dict[str, Any]:
    """Return what a teacher's terms say to training on its answers, for the receipt.

    Raises PolicyRefused, with the clause and a teacher that may, where they refuse or are not known.
    """
    reasons = _reasons(teacher, student, facts)
    record = {
        "teacher": teacher.name,
        "terms": teacher.terms,
        "may_teach": teacher.may_teach,
        "reasons": reasons,
        "disclaimer": DISCLAIMER,
    }
    if teacher.may_teach:
        return record
    clause = next((each for each in reasons if each["bearing"] == "refuses"), None)
    if teacher.may_teach is False and clause:
        why = f"the terms of {teacher.name} refuse this: {clause['says']} [{clause['clause']}]"
    elif teacher.may_teach is False:
        why = f"the terms of {teacher.name} ({teacher.terms or 'stated in the file'}) refuse this"
    else:
        why = f"it is not known whether answers of {teacher.name} may teach ({teacher.terms or 'terms unknown'})"
    others = [model.name for model in gateway.models.values() if model.may_teach]
    open_names = (name for name in _OPEN if terms_of("", name, False)[1])
    named = ", ".join(others) or next(open_names, "an open model under Apache-2.0")
    raise PolicyRefused(
        why,
        f"use a teacher that may: {named}; or state your right: may_teach = true in [models.{teacher.name}]",
    )


def _reasons(teacher: GatewayModel, student: ModelRef, facts: Facts) -> list[dict[str, str]]:
    try:
        judged = verdict(licensed(student), facts, teachers=[subject(teacher.terms or teacher.local)])
    except (ModelNotFound, UsageError):
        return []
    return [
        {
            "bearing": r.bearing,
            "clause": r.clause,
            "says": r.sentence,
            "licence": r.licence,
            "source": r.source,
        }
        for r in judged.deciding
    ]


# --- which texts teach, and which answers are missing ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class TeachingTexts:
    """Texts of a route: `data` may teach, `missing` have an answer that may not, or the student's own."""

    data: GatheredData
    missing: tuple[GatheredItem, ...] = ()
    missing_tests: tuple[GatheredItem, ...] = ()


def teaching_texts(data: GatheredData, student: str) -> TeachingTexts:
    """Part texts by whether their makers' terms let them teach; a student is not taught by itself."""

    def teaches(item: GatheredItem) -> bool:
        return item.may_teach is True and item.maker != student

    able = replace(
        data,
        examples=tuple(filter(teaches, data.examples)),
        tests=tuple(filter(teaches, data.tests)),
        pairs=(),
        test_pairs=(),
    )
    missing = tuple(item for item in data.examples if not teaches(item))
    missing_tests = tuple(item for item in data.tests if not teaches(item))
    return TeachingTexts(able, missing, missing_tests)


@dataclass(slots=True)
class Purchase:
    """Answers that were bought. `limit`: nano-dollars that they may cost together; nothing is sent beyond it."""

    limit: int
    spent: int = 0  # by earlier runs of the route too
    bought: int = 0
    refused: int = 0  # prompts that a label keeps in, or that the teacher did not answer

    def allows(self, most: int) -> bool:
        """Whether an answer that costs `most` at most still fits."""
        return self.spent + most <= self.limit


# An item -> its answer and what it cost, in nano-dollars; "" where there is none.
Buy = Callable[[GatheredItem], tuple[str, int]]


def bought(
    texts: TeachingTexts,
    wanted: int,
    teacher: GatewayModel,
    purchase: Purchase,
    most: Callable[[GatheredItem], int],
    buy: Buy,
) -> GatheredData:
    """Have the teacher answer what is missing until there are `wanted` examples, or the money is spent.

    Test items are bought too, in their share, so that they stay apart as before.
    """
    data = texts.data
    examples, tests = list(data.examples), list(data.tests)
    queue = [(item, examples) for item in texts.missing] + [(item, tests) for item in texts.missing_tests]
    queue.sort(key=lambda each: each[0].id)
    for item, into in queue:
        if len(examples) >= wanted or not purchase.allows(most(item)):
            break
        answer, nano = buy(item)
        purchase.spent += nano
        if not answer.strip():
            purchase.refused += 1
            continue
        purchase.bought += 1
        into.append(replace(item, answer=answer, maker=teacher.name, terms=teacher.terms, may_teach=True))
    return replace(data, examples=tuple(examples), tests=tuple(tests))


def check_enough(data: GatheredData, plan: Graduand, purchase: Purchase) -> None:
    """Raise NotMet where a route has fewer examples than it is taught from."""
    count, wanted = len(data.examples), plan.settings.at
    if count >= wanted and data.tests:
        return
    left = ", ".join(f"{n} {reason}" for reason, n in data.left_out.items()) or "none"
    spent = f"{purchase.spent / NANO:.6f} of {purchase.limit / NANO:.2f} dollars spent"
    raise NotMet(
        f"{plan.route.name} has {count} examples that may teach, and {len(data.tests)} to test with; "
        f"{wanted} are needed (left out: {left}; {spent})",
        "wait for more requests, raise spend, or lower at",
    )


def digest_of(data: GatheredData) -> str:
    """Return what names a run: a digest of all its lines."""
    lines = [item.line() for item in (*data.examples, *data.tests)]
    return text_digest(json.dumps(lines, sort_keys=True))[:12]


# --- what a month costs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MonthlyUse:
    """A route's requests a month, what they cost, and what a student that takes over saves of it, in dollars."""

    requests: float
    dollars: float
    saved: Interval

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "requests": round(self.requests),
            "dollars": self.dollars,
            "saved": {"low": self.saved.low, "mid": self.saved.mid, "high": self.saved.high},
        }


def monthly(ledger: Path, plan: Graduand, now: float | None = None) -> MonthlyUse:
    """Return a route's month: its last 30 days, or what it has of them, at least a day, scaled up.

    Rows of the student, once it has taken over, are free, so a month is counted of all. The range is that of the
    requests' costs, drawn with replacement; comparisons with the teacher still cost their share.
    """
    now = time.time() if now is None else now
    rows = [
        row
        for row in rows_in(ledger, now - MONTH_S, now + DAY_S)
        if row.asked == plan.route.name and row.outcome in ("whole", "cached", "left", "broken")
    ]
    if not rows:
        return MonthlyUse(0, 0.0, Interval(0.0, 0.0, 0.0, LEVEL))
    span = max(now - min(row.at for row in rows), DAY_S)
    factor = MONTH_S / min(span, MONTH_S)
    costs = [row.nano / NANO for row in rows]
    low, mid, high = (bound * len(rows) * factor for bound in resampled(costs, LEVEL))
    kept = 1 - plan.settings.share
    return MonthlyUse(len(rows) * factor, mid, Interval(low * kept, mid * kept, high * kept, LEVEL))


def proposal(plan: Graduand, result: BarResult, month: MonthlyUse) -> str:
    """Return the proposal in one sentence, or why there is none."""
    reach = f"{plan.student.name} reaches {result.score:.2f} (lower {result.low:.2f})"
    if result.low < plan.task.bar:
        return f"{reach}, below the bar of {plan.task.bar:g}: {plan.teacher.name} keeps answering"
    saved = month.saved
    money = f"{_dollars(saved.mid)} of {_dollars(month.dollars)} dollars saved"
    return (
        f"{reach} where the bar is {plan.task.bar:g}; {month.requests:,.0f} requests a month, {money} "
        f"(range {_dollars(saved.low)} to {_dollars(saved.high)}); move?"
    )


def _dollars(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


# --- the state between two commands ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraduationState:
    """What was taught and measured of a route. `stage`: taught, proposed or moved."""

    route: str
    stage: str
    digest: str  # of the texts
    examples: int
    adapter: str  # path
    terms: Mapping[str, Any]
    spent: int  # nano-dollars, of answers that were bought
    student: BarResult
    teacher: BarResult | None
    agreement: float  # share of held-out texts whose answers are equal
    month: Mapping[str, Any]
    proposal: str
    at: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def keep_state(home: Path, state: GraduationState) -> None:
    """Write a route's state, for its owner alone. Raises StoreError."""
    path = folder_of(home, state.route) / STATE
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name("state.json.new")
        with open(beside, "w", encoding="utf-8", opener=private.opener) as file:
            json.dump(state.as_json(), file, indent=1)
        beside.replace(path)


def state_of(home: Path, route: str) -> GraduationState | None:
    """Return a route's state; None where nothing was taught. Raises StoreError for a damaged file."""
    path = folder_of(home, route) / STATE
    if not path.is_file():
        return None
    try:
        table = json.loads(read_bounded(path, MOST_STATE))
        teacher = table["teacher"]
        results = {"student": _result(table["student"]), "teacher": _result(teacher) if teacher else None}
        return GraduationState(**{**table, **results})
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoreError(
            f"{path} is damaged: {str(e)[:80]}", f"remove it, and run freehold graduate {route} again"
        ) from e


def _result(table: Mapping[str, Any]) -> BarResult:
    return BarResult(**{**table, "model": MeasuredModel(**table["model"])})
