"""`freehold stop [MODEL]`: take a model out of the running server's memory, or end the server.

Path: main -> stop -> attach.found -> POST /admin/unload or /admin/stop
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import click

from freehold.cli.serving.attach import RunningServer, found, running
from freehold.cli.serving.lock import ended, holder
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError
from freehold.store import Store


@click.command("stop")
@click.argument("model", required=False)
@click.option("--now", is_flag=True, help="Do not wait for answers under way: they end with an error.")
@click.pass_obj
def command(settings: Settings, model: str | None, now: bool) -> None:
    """Unload MODEL, or end the server.

    The server takes nothing new, lets the answers under way come to their end (up to its --drain), and exits;
    this command waits for that. A model with answers under way is unloaded only with --now.
    """
    pid = holder(settings)
    if now and model is None and pid and running(settings) is None:
        # Its doors are shut: it is ending, and this second signal ends it at once, unless it just has.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    else:
        _ask(settings, model, now=now)
    if model is None:
        ended(settings)
        click.echo("the server has ended", err=True)


def _ask(settings: Settings, model: str | None, *, now: bool) -> None:
    with found(settings) as server:
        if server.note:
            click.echo(f"note: {server.note}", err=True)
        if model is not None:
            _unload(server, _name(settings, model), now=now)
            return
        under_way = sum(m.in_flight for m in server.loaded())
        server.stop(now=now)
    if under_way and not now:
        click.echo(f"waiting for {_answers(under_way)} to end (at once: freehold stop --now)", err=True)


def _unload(server: RunningServer, name: str, *, now: bool) -> None:
    busy = next((m.in_flight for m in server.loaded() if m.name == name), 0)
    if busy and not now:
        raise UsageError(
            f"{name} has {_answers(busy)} under way", f"freehold stop {name} --now does not wait for the end"
        )
    server.unload(name)
    click.echo(f"{name} is unloaded", err=True)


def _answers(count: int) -> str:
    return f"{count} answer" if count == 1 else f"{count} answers"


def _name(settings: Settings, model: str) -> str:
    """Return the name under which the server has what the user calls `model`."""
    try:
        return Store(settings).resolve(model).name
    except FreeholdError:  # gone from the store, but perhaps still in memory
        return model
