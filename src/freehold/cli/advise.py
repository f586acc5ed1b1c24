"""`freehold advise TASK`: which open model for this work, ranked, with reasons and the command that runs it.

Words, tables and files; the rules and the ranking are the advisor's, where a model would run is placing.py's.
Path: main -> advise -> advisor.advice.advise -> terminal, JSON, or advice_report.py's page.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.company import FACTS, company_facts, company_options
from freehold.cli.models import Billions
from freehold.cli.report.advice import (
    apart,
    beside_lines,
    chart,
    command_of,
    head,
    name,
    needs,
    reasons,
    report,
    row,
    short_of,
    understood,
    vouched,
)
from freehold.cli.report.facts import size
from freehold.cli.shared import Amount, json_option, table, write_beside
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice, Judged, Own, Placement
    from freehold.advisor.interval import Interval
    from freehold.catalog import Model
    from freehold.catalog.questions import Question
    from freehold.cli.report.trying import Tried

SCHEMA = 1
NOT_GOOD_ENOUGH = 3  # exit status where models run and none is good enough
LETTERS = "123456789abcdefghijklmnopqrstuvwxyz"
SHOWN = 8  # models of a ranking
_NAMED = 3  # models named of each rule that ruled some out


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
        _print(advice, shown, everything=everything, plotted=given["plotted"])
        for line in trial.lines() if trial else ():
            click.echo(line)
    for option, draw in (("svg", chart), ("html", report)):
        if path := given[option]:
            click.echo(f"wrote {write_beside(path, draw(advice, shown))}", err=True)
    if not advice.picks:
        click.echo(relaxed(advice), err=True)
        raise click.exceptions.Exit(NOT_GOOD_ENOUGH if advice.below or advice.unproven else 1)
    if run:
        _run(settings, advice, quiet=as_json)


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


def _print(advice: Advice, shown: tuple[Judged, ...], *, everything: bool, plotted: bool) -> None:
    task = advice.request.task
    scale = f", on the scale of {advice.benchmark}" if advice.benchmark else ""
    click.echo(f"{task.id}: {task.title}; {needs(advice)}{scale}")
    for line in understood(advice):
        click.echo(line)
    if shown:
        _print_picks(advice, shown)
        if plotted:
            _print_plot(advice, shown)
        _print_tiers(advice)
        if any(j.placement and not j.placement.sure for j in shown):
            click.echo(
                "this machine was busy when it was measured: only the upper end of a speed rules a model out"
            )
    for line in beside_lines(advice):
        click.echo(line)
    if lines := apart(advice):
        click.echo("")
        for line in lines:
            click.echo(line)
    _print_ruled_out(advice, everything)
    if advice.request.facts is None:
        click.echo("licences were not judged: --licence commercial does (not legal advice)")


def _print_picks(advice: Advice, shown: tuple[Judged, ...]) -> None:
    """Print the ranking, then the first one's reasons and command."""
    marks = (LETTERS[i] if i < len(LETTERS) else f"{i + 1}" for i in range(len(shown)))
    rows = [(mark, *row(advice, judged)) for mark, judged in zip(marks, shown, strict=True)]
    table(tuple(h.upper() for h in head(advice)), rows, right=(2, 4))
    if len(advice.picks) > len(shown):
        click.echo(f"and {len(advice.picks) - len(shown)} more: --top {len(advice.picks)}")
    click.echo("")
    for line in reasons(advice, shown[0]):
        click.echo(line)
    click.echo(command_of(shown[0]))


def _print_plot(advice: Advice, shown: tuple[Judged, ...]) -> None:
    from freehold.advisor.report import Axis
    from freehold.cli.report.plot import Mark, plot

    marks = [
        Mark(j.placement.decode.mid, j.quality.range.mid, letter)
        for letter, j in zip(LETTERS, shown, strict=False)
        if j.placement and j.quality
    ]
    if marks:
        click.echo("")
        for line in plot(marks, Axis("tokens a second", log=True), Axis(advice.benchmark)):
            click.echo(line)


def _print_tiers(advice: Advice) -> None:
    """Print the best model of each size class, those that only the place stands against included."""
    rows = []
    for tier, judged in advice.by_tier.items():
        there = str(judged.placement.decode) + " tok/s" if judged.placement else ""
        against = "; ".join(r.why for r in judged.refusals)
        rows.append((tier, name(judged.model), size(judged.model), vouched(judged)[0], against or there))
    click.echo("")
    table(("TIER", "BEST OF IT", "SIZE", advice.benchmark.upper() or "QUALITY", "THERE"), rows, right=(2,))


def _print_ruled_out(advice: Advice, everything: bool) -> None:
    from freehold.advisor.advice import RULES

    click.echo("")
    if everything:
        rows = [(j.model.id, r.rule, r.why) for j in advice.ruled_out for r in j.refusals]
        table(("RULED OUT", "BY", "WHY"), rows)
        return
    counts = Counter(rule for j in advice.ruled_out for rule in {r.rule for r in j.refusals})
    several = " (some by several rules)" if counts.total() > len(advice.ruled_out) else ""
    click.echo(f"ruled out: {len(advice.ruled_out)} of {advice.considered} models{several}")
    ranked = sorted(advice.ruled_out, key=lambda j: -j.vouched)
    for rule in RULES:
        if rule in counts:
            found = [name(j.model) for j in ranked if any(r.rule == rule for r in j.refusals)]
            more = ", ..." if len(found) > _NAMED else ""
            click.echo(f"  by {rule}: {counts[rule]} ({', '.join(found[:_NAMED])}{more})")
    click.echo("each with its reason: --all")


def relaxed(advice: Advice) -> str:
    """Say that nothing is good enough, or which condition to drop, by how many models each would bring in."""
    if advice.below or advice.unproven:
        said = f"nothing here is good enough for {advice.request.task.id}: {_best(advice)}"
        good = [f"{n} {_with(option)}" for option, n in advice.relax_to_good[:3]]
        said += f"; good enough would be {', '.join(good)}" if good else ""
        return said + ("; on other hardware: see above" if advice.instead else "")
    ways = [f"{count} {_with(option)}" for option, count in advice.relax[:4]]
    return "no model is left: " + (
        f"there would be {', '.join(ways)}" if ways else "the task itself rules all out"
    )


# What changes a condition that stands although its option was not given: the place's, the task's, the question's.
_CHANGES = {
    "--engine": "on another engine (--on HARDWARE --engine NAME)",
    "--on": "with more memory (--on HARDWARE)",
    "--budget": "with a higher --budget",
    "--users": "for fewer --users",
    "--min-speed": "at a lower --min-speed",
}


def _with(options: str) -> str:
    """Word how conditions are relaxed: without --language and for fewer --users."""
    return " and ".join(_CHANGES.get(option, f"without {option}") for option in options.split(" and "))


def _best(advice: Advice) -> str:
    if not advice.below:
        return f"the {len(advice.unproven)} models that run have no published result for this kind of work"
    best = advice.below[0]
    return (
        f"the best that runs has {short_of(advice, best)} on {advice.benchmark}, and its range begins below "
        f"the bar of {advice.bar:g}"
    )


def as_plain(advice: Advice) -> dict[str, Any]:
    """Return the answer as JSON has it."""
    return {
        "schema": SCHEMA,
        "task": advice.request.task.id,
        "understood": [asdict(p) for p in advice.asked.understood] if advice.asked else [],
        "ignored": list(advice.asked.question.ignored) if advice.asked else [],
        "notes": list(advice.asked.notes) if advice.asked else [],
        "benchmark": advice.benchmark,
        "bar": advice.bar,
        "good_enough": bool(advice.picks),
        "considered": advice.considered,
        "speed": advice.request.speed,
        "context": advice.request.context,
        "beside": _beside(advice),
        "picks": [_plain(j, advice.own.get(j.model.id)) for j in advice.picks],
        "below": [_plain(j) for j in advice.below],
        "unproven": [_plain(j) for j in advice.unproven],
        "instead": [_plain(j) for j in advice.instead],
        "tiers": {tier: j.model.id for tier, j in advice.by_tier.items()},
        "ruled_out": [_plain(j) for j in advice.ruled_out],
        "relax": [{"without": option, "models": count} for option, count in advice.relax],
    }


def _beside(advice: Advice) -> dict[str, Any] | None:
    found = advice.beside
    return found and {
        **{
            key: one and {"id": one.model.id, "says": one.says, "command": one.line.command}
            for key, one in (("embedder", found.embedder), ("reranker", found.reranker))
        },
        "no_reranker": found.no_reranker,
    }


def _plain(judged: Judged, own: Own | None = None) -> dict[str, Any]:
    model, place, quality = judged.model, judged.placement, judged.quality
    return {
        "id": model.id,
        "name": model.name,
        "tier": model.tier,
        "params_b": model.params_b,
        "quality": quality
        and {
            "benchmark": quality.benchmark,
            **quality.range.as_json(),
            "basis": quality.basis,
            "evidence": quality.evidence,
        },
        "languages": [asdict(t) for t in judged.tongues],
        "own": own and {"cases": own.cases, "passed": own.passed, **own.range.as_json()},
        "licence": {"id": model.licence, "answer": judged.verdict.answer if judged.verdict else None},
        "placement": place
        and asdict(place)
        | {"decode": place.decode.as_json(), "prefill": place.prefill and place.prefill.as_json()},
        "refusals": [asdict(r) for r in judged.refusals],
    }


def _run(settings: Settings, advice: Advice, *, quiet: bool) -> None:
    """Run the first pick that can be had with the task's sample, and say whether its speed was foreseen."""
    for judged in advice.picks:
        place = judged.placement
        if place is None or place.engine != "freehold" or advice.request.task.encoder:
            raise UsageError("--run has a model of this machine answer", "run the command above instead")
        try:
            tried = _try(settings, judged.model, place, advice.request.task.sample, quiet=quiet)
        except FreeholdError as e:
            click.echo(f"{name(judged.model)} cannot be run: {e.message}; the next one", err=True)
            continue
        click.echo(f"decode {tried:.1f} tokens a second; predicted {_held(tried, place.decode)}", err=True)
        if tried not in place.decode:
            then = _foreseen_now(settings, judged.model, place)
            click.echo(f"with the machine as busy as it is now, predicted {_held(tried, then)}", err=True)
        return
    raise UsageError("none of these models can be had from here", "--held asks for those that are here")


def _held(tried: float, foreseen: Interval) -> str:
    return f"{foreseen}: {'inside' if tried in foreseen else 'outside'}"


def _try(settings: Settings, model: Model, place: Placement, sample: str, *, quiet: bool) -> float:
    """Answer the sample without guesses, which the prediction leaves out; return tokens a second."""
    from freehold.advisor.learning import learn
    from freehold.cli.shared import held_or_fetched
    from freehold.local import open_model
    from freehold.machine import Crowd
    from freehold.store import Store

    store = Store(settings)
    ref = held_or_fetched(store, model.name or model.id)
    speed, usages, crowd = 0.0, [], Crowd()
    with open_model(ref, context=place.context, speculate=False, packs=store.packs) as llm:
        for chunk in llm.stream(sample, max_tokens=128, temperature=0):
            if chunk.usage:
                speed = chunk.usage.decode_tok_s
                usages.append(chunk.usage)
            if not quiet:
                click.echo(chunk.text, nl=False)
    if not quiet:
        click.echo("")
    learn(settings.home, ref.path, usages, crowd.share())
    return speed


def _foreseen_now(settings: Settings, model: Model, place: Placement) -> Interval:
    """Foresee the speed again from rates measured now: others may share the machine, and a guest's clock changes."""
    from freehold.advisor.fit import Fit, fit
    from freehold.advisor.machine import rates_now
    from freehold.choosing import here as this_machine
    from freehold.choosing import weighed

    here = this_machine(settings)
    assert here.machine is not None  # it is this machine
    then = replace(here, machine=replace(here.machine, rates=rates_now()))
    found = fit(weighed(settings, model.name or model.id), then, place.context)
    return found.decode if isinstance(found, Fit) else place.decode
