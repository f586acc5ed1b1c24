"""`freehold completion bash|zsh|fish`: the script by which a shell completes our command lines.

Knows click's scripts; what is completed is complete.py's.
Path: main -> completion -> stdout -> the shell's start-up file
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

# bash breaks words at colons, and names of models have one.
BEFORE = {"bash": 'COMP_WORDBREAKS="${COMP_WORDBREAKS//:}"', "zsh": "", "fish": ""}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(BEFORE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
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
