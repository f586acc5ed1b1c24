"""Options that several verbs share. Path: a verb's file -> its decorators."""

from __future__ import annotations

from dataclasses import replace

import click

from freehold.config import Settings

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
offline_option = click.option("--offline", is_flag=True, help="Never call out.")


def with_offline(settings: Settings, offline: bool) -> Settings:
    """Return the settings with offline mode on if the verb's own option asks for it."""
    return replace(settings, offline=True) if offline else settings
