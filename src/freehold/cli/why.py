"""`freehold why MODEL`: all facts about a model on one card, with their sources, and what is not known.

Combines the card of `show`, the verdict of `license`, published results and this machine's measurements; adds no
fact of its own. Knows columns and wording.
Path: main -> why -> show.describe, advisor.{verdict, openness, quality, fit, calibration} -> stdout.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from freehold import catalog
from freehold.cli.company import company_facts, company_options
from freehold.cli.shared import json_option, pairs
from freehold.cli.show import card_lines, describe
from freehold.config import Settings
from freehold.errors import FreeholdError, ModelNotFound

if TYPE_CHECKING:
    from freehold.advisor.calibration import Run
    from freehold.advisor.fit import Fit, Misfit
    from freehold.advisor.quality import Quality
    from freehold.advisor.verdict import Verdict
    from freehold.catalog import Model
    from freehold.evals.trial import Kept

SCHEMA = 1
_MOST_REASONS = 6
_CONTEXT = 4096  # tokens, at which a model is placed here


@dataclass(frozen=True, slots=True)
class SpeedHere:
    """The predicted speed of a model here, and its latest measured runs."""

    foreseen: Fit | Misfit | None
    measured: tuple[Run, ...]

    def lines(self) -> list[tuple[str, str]]:
        """Return it as rows of a card."""
        from freehold.advisor.fit import Fit
        from freehold.advisor.interval import digits
        from freehold.store.space import human

        rows = []
        if isinstance(self.foreseen, Fit):
            f = self.foreseen
            rows.append(
                ("here", f"{human(f.memory.total)} at {f.context:,} tokens; up to {f.longest:,} tokens fit")
            )
            rows.append(("", f"predicted {f.decode} tokens a second, prompts {f.prefill}; {f.basis}"))
        elif self.foreseen:
            rows.append(("here", f"does not run: {self.foreseen.reason}"))
        for run in self.measured[-3:]:
            said = f"measured {digits(run.measured)} tokens a second, {run.kind} at {run.depth:,} tokens"
            rows.append(("" if rows else "here", f"{said}, {run.at[:10]}"))
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        from freehold.advisor.fit import Fit

        f = self.foreseen
        shown: dict[str, Any] = {
            "fits": None if f is None else isinstance(f, Fit),
            "reason": "" if f is None or isinstance(f, Fit) else f.reason,
        }
        if isinstance(f, Fit):
            shown |= {"context": f.context, "memory": f.memory.total, "longest": f.longest, "basis": f.basis}
            shown |= {"decode": f.decode.as_json(), "prefill": f.prefill and f.prefill.as_json()}
        runs = [
            {"kind": r.kind, "depth": r.depth, "measured": r.measured, "predicted": r.told, "at": r.at}
            for r in self.measured
        ]
        return {**shown, "measured": runs}


@click.command("why")
@click.argument("model")
@company_options
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool, **given: Any) -> None:
    """Show all known facts about MODEL, with their sources, and what is not known.

    File, digest, template and defaults; the licence's verdict on your facts (as for `freehold license`); quality by
    task from published results; predicted memory and speed beside what was measured here.

    With --json: {"schema": 1, "model", "licence", "quality", "own", "here", "unknown"}.
    """
    from freehold.store import Store

    card = describe(Store(settings), model)
    known = _catalogued(card)
    ruled = _verdict(known, card, settings, given)
    quality = _quality(settings, known, card["name"])
    here = _speed_here(settings, card)
    own = _own(settings, card)
    gaps = _unknown(card, known, quality, here, own)
    if as_json:
        shown = {
            "model": card,
            "licence": ruled
            and {
                "answer": ruled.answer,
                "reasons": [{k: v for k, v in asdict(r).items() if k != "term"} for r in ruled.reasons],
            },
            "quality": [{"tasks": names, **_plain(q)} for names, q in quality],
            "own": [asdict(k) for k in own],
            "here": here.as_json(),
            "unknown": gaps,
        }
        click.echo(json.dumps({"schema": SCHEMA, **shown}, indent=1))
        return
    rows = card_lines(card) + _licence_lines(ruled) + _quality_lines(quality)
    rows += [("on your cases" if not i else "", line) for i, line in enumerate(map(_own_line, own))]
    rows += here.lines()
    rows += [("not known" if not i else "", gap) for i, gap in enumerate(gaps)]
    pairs(rows)


def _catalogued(card: dict[str, Any]) -> Model | None:
    try:
        return catalog.model(card["model"]) if card.get("model") else None
    except ModelNotFound:
        return None


def _verdict(
    known: Model | None, card: dict[str, Any], settings: Settings, given: dict[str, Any]
) -> Verdict | None:
    """Return the verdict on the model, or on the licence its file names; None where neither is known."""
    from freehold.advisor.verdict import verdict

    facts = company_facts(settings, given)
    try:
        return verdict(known or card["licence"], facts) if known or card["licence"] else None
    except ModelNotFound:
        return None


def _quality(settings: Settings, known: Model | None, name: str) -> list[tuple[list[str], Quality]]:
    """Return the model's quality by task, in the file's quantisation; tasks with one benchmark together."""
    from freehold.advisor.quality import Scale, rounded
    from freehold.catalog.tasks import tasks
    from freehold.choosing import weighed

    found: dict[str, tuple[list[str], Quality]] = {}
    if known is None:
        return []
    everything, quant = catalog.models(), weighed(settings, name).quant
    for task in tasks():
        scale = Scale(task, everything)
        quick = Scale(task, everything, quick=True, ruler=scale.benchmark)
        if quality := scale.of(known) or quick.of(known):
            quality = rounded(quality, quant, known)
            below = f" (below its bar of {task.bar:g})" if quality.range.low < task.bar else ""
            found.setdefault(quality.benchmark, ([], quality))[0].append(task.id + below)
    return list(found.values())


def _untold(quality: list[tuple[list[str], Quality]]) -> list[str]:
    """Return the tasks without a published result."""
    from freehold.catalog.tasks import tasks

    rated = {name.partition(" ")[0] for names, _ in quality for name in names}
    return [t.id for t in tasks() if t.benchmarks and t.id not in rated]


def _licence_lines(ruled: Verdict | None) -> list[tuple[str, str]]:
    from freehold.advisor.verdict import DISCLAIMER

    if ruled is None:
        return [("licence", "no verdict: no licence is known")]
    rows = [("licence", f"{ruled.answer}, by {', '.join(ruled.licences) or 'no known licence'}")]
    rows += [("", f"{r.bearing}: {r.says} [{r.clause}]") for r in ruled.reasons[:_MOST_REASONS]]
    if ruled.questions:
        rows.append(("", "would decide it: " + "; ".join(ruled.questions)))
    return [*rows, ("", DISCLAIMER)]


def _quality_lines(quality: list[tuple[list[str], Quality]]) -> list[tuple[str, str]]:
    rows = []
    for names, q in quality:
        r = q.range
        likely = f"{q.benchmark} {r.mid:.0f} ({r.low:.0f} to {r.high:.0f})"
        said = f"{likely}, {q.basis}: {q.evidence}; for {', '.join(names)}"
        rows.append(("quality" if not rows else "", said))
    return rows


def _unknown(
    card: dict[str, Any],
    known: Model | None,
    quality: list[tuple[list[str], Quality]],
    here: SpeedHere,
    own: list[Kept],
) -> list[str]:
    """Return the facts that no source states."""
    gaps = []
    if known is None:
        gaps.append("lab, lineage and published results: it is not in the catalogue")
    elif not known.cache_known:
        gaps.append("its layers, so that the cache's bytes are a guess")
    if not card.get("licence") and not (known and known.licence):
        gaps.append("its licence")
    if card["state"] == "not held":
        gaps.append("digest, template and defaults of the file: it is not in the store")
    if known and not known.scores:
        gaps.append("its own benchmark results")
    elif known and known.role == "generator" and (untold := _untold(quality)):
        gaps.append(f"its quality for {', '.join(untold)}: no published result")
    if not here.measured:
        gaps.append("its measured speed here: no answer was timed yet")
    if not own:
        gaps.append("its quality on your own work: freehold advise --try samples.jsonl measures that")
    return gaps


def _own(settings: Settings, card: dict[str, Any]) -> list[Kept]:
    """Return the results of `advise --try` for this file."""
    from freehold.cli.report.trying import digest
    from freehold.evals.trial import kept
    from freehold.store import Store

    try:
        return kept(settings.home, digest(Store(settings).resolve(card["name"])))
    except FreeholdError:
        return []


def _own_line(kept: Kept) -> str:
    from freehold.evals.paired import share

    answered = f"{kept.samples}: passed {kept.passed} of {kept.answered}"
    r = share([True] * kept.passed + [False] * (kept.answered - kept.passed)) if kept.answered else None
    bounds = f", {r.mid:.0f} % ({r.low:.0f} to {r.high:.0f})" if r else ""
    rest = f"; {kept.cases - kept.answered} wait" if kept.answered < kept.cases else ""
    return f"{answered}{bounds}{rest}, {kept.at[:10]}"


def _plain(q: Quality) -> dict[str, Any]:
    return {"benchmark": q.benchmark, "basis": q.basis, "evidence": q.evidence, **q.range.as_json()}


def _speed_here(settings: Settings, card: dict[str, Any]) -> SpeedHere:
    """Predict a model's speed here, and look up its measured runs."""
    from freehold.advisor.fit import fit, model_key
    from freehold.choosing import here as this_machine
    from freehold.choosing import weighed

    try:
        anatomy, place = weighed(settings, card["name"]), this_machine(settings)
        most = min(_CONTEXT, anatomy.context or _CONTEXT)
        past = place.history.runs if place.history else ()
        mine = tuple(r for r in past if r.model == model_key(anatomy))
        return SpeedHere(fit(anatomy, place, most), mine)
    except FreeholdError:
        return SpeedHere(None, ())
