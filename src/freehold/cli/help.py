"""`freehold help [VERB...]`: what --help says. Path: main -> help -> click."""

from __future__ import annotations

import click

from freehold.errors import UsageError


@click.command("help")
@click.argument("words", nargs=-1, metavar="[VERB]...")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of VERB, or the list of verbs."""
    verb: click.Command = ctx.find_root().command
    shown = verb.context_class(verb, info_name="freehold", **verb.context_settings)
    for word in words:
        if not isinstance(verb, click.Group):
            raise UsageError(
                f"{shown.command_path} has no verb {word!r}", f"{shown.command_path} --help shows it"
            )
        name, sub, _ = verb.resolve_command(shown, [word])
        if sub is None:
            raise UsageError(
                f"{shown.command_path} has no verb {word!r}", f"{shown.command_path} --help lists them"
            )
        verb, shown = sub, sub.context_class(sub, parent=shown, info_name=name)
    click.echo(shown.get_help())
