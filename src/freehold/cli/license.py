"""`freehold license [NAME]`: the terms of a licence, whether they allow a use, and the duties that follow.

Lists, shows and compares licences and models. Knows wording: terms come from the catalogue, the answer from the
advisor.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.choose.choosing import company_facts
from freehold.cli.shared import FACT_OPTIONS, company_options, json_option, pairs, table, write_beside
from freehold.serve.reports.plain import licences_json, rulings, verdicts_json

if TYPE_CHECKING:
    from freehold.base.catalog.licence import Licence
    from freehold.choose.advisor.lineage import Subject
    from freehold.choose.advisor.verdict import DutyPack, Facts, Reason, Verdict

_WORDS = {
    "allowed": "allowed",
    "conditions": "allowed, with conditions",
    "refused": "refused",
    "unknown": "not decided",
}
_BEARING = {
    "refuses": "no",
    "undecided": "open",
    "unknown": "open",
    "requires": "must",
    "requires if": "must, if",
    "allows": "yes",
}
_WIDTH = 110
_FALSE_UNSAID = ("end_user", "bypasses_guardrails", "same_family", "narrow")  # not given means no


@click.command("license")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@company_options
@click.option("--merge", "merged", multiple=True, metavar="NAME", help="Another model merged into yours.")
@click.option(
    "--taught-by", "teachers", multiple=True, metavar="NAME", help="A model whose outputs train yours."
)
@click.option(
    "--pack", "folder", metavar="DIR", help="Write NOTICE and OBLIGATIONS.md to DIR; - prints them."
)
@click.option("--check", is_flag=True, help="Exit 1 unless the use is allowed.")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    names: tuple[str, ...],
    merged: tuple[str, ...],
    teachers: tuple[str, ...],
    folder: str | None,
    check: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check whether the licence of NAME (a model or a licence) allows your use; compare several; list all.

    --taught-by without a NAME checks a model of your own that you train on other models' outputs.

    A fact that you do not state is unknown. If the verdict depends on it, the answer names it. You can also set
    facts in config.toml under [company], by the names in --json. This is not legal advice.

    With --json: {"schema": 1, "licences": [...]} for the list, {"schema": 1, "verdicts": [...]} otherwise.
    """
    if not names and not teachers:
        _nothing_to_judge(options, merged, folder, check)
        _print_all(as_json)
        return
    if not names and merged:
        raise UsageError("--merge needs a NAME", "name the base of your model")
    if len(names) > 1 and (folder or merged or teachers):
        raise UsageError("--pack, --merge and --taught-by take one NAME", "name the others with --merge")
    if names and (merged or teachers) and options["modifies"] is False:
        raise UsageError(
            "--no-modifies contradicts --merge and --taught-by, which change the model", "leave it out"
        )
    facts = company_facts(settings, options)
    judged = rulings(names, facts, merged, teachers, multimodal=options["multimodal"])
    if folder == "-" and as_json:
        raise UsageError("--pack - and --json both write to stdout", "name a folder for the pack")
    if folder:
        _write(folder, judged[0][1])
    if as_json:
        click.echo(json.dumps(verdicts_json(judged), indent=1))
    elif len(judged) > 1:
        _print_comparison(judged)
    elif folder != "-":
        _print_one(*judged[0])
    if check and any(v.answer not in ("allowed", "conditions") for _, v in judged):
        raise click.exceptions.Exit(1)


def _nothing_to_judge(
    options: dict[str, Any], merged: tuple[str, ...], folder: str | None, check: bool
) -> None:
    """Raise UsageError for options that the list of licences does not use."""
    if merged or folder or check:
        raise UsageError("--merge, --pack and --check need a NAME")
    if unused := [FACT_OPTIONS[fact] for fact, value in options.items() if value not in (None, "")]:
        raise UsageError(
            f"{unused[0]} needs a NAME to judge",
            "freehold license qwen3:8b --for commercial; alone it lists licences",
        )


def _print_all(as_json: bool) -> None:
    from freehold.base.catalog.licence import licences

    if as_json:
        click.echo(json.dumps(licences_json(), indent=1))
        return
    rows = [
        (
            one.aliases[0] if one.aliases and one.id.startswith("LicenseRef-") else one.id,
            one.kind,
            *(_in_a_word(one, topic) for topic in ("commercial", "outputs", "scale", "geography")),
            one.evidence,
        )
        for one in licences()
    ]
    rank = {"permissive": 0, "custom": 1, "restricted": 2, "service": 3}
    rows.sort(key=lambda row: (rank[row[1]], row[0].lower()))
    table(("licence", "class", "commercial", "train on outputs", "scale", "place", "evidence"), rows)


def _in_a_word(one: Licence, topic: str) -> str:
    effects = {t.effect for t in (*one.about(topic), *(one.about("service") if topic == "scale" else ()))}
    for effect, word in (("refuses", "limits"), ("unknown", "?"), ("requires", "conditions")):
        if effect in effects:
            plain = topic in ("commercial", "outputs") and effect == "refuses"
            return "no" if plain else word
    return "yes" if topic in ("commercial", "outputs") else "-"


def _print_one(subject: Subject, judgement: Verdict) -> None:
    """Print a licence's card, or a model's openness, and the verdict."""
    from freehold.base.catalog.licence import find
    from freehold.choose.advisor.lineage import openness

    own = find(subject.expression)
    if subject.model is None and own is not None and subject.name == own.name:
        _print_card(own)
    place = openness(subject)
    osi = f"; OSI: {place.osi}" if place.osi else ""
    mof = f" (MOF class {place.mof})" if place.mof else ""
    pairs(
        [
            ("subject", judgement.subject),
            ("licence", ", ".join(map(_named, judgement.licences)) or subject.expression or "not known"),
            ("openness", f"{place.level} {place.name}{osi}"),
            ("", place.says + mof),
            ("answer", f"{_WORDS[judgement.answer]}, for {_told(judgement.facts)}"),
        ]
    )
    for reason in judgement.reasons:
        _print_reason(reason, several=len(judgement.licences) > 1)
    _print_sources(judgement)


def _print_sources(judgement: Verdict) -> None:
    from freehold.choose.advisor.verdict import DISCLAIMER

    if judgement.questions:
        questions = zip(judgement.missing, judgement.questions, strict=True)
        _fill(
            "for a verdict, state: " + "; ".join(f"{text} ({FACT_OPTIONS[fact]})" for fact, text in questions)
        )
    for source in dict.fromkeys(r.source for r in judgement.reasons):
        click.echo(f"source: {source}")
    click.echo(DISCLAIMER)


def _print_reason(reason: Reason, several: bool) -> None:
    waits = f" ({', '.join(FACT_OPTIONS[fact] for fact in reason.waits_for)}?)" if reason.waits_for else ""
    whose = f", {_named(reason.licence)}" if several and reason.licence else ""
    chain = (reason.model, *reversed(reason.via))
    chain = chain[1:] if chain[1:] == (f"outputs of {reason.model}",) else chain
    through = f", through {' < '.join(chain)}" if reason.via else ""
    _fill(f"  {_BEARING[reason.bearing]}{waits}: {reason.sentence} [{reason.clause}{whose}{through}]")


def _fill(text: str, first: str = "", rest: str = "      ") -> None:
    """Print lines that break at spaces alone, so that an address or a prescribed word stays whole."""
    wrap = textwrap.TextWrapper(_WIDTH, first, rest, break_on_hyphens=False, break_long_words=False)
    click.echo(wrap.fill(text))


def _print_card(one: Licence) -> None:
    from freehold.base.catalog.licence import TOPICS

    rows = [
        ("licence", one.name),
        ("identifier", one.id),
        ("class", one.kind),
        ("issued", one.issued.isoformat() if one.issued else "not known"),
        ("text", one.url),
        ("source", f"{one.text} ({one.evidence}, checked {one.checked.isoformat()})"),
        ("sha256", one.sha256),
        ("note", one.note),
        ("used by", ", ".join(one.covers)),
    ]
    effects = {"refuses": "no, if it applies: ", "requires": "must: "}
    rows += [(TOPICS[t.topic], f"{effects.get(t.effect, '')}{t.sentence} ({t.clause})") for t in one.terms]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if value:
            lead = f"{name.ljust(width)}  "
            _fill(value, lead, " " * len(lead))
    click.echo()


def _print_comparison(judged: list[tuple[Subject, Verdict]]) -> None:
    from freehold.choose.advisor.lineage import openness
    from freehold.choose.advisor.verdict import DISCLAIMER

    rows = [(v.subject, _WORDS[v.answer], str(openness(subject).level), _because(v)) for subject, v in judged]
    click.echo(f"for {_told(judged[0][1].facts)}:")
    table(("name", "answer", "openness", "because of"), rows)
    click.echo(DISCLAIMER)


def _because(v: Verdict) -> str:
    """Return the first clause of a refusal, or the conditions of a permission."""
    if not v.deciding:
        return ""
    if v.answer == "conditions":
        due = [r for r in v.deciding if r.bearing == "requires"]
        waiting = [r for r in v.deciding if r.bearing != "requires"]
        options = dict.fromkeys(FACT_OPTIONS[fact] for r in waiting for fact in r.waits_for)
        first = f"{due[0].sentence} [{due[0].clause}]" if due else ""
        rest = f"{len(due) - 1} more" if len(due) > 1 else ""
        duties = "1 duty" if len(waiting) == 1 else f"{len(waiting)} duties"
        depends = f"{duties} if {' or '.join(options)}" if waiting else ""
        return "; ".join(filter(None, [first, rest, depends]))
    first = v.deciding[0]
    return f"{first.sentence} [{first.clause}]"


def _named(identifier: str) -> str:
    from freehold.base.catalog.licence import find

    one = find(identifier)
    return one.name if one else identifier


def _told(facts: Facts) -> str:
    facts_in_words = []
    for name, value in asdict(facts).items():
        plain = name.replace("_", " ")
        if value is None or value == "" or (value is False and name in _FALSE_UNSAID):
            continue
        if isinstance(value, bool):
            facts_in_words.append(plain if value else f"no {plain}")
        else:
            facts_in_words.append(f"{plain} {value}" if isinstance(value, str) else f"{plain} {value:,.0f}")
    return ", ".join(facts_in_words) or "no stated facts"


def _write(folder: str, judgement: Verdict) -> None:
    from freehold.choose.advisor.verdict import pack

    duties: DutyPack = pack(judgement)
    if folder == "-":
        for name, content in sorted(duties.files().items()):
            click.echo(f"==> {name}\n{content}")
        return
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    for name, content in duties.files().items():
        click.echo(f"wrote {write_beside(target / name, content)}", err=True)
