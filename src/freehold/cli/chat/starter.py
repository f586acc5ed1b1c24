"""The first model of a person who named none: asked once in a terminal, chosen elsewhere, kept in config.toml.

Knows the question and the file; which models run well here is choosing.starters'.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError
from freehold.base.terminal import Ticking
from freehold.cli.serving.configfile import set_key
from freehold.run.store.space import human

if TYPE_CHECKING:
    from freehold.choose.advisor.advice import Starter
    from freehold.run.store import Store


def default_model(settings: Settings) -> str:
    """Return the model of a command that names none: the setting's, else the one chosen now and remembered."""
    return settings.default_model or first_model(settings)


def first_model(settings: Settings) -> str:
    """Return the model to begin with, and remember it; without any that can be had, the catalogue's default."""
    from freehold.base import catalog
    from freehold.choose.choosing import starters

    interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    with Ticking("looking for models that run well on this machine"):
        candidates = starters(settings)
    if not candidates:
        return catalog.default_model().name
    chosen = _ask(candidates) if interactive and len(candidates) > 1 else next(iter(candidates))
    if not interactive:
        _say(f"no model named: using {described(chosen)}; freehold run MODEL uses another")
    with suppress(FreeholdError, OSError):  # a home that cannot be written is asked about again
        set_key(settings.home / "config.toml", settings.home, "default_model", chosen.name)
    return chosen.name


def speech_model(settings: Settings, store: Store) -> str:
    """Return the model of a `transcribe` that names none: the setting's, else the one chosen now and remembered.

    In a terminal it is asked once, of the models that can be fetched here; elsewhere the catalogue's default is taken.
    """
    from freehold.base import catalog

    if settings.speech_model:
        return settings.speech_model
    default = catalog.default_speech_model()
    with suppress(FreeholdError):
        return store.resolve(default.name).name
    packaged = [e for e in catalog.entries() if e.packages and e.family == default.family]
    candidates = sorted(packaged, key=lambda e: (e.name != default.name, e.name))
    interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    chosen = default
    if interactive:
        _say(f"{len(candidates)} speech models (freehold models --role transcriber lists larger ones):")
        for i, entry in enumerate(candidates, 1):
            languages = "English only" if entry.name.endswith(".en") else "99 languages"
            _say(f"  {i}  {entry.name} ({human(entry.bytes)} download; {languages})")
        choice = click.IntRange(1, len(candidates))
        wanted = click.prompt("Which one", type=choice, default=1, err=True, show_choices=False)
        chosen = candidates[wanted - 1]
        _say("saved as speech_model in config.toml; --model uses another")
        with suppress(FreeholdError, OSError):  # a home that cannot be written is asked about again
            set_key(settings.home / "config.toml", settings.home, "speech_model", chosen.name)
    else:
        _say(f"no model named: using {chosen.name} ({human(chosen.bytes)} download); --model uses another")
    return chosen.name


def described(starter: Starter) -> str:
    """Say a model's name, what it takes and how fast it answers here."""
    size = human(starter.download.bytes)
    fetch = "already downloaded" if starter.held else f"{size} download, {human(starter.disk)} on disk"
    return f"{starter.name} ({fetch}; about {starter.speed.mid:.0f} tokens per second)"


def _ask(candidates: tuple[Starter, ...]) -> Starter:
    count = {2: "Two", 3: "Three"}.get(len(candidates), str(len(candidates)))
    _say(f"{count} models that run well on this machine:")
    for i, starter in enumerate(candidates, 1):
        _say(f"  {i}  {described(starter)}\n     {starter.about}")
    wanted = click.prompt(
        "Which one", type=click.IntRange(1, len(candidates)), default=1, err=True, show_choices=False
    )
    _say("saved as default_model in config.toml; freehold run MODEL uses another")
    return candidates[wanted - 1]


def _say(line: str) -> None:
    click.echo(line, err=True)
