"""Starting a deployment on the running server, and following it until it answers.

Knows the owner's routes and words for people; what is to be started is a plan.
Path: cli/deploy.py -> start_all -> RunningDeployments.add -> stdout
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import click

from freehold.backends.contract import DeploymentRow, DeployPlan
from freehold.backends.planning.options import DeployOptions
from freehold.cli.deploying.running import RunningDeployments
from freehold.cli.deploying.tables import as_json, progress
from freehold.cli.progress import StatusLine
from freehold.errors import EngineLost, FreeholdError, ModelNotFound
from freehold.terminal import printable

SCHEMA = 1
LOOKED_S = 0.3  # between two looks at a start
LAST_LINES = 8  # of a dead engine's log


def start_all(
    server: RunningDeployments,
    plans: Sequence[tuple[DeployPlan, DeployOptions]],
    *,
    printed: bool,
    again: bool = False,
) -> int:
    """Start plans, one after the other; the failure of one of several is printed, and the next one is started.

    Return the status of the command. Raises what the start of a single one raises.
    """
    failed = 0
    for plan, options in plans:
        try:
            start_on(server, plan, options, printed=printed, again=again)
        except FreeholdError as e:
            if len(plans) == 1:
                raise
            from freehold.cli.main import complain

            complain(e.message, e.hint)
            failed = 1
    return failed


def start_on(
    server: RunningDeployments,
    plan: DeployPlan,
    options: DeployOptions,
    *,
    printed: bool,
    again: bool = False,
) -> None:
    """Start a plan, and print how to ask it once it is ready. Ctrl-C, and a start that fails, leave nothing.

    `printed`: as JSON on stdout. `again`: it answered before, and the server continues to try.
    """
    started = time.monotonic()
    name = server.add(plan, options).name
    try:
        with StatusLine(f"{name} was not deployed") as status:
            while not (row := server.row(name)).answers(first=not again):
                status.show(progress(row))
                time.sleep(LOOKED_S)
    except (KeyboardInterrupt, EngineLost) as e:
        if isinstance(e, EngineLost):
            for line in last_words(server.log, name):
                click.echo(line, err=True)
        if not again:
            _undone(server, name)
        raise
    if printed:
        click.echo(json.dumps({"schema": SCHEMA, "url": server.url, "deployment": as_json(row)}))
        return
    for line in ready(row, server.url, time.monotonic() - started):
        click.echo(line, err=True)


def ready(row: DeploymentRow, url: str, seconds: float) -> list[str]:
    """Return what is printed of a deployment that answers."""
    version = next((each.version for each in row.replicas if each.version), row.plan.version)
    count, up = len(row.replicas), sum(each.state == "ready" for each in row.replicas)
    replicas = f"{up} of {count} replicas" if count > 1 else "1 replica"
    body = json.dumps({"model": row.name, "messages": [{"role": "user", "content": "Hi"}]})
    return [
        f"{row.name} answers after {seconds:.1f} s: {replicas} of {row.plan.engine} {version}".rstrip(),
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        "freehold deploy status | logs | restart | stop",
    ]


def last_words(log: Callable[[str, int], Sequence[str]], name: str) -> list[str]:
    """Return the last lines that a dead engine wrote, for a terminal. `log`: of a deployment's replica, by number."""
    try:
        return [f"  {printable(line)}" for line in list(log(name, 0))[-LAST_LINES:]]
    except FreeholdError:
        return []


def _undone(server: RunningDeployments, name: str) -> None:
    with suppress(ModelNotFound):
        server.stop(name, 0.0)
