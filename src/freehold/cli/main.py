"""The `freehold` command: find the verb, import only its file, turn failures into two lines.

Knows the verbs' names and one-line helps, nothing of what they do; importing it costs click and no more.
Path: freehold VERB ... -> main -> cli/<verb>.py.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from freehold.config import load_settings, nearest
from freehold.errors import FreeholdError, UsageError

# verb -> the line that --help shows; the command itself lies in freehold.cli.<verb> as `command`
VERBS = {
    "run": "Answer a prompt, or chat, with a model.",
    "serve": "Serve models to every client that speaks OpenAI's API.",
    "embed": "Turn texts into vectors.",
    "keys": "Make, list and revoke the server's API keys.",
    "launch": "Show or write the settings by which another program uses this server.",
    "ps": "List the models in the server's memory.",
    "stop": "Unload a model, or end the server.",
    "models": "Search what is known of open models; refresh it.",
    "fit": "Say whether a model fits, here or on named hardware, and how fast it answers.",
    "pull": "Fetch a model, or reference one already here.",
    "create": "Make a model from another one, out of a Modelfile.",
    "list": "List the models held here.",
    "show": "Show what a model is and where its settings come from.",
    "rm": "Delete a model, or forget another program's.",
    "advise": "Say which model to use for a task, and why.",
    "why": "Say all that is known of a model, and what is not.",
    "license": "Say whether you may use a model, under which conditions, and by which clause.",
    "hardware": "Say which hardware a model needs for so many users, and what it costs.",
    "cost": "Hold the price of APIs against owning a model, and say from where on owning is cheaper.",
    "bench": "Measure prefill, decode and load beside the machine's ceiling.",
    "doctor": "Show what this machine offers and what Freehold makes of it.",
}
ALIASES = {"ls": "list", "licence": "license"}


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
        return import_module(f"freehold.cli.{verb}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown verb with the nearest known one."""
        if args and args[0] not in VERBS and args[0] not in ALIASES:
            near = nearest(args[0], [*VERBS, *ALIASES])
            hint = f"did you mean freehold {near}?" if near else "freehold --help lists the verbs"
            raise UsageError(f"there is no verb {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; whoever reads our output may leave before its end (`| head`), which is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit 1
            # keep the interpreter's last flush from complaining
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, importing none of them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--offline", is_flag=True, help="Never call out; fail at once if something is missing.")
@click.version_option(package_name="freehold", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, offline: bool) -> None:
    """Own the language models you use: fetch one, run it, see what it is.

    MODEL is a short name (qwen2.5-coder:0.5b), a file path, or a hub reference (org/repo:Q4_K_M).
    """
    ctx.obj = load_settings(offline=offline)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run one command line; return its exit status. No named failure shows a traceback."""
    try:
        return cli.main(args=args, prog_name="freehold", standalone_mode=False) or 0
    except FreeholdError as e:
        if os.environ.get("FREEHOLD_DEBUG") == "1":
            raise
        complain(e.message, e.hint)
        return 2 if isinstance(e, UsageError) else 1
    except click.exceptions.NoArgsIsHelpError as e:  # a verb is missing: the help is the answer
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
    """Print a failure as its two lines on stderr."""
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def _usage(e: click.ClickException) -> tuple[str, str]:
    """Word click's complaint as ours: lower case, no full stop, the nearest option as hint."""
    message = e.format_message().strip().rstrip(".")
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
