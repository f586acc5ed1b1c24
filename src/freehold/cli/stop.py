"""`freehold stop [MODEL]`: unloads a model from the running server, or stops the server.

Path: main -> stop -> attach.server_here -> POST /admin/unload or /admin/stop
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import click

from freehold.cli.serving.attach import RunningServer, running, server_here
from freehold.cli.serving.lock import ended, holder
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError
from freehold.store import Store


@click.command("stop")
@click.argument("model", required=False)
@click.option("--now", is_flag=True, help="Do not wait for running answers: they end with an error.")
@click.pass_obj
def command(settings: Settings, model: str | None, now: bool) -> None:
    """Unload MODEL, or stop the server.

    The server accepts no new requests, finishes running answers (for at most its --drain) and exits; this command
    waits for that. A model with running answers is unloaded only with --now.
    """
    pid = holder(settings)
    if now and model is None and pid and running(settings) is None:
        # It accepts no connections any more, so it is stopping; a second signal ends it at once.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    else:
        _ask(settings, model, now=now)
    if model is None:
        ended(settings)
        click.echo("the server has stopped", err=True)


def _ask(settings: Settings, model: str | None, *, now: bool) -> None:
    with server_here(settings) as server:
        if server.note:
            click.echo(f"note: {server.note}", err=True)
        if model is not None:
            _unload(server, _name(settings, model), now=now)
            return
        under_way = sum(m.in_flight for m in server.loaded())
        server.stop(now=now)
    if under_way and not now:
        click.echo(
            f"waiting for {_answers(under_way)} to finish (freehold stop --now does not wait)", err=True
        )


def _unload(server: RunningServer, name: str, *, now: bool) -> None:
    busy = next((m.in_flight for m in server.loaded() if m.name == name), 0)
    if busy and not now:
        raise UsageError(
            f"{name} has {_answers(busy)} running", f"freehold stop {name} --now does not wait for them"
        )
    server.unload(name)
    click.echo(f"{name} is unloaded", err=True)


def _answers(count: int) -> str:
    return f"{count} answer" if count == 1 else f"{count} answers"


def _name(settings: Settings, model: str) -> str:
    """Return the server's name of the model that the user calls `model`."""
    try:
        return Store(settings).resolve(model).name
    except FreeholdError:  # gone from the store, but perhaps still in memory
        return model
