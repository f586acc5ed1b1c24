"""What --help and `freehold help` show: the example first, options in sections, ranges in words.

Knows click's commands; knows no other verb.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

from freehold.base.errors import UsageError
from freehold.base.options import limits

Command = TypeVar("Command", bound=Callable[..., Any])
REST = "Options"  # the section of options that are below no other
_TITLES: dict[click.Parameter, str] = {}


def section(title: str) -> Callable[[Command], Command]:
    """Return a decorator that puts the options below it, up to the next one, into the section `title`."""

    def mark(command: Command) -> Command:
        for param in getattr(command, "__click_params__", ()):
            _TITLES.setdefault(param, title)
        return command

    return mark


class Formatter(click.HelpFormatter):
    """click's help with bold headings and a coloured first column; click drops both outside a terminal."""

    def write_heading(self, heading: str) -> None:
        """Write a heading."""
        self.write(f"{'':>{self.current_indent}}{styled(f'{heading}:', bold=True)}\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write names with their meanings."""
        super().write_dl([(styled(name, fg="cyan"), text) for name, text in rows], col_max, col_spacing)


class Context(click.Context):
    """A context whose help is ours."""

    formatter_class = Formatter

    def get_help(self) -> str:
        """Return the help: example, usage, description, options by section, verbs."""
        formatter, command = self.make_formatter(), self.command
        if command.epilog:  # on one line, so that it can be pasted
            formatter.write(f"{inspect.cleandoc(command.epilog)}\n\n")
        command.format_usage(self, formatter)
        command.format_help_text(self, formatter)
        for title, options in sections_of(self).items():
            with formatter.section(title):
                formatter.write_dl(options)
        if isinstance(command, click.Group):
            command.format_commands(self, formatter)
        return formatter.getvalue().rstrip("\n")


def sections_of(ctx: click.Context) -> Mapping[str, list[tuple[str, str]]]:
    """Return the options of a command by section, in the order of its file."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in ctx.command.get_params(ctx):  # --help is click's own, and the last
        if isinstance(param, click.Option) and not param.hidden:
            title = _TITLES.get(param) or next(reversed(sections), REST)
            sections.setdefault(title, []).append(record(param, ctx))
    return sections


def record(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """Return an option's names with its value's, and its meaning with default and range."""
    extra = option.get_help_extra(ctx)
    notes = [f"default: {extra['default']}"] if "default" in extra else []
    if isinstance(option.type, click.IntRange | click.FloatRange):
        evident = option.type.min in (0, 1) and not option.type.min_open  # of a count
        limits = _limits(option.type)
        notes += [limits] if limits and not (evident and limits.endswith("or more")) else []
    notes += ["required"] if option.required else []
    text = " ".join((option.help or "").split())
    return _names(option, ctx), f"{text}  [{'; '.join(notes)}]" if notes else text


def _names(option: click.Option, ctx: click.Context) -> str:
    kept, number = option.metavar, _number(option.type)
    try:
        if number and kept is None:
            option.metavar = number
        return (click.Option.get_help_record(option, ctx) or ("", ""))[0]
    finally:
        option.metavar = kept


def _number(kind: click.ParamType) -> str:
    """Return how a number is written; "" for what is none."""
    if isinstance(kind, click.IntRange) or kind is click.INT:
        return "N"
    return "NUMBER" if isinstance(kind, click.FloatRange) or kind is click.FLOAT else ""


def in_words(message: str, kind: click.ParamType | None) -> str:
    """Return click's message on a number outside its range with the range in words."""
    value, outside, _ = message.partition(" is not in the range ")
    ranged = isinstance(kind, click.IntRange | click.FloatRange)
    return f"{value} is outside the range: {_limits(kind)}" if outside and ranged else message


def _limits(kind: click.IntRange | click.FloatRange) -> str:
    return limits(kind.min, kind.max, above=kind.min_open, below=kind.max_open)


def styled(text: str, **style: Any) -> str:
    """Style text for a terminal that has colours (NO_COLOR and TERM=dumb are obeyed); click strips it elsewhere."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else click.style(text, **style)


# --- `freehold help [VERB...]`: what --help says ----------------------------------------------------


@click.command("help")
@click.argument("words", nargs=-1, metavar="[VERB]...")
@click.pass_context
def help_command(ctx: click.Context, words: tuple[str, ...]) -> None:
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
