"""`freehold advise TASK`: which open model for this work, ranked, with reasons and the command that runs it.

Words, tables and files; the rules and the ranking are the advisor's, where a model would run is placing.py's.
Path: main -> advise -> advisor.advice.advise -> terminal, JSON, or advice_report.py's page.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.company import FACTS, company_facts, company_options
from freehold.cli.models import Billions
from freehold.cli.report.advice import (
    chart,
    report,
)
from freehold.cli.report.advice_json import as_plain
from freehold.cli.report.advice_text import print_advice, relaxed
from freehold.cli.shared import Amount, json_option, write_beside
from freehold.config import Settings
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice
    from freehold.catalog.questions import Question
    from freehold.cli.report.trying import Tried

NOT_GOOD_ENOUGH = 3  # exit status where models run and none is good enough
SHOWN = 8  # models of a ranking


@click.command("advise")
@click.argument("task", required=False, metavar="[TASK]")
@click.option(
    "--licence", "--license", "licence", metavar="PURPOSE", help="commercial, internal, evaluation, research."
)
@click.option("--country-not", metavar="CC", multiple=True, help="Not made there: CN; repeatable.")
@click.option("--min-context", type=Amount(whole=True), default=0, help="Tokens: 32k, 1m.")
@click.option("--max-size", "max_params", type=Billions(), default=0.0, help="Parameters: 8b, 270m.")
@click.option("--min-speed", type=click.FloatRange(0, 1e6), help="Tokens a second; default: the task's pace.")
@click.option(
    "--on", "hardware", metavar="HARDWARE", default="", help="2xh100, rtx4090, m3-max:64; default: here."
)
@click.option("--engine", metavar="NAME", default="", help="With --on: vllm, sglang, llama.cpp, ...")
@click.option("--budget", type=click.FloatRange(0, 1e9), metavar="DOLLARS", help="Rent at most this a month.")
@click.option("--users", "users_at_once", type=click.IntRange(1, 4096), help="So many ask at a time.")
@click.option(
    "--language", "languages", metavar="CC", multiple=True, help="de, fr, ja; mul: many; repeatable."
)
@click.option("--cheapest", is_flag=True, help="Of those not shown to be worse, what costs least first.")
@click.option("--held", is_flag=True, help="Only models that are held here.")
@company_options
@click.option(
    "--top", type=click.IntRange(1, 1000), help="Show this many, 8 by default; with --try, try as many, 5."
)
@click.option("--try", "samples", metavar="FILE", help="Try the shortlist on your own cases, JSON lines.")
@click.option("--judge", metavar="MODEL", default="", help="With --try: grades the cases that have a rubric.")
@click.option(
    "--yes", "fetch", is_flag=True, help="With --try: pull models of the shortlist that are not held."
)
@click.option("--all", "everything", is_flag=True, help="Name everything that was ruled out, and why.")
@click.option("--plot", "plotted", is_flag=True, help="Draw speed against quality.")
@click.option("--html", "html", metavar="FILE", help="Write a report with charts.")
@click.option("--svg", "svg", metavar="FILE", help="Write the chart alone.")
@click.option("--run", "run", is_flag=True, help="Run the first, and compare its speed with the prediction.")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    task: str | None,
    top: int | None,
    everything: bool,
    run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Say which open model to use for TASK, such as "code completion" or "RAG over German contracts", and why.

    What the words say counts unless an option says it: task, languages, hardware, users, context, privacy, a budget.
    What was understood and what was ignored is named; words that name no task are an error.

    Quality is what makers and public boards published, on one benchmark's scale, with the range that four of five
    known results fall into, less what the quantisation costs. Models whose range does not lie above the task's bar
    are not ranked, nor those without a published result. Speed and memory are predicted for this machine, or for
    HARDWARE. A licence is judged when a purpose is given, here or in config.toml's [company]; other facts of yours
    as for `freehold license`. What is not known never passes a condition.

    --try runs the models of the ranking that are held here on your own cases, the same for each, and lets those
    results go before published ones; docs/guides/advise.md has the file's form. Answers are kept, so that a run
    that was stopped goes on.

    Exit status: 0 with a pick, 1 where the conditions leave no model, 3 where models run and none is good enough.

    With --json: {"schema": 1, "task", "understood", "ignored", "notes", "benchmark", "bar", "good_enough", "speed",
    "context", "considered", "picks": [...], "below": [...], "unproven": [...], "instead": [...], "tiers": {...},
    "ruled_out": [...], "relax": [...], "tried": {...}}.
    """
    if asked := _asks_hardware(task):
        from freehold.cli.hardware import for_question

        for_question(asked, users=given["users_at_once"], context=given["min_context"], as_json=as_json)
        return
    advice = _advice(settings, _task(task, given["samples"]), given)
    trial = _trial(settings, advice, given, top)
    advice = trial.advice if trial else advice
    shown = advice.picks[: top or SHOWN]
    if as_json:
        click.echo(json.dumps(as_plain(advice) | {"tried": trial and trial.as_plain()}, indent=1))
    else:
        print_advice(advice, shown, everything=everything, plotted=given["plotted"])
        for line in trial.lines() if trial else ():
            click.echo(line)
    for option, draw in (("svg", chart), ("html", report)):
        if path := given[option]:
            click.echo(f"wrote {write_beside(path, draw(advice, shown))}", err=True)
    if not advice.picks:
        click.echo(relaxed(advice), err=True)
        raise click.exceptions.Exit(NOT_GOOD_ENOUGH if advice.below or advice.unproven else 1)
    if run:
        from freehold.cli.report.advice_run import run_first

        run_first(settings, advice, quiet=as_json)


def _asks_hardware(task: str | None) -> Question | None:
    """Return a question that asks which hardware a model needs."""
    from freehold.catalog.questions import question

    asked = question(task) if task else None
    return asked if asked and asked.asks_hardware else None


def _task(task: str | None, samples: str | None) -> str:
    if not (task or "").strip() and not samples:
        raise UsageError("which task?", 'say it in a few words: freehold advise "code completion"')
    return task or "chat"


def _trial(settings: Settings, advice: Advice, given: dict[str, Any], top: int | None) -> Tried | None:
    """Try the shortlist where --try names cases."""
    if not given["samples"]:
        if given["judge"] or given["fetch"]:
            raise UsageError("--judge and --yes go with --try", "name a file of cases: --try samples.jsonl")
        return None
    from freehold.cli.report.trying import tried

    try:
        return tried(settings, advice, given["samples"], top=top, judge=given["judge"], fetch=given["fetch"])
    except KeyboardInterrupt:
        click.echo("stopped; every answer is kept, and the same command goes on", err=True)
        raise click.exceptions.Exit(130) from None


def _advice(settings: Settings, task: str, given: dict[str, Any]) -> Advice:
    """Put the options into a request and have it answered."""
    from freehold.choosing import advise

    purpose, licence = given["purpose"], given["licence"]
    if purpose and licence and purpose != licence:
        raise UsageError(f"--licence {licence} and --for {purpose} are two purposes", "give one of them")
    facts = company_facts(settings, {"purpose": purpose or licence, **{name: given[name] for name in FACTS}})
    return advise(
        task,
        facts=facts,
        country_not=given["country_not"],
        min_context=given["min_context"],
        max_params=given["max_params"],
        min_speed=given["min_speed"],
        on=given["hardware"],
        engine=given["engine"],
        budget=given["budget"],
        held=given["held"],
        users=given["users_at_once"],
        languages=given["languages"],
        cheapest=given["cheapest"],
        settings=settings,
    )
