"""`freehold gateway check|convert`: checks a gateway.toml, or makes one of a LiteLLM proxy's configuration.

Knows options and words; the file's rules are router/reading.py's. Path: main -> gateway -> read, report/routes.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.shared import json_option
from freehold.config import Settings

if TYPE_CHECKING:
    from freehold.router.toml.table import BadGateway

SCHEMA = 1


@click.group("gateway")
def command() -> None:
    """Check a gateway.toml, or make one from a LiteLLM proxy's configuration.

    `freehold serve --gateway FILE` serves it.
    """


@command.command("check", epilog="Example: freehold gateway check gateway.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-keys", is_flag=True, help="Look up no keys, for a machine that does not have them.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, without_keys: bool, as_json: bool) -> None:
    """Check FILE as `serve` does when it starts: each mistake with its line, its value and a fix.

    Exits 1 for a file with mistakes. For a valid file, prints each route's targets, where they run, their prices,
    and the labels that they accept. Sends nothing.
    """
    from freehold.cli.report.routes import as_rows, show
    from freehold.reports.gateway_file import outside_of
    from freehold.router.reading import read
    from freehold.router.toml.table import BadGateway

    settings: Settings = ctx.obj
    try:
        gateway = read(file.expanduser(), outside_of(settings, keys=not without_keys))
    except BadGateway as e:
        _refuse(e, as_json=as_json)
        ctx.exit(1)
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "file": str(file), "mistakes": [], **as_rows(gateway)}, indent=1)
        )
    else:
        show(gateway, str(file))


def _refuse(e: BadGateway, *, as_json: bool) -> None:
    """Print mistakes: on stdout, as they are what was asked for."""
    if as_json:
        rows = [{"line": m.line, "key": m.key, "message": m.message, "hint": m.hint} for m in e.mistakes]
        click.echo(json.dumps({"schema": SCHEMA, "file": e.name, "mistakes": rows}, indent=1))
        return
    for mistake in e.mistakes:
        place = f":{mistake.line}" if mistake.line else ""
        click.echo(f"{e.name}{place}: {mistake.key}{': ' if mistake.key else ''}{mistake.message}")
        if mistake.hint:
            click.echo(f"  hint: {mistake.hint}")
    count = "a mistake" if len(e.mistakes) == 1 else f"{len(e.mistakes)} mistakes"
    click.echo(f"error: {e.name} has {count}", err=True)


@command.command("convert", epilog="Example: freehold gateway convert config.yaml > gateway.toml")
@click.argument("file", type=click.Path(path_type=Path))
def convert(file: Path) -> None:
    """Turn FILE, the config.yaml of a LiteLLM proxy, into a gateway.toml on stdout.

    Settings without a counterpart are listed on stderr, and in the file as comments. Keys in FILE are not copied:
    the result names the variables that must contain them.
    """
    from freehold.router.convert.draft import read_yaml
    from freehold.router.convert.litellm import converted

    draft = converted(read_yaml(file.expanduser()), file.name)
    click.echo(draft.text(), nl=False)
    for each in draft.left:
        click.echo(f"not taken over: {each}", err=True)
    click.echo("write it to gateway.toml, then: freehold gateway check gateway.toml", err=True)
