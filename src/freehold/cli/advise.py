"""`freehold advise TASK`: open models for a task, ranked, with reasons and the command that runs the first.

Knows options and outputs; the rules and the ranking are the advisor's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.options import options_of
from freehold.base.terminal import Ticking
from freehold.choose.choosing import AdviceOptions, company_facts
from freehold.cli.helping import section
from freehold.cli.options import setting_options
from freehold.cli.report.advice import (
    chart,
    print_advice,
    relaxed,
    report,
)
from freehold.cli.shared import FACTS, company_options, json_option, write_beside
from freehold.serve.reports.plain import as_plain

if TYPE_CHECKING:
    from freehold.base.catalog.questions import Question
    from freehold.choose.advisor.advice import Advice
    from freehold.cli.report.trying import Tried

NOT_GOOD_ENOUGH = 3  # exit status: models run, none is good enough
SHOWN = 8  # models of a ranking


@click.command("advise")
@click.argument("task", required=False, metavar="[TASK]")
@section("The model")
@setting_options(
    AdviceOptions,
    "country_not",
    "min_context",
    "max_params",
    "min_speed",
    "languages",
    "cheapest",
    "sees",
    "held",
)
@section("Hardware and load")
@setting_options(AdviceOptions, "on", "engine", "budget", "users_at_once")
@section("Your use, for the licence")
@company_options
@section("Your own cases")
@click.option("--try", "samples", metavar="FILE", help="Run the shortlist on your own cases (JSON lines).")
@click.option(
    "--judge", metavar="MODEL", default="", help="With --try: the model that grades cases with a rubric."
)
@click.option(
    "--yes",
    "fetch",
    is_flag=True,
    help="With --try: also download models of the shortlist that are not installed.",
)
@section("Output")
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    help="Models to show (default 8), or with --try to run (default 5).",
)
@click.option("--all", "everything", is_flag=True, help="List every excluded model and the reason.")
@click.option("--plot", "plotted", is_flag=True, help="Plot speed against quality.")
@click.option("--html", "html", metavar="FILE", help="Write a report with charts to FILE.")
@click.option("--svg", "svg", metavar="FILE", help="Write the chart to FILE.")
@click.option(
    "--run", "run", is_flag=True, help="Run the first pick and compare its speed with the prediction."
)
@json_option
@click.pass_obj
def command(
    settings: Settings,
    task: str | None,
    top: int | None,
    everything: bool,
    run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Recommend open models for TASK, such as "code completion" or "RAG over German contracts", with reasons.

    Conditions in the words of TASK (languages, hardware, users, context, privacy, budget) apply unless an option sets
    them. The answer lists which words were understood and which were ignored; a TASK that names no task is an error.

    Quality comes from published results, converted to one benchmark's scale, with an 80 % range and a deduction for
    the quantisation. Models whose range begins below the task's bar, or that have no published result, are not
    ranked. Speed and memory are predicted for this machine, or for HARDWARE. The licence is checked if a purpose is
    stated, here or in config.toml under [company]; other facts are options, as for `freehold license`. An unknown
    fact never passes a condition.

    --try runs the ranked models that are installed on your own cases, and ranks them by these results before the
    published ones; docs/guides/advise.md describes the file. Answers are kept, so an interrupted run continues.

    Exit status: 0 if a model is recommended, 1 if no model meets the conditions, 3 if models run but none is good
    enough.

    With --json: {"schema": 1, "task", "understood", "ignored", "notes", "benchmark", "bar", "good_enough", "speed",
    "context", "considered", "picks": [...], "below": [...], "unproven": [...], "instead": [...], "tiers": {...},
    "ruled_out": [...], "relax": [...], "tried": {...}}.
    """
    if hardware_question := _asks_hardware(task):
        from freehold.cli.hardware import for_question

        for_question(
            hardware_question, users=options["users_at_once"], context=options["min_context"], as_json=as_json
        )
        return
    with Ticking("ranking models: this machine is measured once"):
        advice = _advice(settings, _task(task, options["samples"]), options)
    trial = _trial(settings, advice, options, top)
    advice = trial.advice if trial else advice
    shown = advice.picks[: top or SHOWN]
    if as_json:
        click.echo(json.dumps(as_plain(advice) | {"tried": trial and trial.as_plain()}, indent=1))
    else:
        print_advice(advice, shown, everything=everything, plotted=options["plotted"])
        for line in trial.lines() if trial else ():
            click.echo(line)
    for option, draw in (("svg", chart), ("html", report)):
        if path := options[option]:
            click.echo(f"wrote {write_beside(path, draw(advice, shown))}", err=True)
    if not advice.picks:
        click.echo(relaxed(advice), err=True)
        raise click.exceptions.Exit(NOT_GOOD_ENOUGH if advice.below or advice.unproven else 1)
    if run:
        from freehold.cli.report.trying import run_first

        run_first(settings, advice, quiet=as_json)


def _asks_hardware(task: str | None) -> Question | None:
    """Return the question if it asks which hardware a model needs."""
    from freehold.base.catalog.questions import question

    parsed = question(task) if task else None
    return parsed if parsed and parsed.asks_hardware else None


def _task(task: str | None, samples: str | None) -> str:
    if not (task or "").strip() and not samples:
        raise UsageError("a task is missing", 'describe it in a few words: freehold advise "code completion"')
    return task or "chat"


def _trial(settings: Settings, advice: Advice, options: dict[str, Any], top: int | None) -> Tried | None:
    if not options["samples"]:
        if options["judge"] or options["fetch"]:
            raise UsageError("--judge and --yes need --try", "name a file of cases: --try samples.jsonl")
        return None
    from freehold.cli.report.trying import tried

    try:
        return tried(
            settings, advice, options["samples"], top=top, judge=options["judge"], fetch=options["fetch"]
        )
    except KeyboardInterrupt:
        click.echo("stopped; the answers are kept, and the same command continues", err=True)
        raise click.exceptions.Exit(130) from None


def _advice(settings: Settings, task: str, options: dict[str, Any]) -> Advice:
    from freehold.choose.choosing import advise

    facts = company_facts(
        settings, {"purpose": options["purpose"], **{name: options[name] for name in FACTS}}
    )
    conditions = {name: options[name] for name in options_of(AdviceOptions)}
    users = conditions.pop("users_at_once")  # `users` are a company's a month
    return advise(task, facts=facts, users=users, **conditions, settings=settings)
