"""The `freehold` command: finds the verb, imports only its file, prints a failure as two lines.

Knows the verbs' names and one-line helps (verbs.py); importing it imports click and nothing else.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from freehold.base.config import load_settings, nearest
from freehold.base.errors import FreeholdError, UsageError
from freehold.cli.helping import Context, in_words
from freehold.cli.verbs import ALIASES, GROUPS, MEANT, VERBS

COMPLETING = "_FREEHOLD_COMPLETE"  # a shell sets it to ask what Tab may offer


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's file and return its command."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        from freehold.base.terminal import Ticking

        with Ticking("starting"):
            command = command_of(verb)
        command.epilog = f"Example: {VERBS[verb].example}"
        if COMPLETING in os.environ:
            from freehold.cli.complete import with_names

            with_names(command)
        return _with_help(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown verb with the nearest known one."""
        if args and args[0] not in VERBS and args[0] not in ALIASES:
            near = MEANT.get(args[0].lower()) or nearest(args[0], [*VERBS, *ALIASES])
            hint = f"did you mean freehold {near}?" if near else "freehold --help lists the verbs"
            raise UsageError(f"there is no verb {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; a reader of stdout that closes it early (`| head`) is not a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit 1
            # keep the interpreter's last flush from complaining
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table in their groups, importing none of them."""
        width = max(map(len, VERBS))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), verb.help) for name, verb in verbs.items()])
        formatter.write("\nMore on a verb, with an example: freehold help VERB\n")


def command_of(verb: str) -> click.Command:
    """Import the file of a verb; return its command."""
    name, file = verb.replace("-", "_"), VERBS[verb].file
    module = import_module(f"freehold.cli.{file or name}")
    return getattr(module, f"{name}_command" if file else "command")


def _with_help(command: click.Command) -> click.Command:
    """Give a verb, and the verbs under it, our help format."""
    command.context_class = Context
    for sub in command.commands.values() if isinstance(command, click.Group) else ():
        _with_help(sub)
    return command


LazyGroup.context_class = Context


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Start with: freehold run "Reverse a string in Python."',
)
@click.option("--offline", is_flag=True, help="Make no network requests; fail if a file is missing.")
@click.version_option(package_name="freehold", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, offline: bool) -> None:
    """Own the language models you use: choose, download, run and serve them.

    MODEL is a short name (qwen2.5-coder:0.5b), a file path, or a hub reference (org/repo:Q4_K_M).
    """
    ctx.obj = load_settings(offline=offline)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run one command line; return its exit status. No named failure shows a traceback.

    Without any word it chats in a terminal, and shows the help elsewhere.
    """
    if not args and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        args = ["run"]
    try:
        return cli.main(args=args, prog_name="freehold", standalone_mode=False) or 0
    except FreeholdError as e:
        if os.environ.get("FREEHOLD_DEBUG") == "1":
            raise
        complain(e.message, e.hint)
        return 2 if isinstance(e, UsageError) else 1
    except click.exceptions.NoArgsIsHelpError as e:  # no verb was given
        click.echo(e.ctx.get_help(), err=True)
        return e.exit_code
    except click.ClickException as e:
        complain(*_usage(e))
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except OSError as e:
        if os.environ.get("FREEHOLD_DEBUG") == "1":
            raise
        complain(f"{e.filename}: {e.strerror}" if e.filename else str(e), "")
        return 1


def complain(message: str, hint: str) -> None:
    """Print a failure as its two lines on stderr. Names out of files may be in it: none controls the terminal."""
    from freehold.base.terminal import printable

    click.echo(f"error: {printable(message)}", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


def _usage(e: click.ClickException) -> tuple[str, str]:
    """Return click's message and a hint in our format: lower case, no full stop, the nearest option."""
    message = in_words(
        e.format_message().strip().rstrip("."), getattr(getattr(e, "param", None), "type", None)
    )
    message = message[:1].lower() + message[1:]
    if isinstance(e, click.NoSuchOption):
        near = e.possibilities or []
        return (
            f"there is no option {e.option_name}",
            f"did you mean {' or '.join(sorted(near))}?" if near else "",
        )
    ctx = getattr(e, "ctx", None)
    return message, f"{ctx.command_path} --help shows how" if ctx else ""


if __name__ == "__main__":
    main()
