"""`freehold completion bash|zsh|fish`, and what Tab offers: models, hardware, tasks, verbs and apps.

Knows which parameter of which verb takes which kind of name; makes no network request. A source that cannot be read
completes nothing: an error would be printed into the line being typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from freehold.base.config import Settings, load_settings
from freehold.base.errors import FreeholdError

Names = Callable[[Settings], Iterable[tuple[str, str]]]


def with_names(command: click.Command) -> click.Command:
    """Add completers to a verb's parameters, and to those of its subcommands."""
    for param in command.params:
        names = NAMES.get(_kind(command, param))
        if names is not None:
            param._custom_shell_complete = _completer(names)
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            with_names(sub)
    return command


def _kind(command: click.Command, param: click.Parameter) -> str:
    if param.metavar == "HARDWARE":
        return "hardware"
    return f"{command.name} {param.name}"


def _completer(names: Names) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            offered = dict(names(load_settings()))
        except FreeholdError:
            return []
        return [
            CompletionItem(name, help=what)
            for name, what in offered.items()
            if name.lower().startswith(typed.lower())
        ]

    return complete


def held(settings: Settings) -> Iterable[tuple[str, str]]:
    """Models in the store."""
    from freehold.run.store import Store
    from freehold.run.store.space import human

    return [(m.name, human(m.bytes)) for m in Store(settings).list()]


def fetchable(settings: Settings) -> Iterable[tuple[str, str]]:
    """Models with a short name that can be fetched, then those in the store."""
    from freehold.base import catalog

    return [*((e.name, "to be fetched") for e in catalog.entries()), *held(settings)]


def known(settings: Settings) -> Iterable[tuple[str, str]]:
    """Models of the catalogue."""
    from freehold.base import catalog

    return [*((m.id, "") for m in catalog.models()), *fetchable(settings)]


def hardware(_: Settings) -> Iterable[tuple[str, str]]:
    """Devices of the catalogue."""
    from freehold.base import catalog

    return [(device.name, device.title) for device in catalog.devices()]


def verbs(_: Settings) -> Iterable[tuple[str, str]]:
    """The verbs."""
    from freehold.cli.verbs import VERBS

    return [(name, verb.help) for name, verb in VERBS.items()]


def tasks(_: Settings) -> Iterable[tuple[str, str]]:
    """Tasks of `advise`."""
    from freehold.base.catalog.benchmarks import tasks as known_tasks

    return [(task.id, task.title) for task in known_tasks()]


def apps(_: Settings) -> Iterable[tuple[str, str]]:
    """Programs of `launch`."""
    from freehold.cli.clients.apps import APPS

    return [(name, "") for name in APPS]


def deployed(settings: Settings) -> Iterable[tuple[str, str]]:
    """Deployments of this home."""
    from freehold.outgrow.kept import kept

    return [(each.name, each.plan.engine) for each in kept(settings.home)[0]]


def deployable(settings: Settings) -> Iterable[tuple[str, str]]:
    """Verbs of `deploy`, then models."""
    from freehold.cli.verbs import UNDER_DEPLOY

    return [*((name, what) for name, (_, _, what) in UNDER_DEPLOY.items()), *known(settings)]


NAMES: dict[str, Names] = {
    **dict.fromkeys(
        ["run words", "run draft", "pull model", "bench model", "embed model", "eval model", "serve models"],
        fetchable,
    ),
    **dict.fromkeys(["rm models", "stop model", "compat model"], held),
    **dict.fromkeys(["fit model", "cost model", "why model", "show model", "license names"], known),
    **dict.fromkeys([f"{v} name" for v in ("status", "restart", "upgrade", "stop", "logs")], deployed),
    "deploy model": deployable,
    "capacity model": known,
    "hardware": hardware,
    "help words": verbs,
    "advise task": tasks,
    "launch app": apps,
}


# --- `freehold completion bash|zsh|fish`: the script by which a shell completes our command lines ---

# bash breaks words at colons, and names of models have one.
BEFORE = {"bash": 'COMP_WORDBREAKS="${COMP_WORDBREAKS//:}"', "zsh": "", "fish": ""}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(BEFORE)))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print a script for SHELL that completes verbs, options, models, hardware and tasks.

    \b
    bash: eval "$(freehold completion bash)"  in ~/.bashrc
    zsh:  eval "$(freehold completion zsh)"  in ~/.zshrc, after compinit
    fish: freehold completion fish > ~/.config/fish/completions/freehold.fish
    """
    shell_class = get_completion_class(shell)
    assert shell_class is not None  # the three are click's own
    source = shell_class(ctx.find_root().command, {}, "freehold", "_FREEHOLD_COMPLETE").source()
    click.echo("\n".join(part for part in (BEFORE[shell], source) if part))
