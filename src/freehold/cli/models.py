"""`freehold models`: searches, filters and sorts the catalogue; `models refresh` compares it with the hub.

Knows options and columns; the facts are the catalogue's, store/hub.py asks the hub.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import click

from freehold.base import catalog
from freehold.base.catalog.models import Query, nearest_names, ordered, score, select
from freehold.base.catalog.schema import gaps
from freehold.base.config import Settings
from freehold.base.terminal import Ticking
from freehold.cli.options import setting_options
from freehold.cli.report.facts import age, short_licence, size, tokens
from freehold.cli.shared import json_option, table
from freehold.serve.reports.plain import facts_json

SCHEMA = 1
HEAD = ("MODEL", "NAME", "TIER", "SIZE", "CONTEXT", "LICENCE", "FROM", "RELEASED")


class Shelf(click.Group):
    """A group whose default is `list`: `models qwen coder` searches, `models refresh` is a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` where no subcommand is given."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("models", cls=Shelf)
def command() -> None:
    """Search the catalogue of open models: size, context, licence, origin and scores, with sources and dates.

    `freehold models WORDS` lists the models that match; your own entries are in catalogue.toml of the data folder.
    """


@command.command("list", epilog="Example: freehold models list --country FR")
@click.argument("words", nargs=-1)
@click.option(
    "--licence",
    "--license",
    "licence",
    metavar="ID",
    default="",
    help="Licence id or a part of it; 'unknown': not stated.",
)
@setting_options(Query)
@click.option(
    "--sort", metavar="KEY", default="", help="Sort by params, released, context, cache, name, mmlu_pro, ..."
)
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@json_option
def list_(words: tuple[str, ...], sort: str, reverse: bool, as_json: bool, **options: Any) -> None:
    """List the models that match every WORD and option.

    An unknown fact matches no filter. With --json, prints {"schema": 1, "models": [...]} with every fact.
    """
    query = Query(words=words, **{k: v for k, v in options.items() if v})
    everything = catalog.models()
    matches = select(everything, query)
    if sort:
        matches = ordered(matches, sort, reverse=reverse) if matches else []
    elif reverse:
        matches.reverse()
    today = date.today()
    if as_json:
        rows = [facts_json(m, today) for m in matches]
        click.echo(json.dumps({"schema": SCHEMA, "models": rows}, indent=1))
    elif matches:
        _print(matches, sort, today)
    if not matches:
        click.echo(_relax(everything, query), err=True)


@command.command("lint", epilog="Example: freehold models lint")
@json_option
def lint(as_json: bool) -> None:
    """List catalogue entries with missing facts; exits with status 1 if there are any.

    Facts are layers, context, weights and their precision; your own entries are checked too. An entry may lack one if
    its `not_published` names the source that was searched. With --json, prints {"schema": 1, "models": n,
    "gaps": [{"id": ..., "gap": ...}]}.
    """
    everything = catalog.models()
    all_gaps = [(m.id, gap) for m in everything for gap in gaps(m)]
    if as_json:
        rows = [{"id": model_id, "gap": gap} for model_id, gap in all_gaps]
        click.echo(json.dumps({"schema": SCHEMA, "models": len(everything), "gaps": rows}, indent=1))
    else:
        for model_id, gap in all_gaps:
            click.echo(f"{model_id}: {gap}")
        click.echo(f"{len(everything)} models, {len(all_gaps)} gaps", err=True)
    if all_gaps:
        raise click.exceptions.Exit(1)


@command.command("refresh", epilog="Example: freehold models refresh")
@click.argument("models", nargs=-1)
@click.option("--yes", is_flag=True, help="Add changes to your catalogue.toml without asking.")
@json_option
@click.pass_obj
def refresh(settings: Settings, models: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Compare the catalogue's facts about MODELS with the hub.

    Default: all models with a short name. No fact is overwritten: after you confirm, a newer, dated fact is added
    to your own catalogue.toml. With --json, prints {"schema": 1, "changes": [...], "failed": [...], "file": ...,
    "added": n}.
    """
    from freehold.run.store.hub import Refresher

    wanted = [catalog.model(m) for m in models] or [m for m in catalog.models() if m.name]
    refresher = Refresher(settings)
    with Ticking("asking the hub"):
        changes, failed = refresher.ask([m for m in wanted if m.hub])
    if not as_json:
        for model_id, why in failed:
            click.echo(f"{model_id}: {why}", err=True)
        for change in changes:
            click.echo(f"{change.id}: {change.key} {change.known!r} -> {change.found!r} ({change.source})")
    file = catalog.user_file()
    agreed = bool(changes) and (yes or (not as_json and click.confirm(f"add these to {file}?", err=True)))
    added = refresher.append(changes, file) if agreed else 0
    if as_json:
        result = {"changes": [c.as_json() for c in changes], "failed": [list(f) for f in failed]}
        click.echo(json.dumps({"schema": SCHEMA, **result, "file": str(file), "added": added}, indent=1))
        return
    same = len(wanted) - len(failed) - len({c.id for c in changes})
    click.echo(f"{len(wanted)} asked, {same} as known, {added} facts added to {file}", err=True)


def _print(models: list[catalog.Model], sort: str, today: date) -> None:
    benchmark = sort if any(s.benchmark == sort for m in models for s in m.scores) else ""
    stale = any(age(m, today) for m in models)
    head = HEAD + ((benchmark.upper(),) if benchmark else ()) + (("FACTS",) if stale else ())
    rows = []
    for m in models:
        row = (m.id, m.name, m.tier, size(m), tokens(m.context), short_licence(m), m.country, m.released)
        row += (f"{score(m, benchmark) or ''}",) if benchmark else ()
        rows.append(row + ((age(m, today),) if stale else ()))
    table(head, rows, right=(3, 4))


def _relax(everything: tuple[catalog.Model, ...], query: Query) -> str:
    """Return which conditions exclude every model, and how many match without each."""
    counts = {name: len(select(everything, query.without(name))) for name in query.given()}
    ways = [f"{count} without {_option(name)}" for name, count in counts.items() if count]
    if near := nearest_names(" ".join(query.words), everything) if query.words else []:
        ways.append(f"or did you mean {' or '.join(near)}?")
    if not ways:
        return "no model matches, nor without any one of the conditions"
    return f"no model matches all conditions: {', '.join(ways)}"


def _option(name: str) -> str:
    names = {"words": "the words", "min_params": "--min-size", "max_params": "--max-size"}
    return names.get(name, "--" + name.replace("_", "-"))
