"""The deployments of this home's running server: asked through its owner's socket, shown, and started.

Knows the routes of http/system/deployments.py, their JSON and words for people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import click
import msgspec

from freehold.base.errors import EngineLost, FreeholdError, ModelNotFound, ServerUnreachable, UpstreamFailed
from freehold.base.terminal import printable
from freehold.cli.progress import StatusLine
from freehold.cli.serving.attach import RunningServer
from freehold.outgrow import kept
from freehold.outgrow.contract import DeploymentRow, DeployPlan, ReplicaRow
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning.printed import as_dict
from freehold.run.store.space import human

# --- as tables, lines and JSON: what `deploy status`, `ps` and a start's progress show --------------

HEAD = ("NAME", "REPLICA", "ENGINE", "STATE", "PID", "MEMORY", "ANSWERS", "RESTARTS")
RIGHT = (1, 4, 5, 6, 7)


def rows(deployments: Sequence[DeploymentRow]) -> list[tuple[str, ...]]:
    """Return a row for each replica."""
    return [_cells(each, replica) for each in deployments for replica in each.replicas]


def _cells(of: DeploymentRow, replica: ReplicaRow) -> tuple[str, ...]:
    version = replica.version or of.plan.version
    return (
        of.name,
        str(replica.number),
        f"{of.plan.engine} {version}".rstrip(),
        state(of, replica),
        str(replica.pid) if replica.pid else "",
        human(replica.memory_bytes) if replica.memory_bytes else "",
        str(replica.in_flight),
        str(replica.restarts),
    )


def state(of: DeploymentRow, replica: ReplicaRow) -> str:
    """Return a replica's state in words, with what a start is doing and since when."""
    words = f"{replica.state}: {replica.phase}" if replica.phase else replica.state
    if replica.state in ("starting", "probing", "waiting", "draining"):
        words += f", {replica.since_s:.0f} s"
    return f"{words} ({of.rolling})" if of.rolling else words


def deaths(deployments: Iterable[DeploymentRow]) -> list[str]:
    """Return the latest death of each replica that had one."""
    return [
        f"{each.name} replica {replica.number}: {replica.said}"
        for each in deployments
        for replica in each.replicas
        if replica.said
    ]


def counts(of: DeploymentRow) -> str:
    """Return what became of a deployment's requests; "" before the first."""
    if not of.requests:
        return ""
    others = {"retried": of.retried, "resumed": of.resumed, "cut": of.cut}
    told = ", ".join(f"{count} {word}" for word, count in others.items() if count)
    requests = f"{of.requests:,} {'request' if of.requests == 1 else 'requests'}"
    return f"{of.name}: {requests}" + (f", {told}" if told else "")


def progress(of: DeploymentRow) -> str:
    """Return how far a start is, in one line: each replica's phase, processor seconds and memory."""
    told = []
    for replica in of.replicas:
        phase = replica.phase or replica.state
        memory = f", {human(replica.memory_bytes)}" if replica.memory_bytes else ""
        cpu = f", {replica.cpu_s:.0f} s of CPU time" if replica.cpu_s else ""
        number = f"replica {replica.number}: " if len(of.replicas) > 1 else ""
        told.append(f"{number}{phase}, {replica.since_s:.0f} s{cpu}{memory}")
    rolling = f", {of.rolling}" if of.rolling else ""
    return f"{of.name}{rolling}: {'; '.join(told)}"


def as_json(of: DeploymentRow) -> dict[str, Any]:
    """Return a row for programs: everything that a server tells, the plan as --dry-run --json has it."""
    return {**kept.as_json(of), "plan": as_dict(of.plan)}


# --- the owner's routes -----------------------------------------------------------------------------

_AT = "/admin/deployments"
_T = TypeVar("_T")


class _Listed(msgspec.Struct):
    deployments: list[dict[str, Any]] = []


class _Lines(msgspec.Struct):
    lines: list[str]


class RunningDeployments:
    """What a running server has deployed."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        return self._server.greeting.url

    def rows(self) -> list[DeploymentRow]:
        """Return every deployment."""
        return [_row(each) for each in self._call("GET", "", as_=_Listed).deployments]

    def row(self, name: str) -> DeploymentRow:
        """Return one. Raises ModelNotFound."""
        deployment = next((row for row in self.rows() if row.name == name), None)
        if deployment is None:
            raise ModelNotFound(
                f"there is no deployment {name}", "freehold deploy status lists the deployments"
            )
        return deployment

    def add(self, plan: DeployPlan, options: DeployOptions) -> DeploymentRow:
        """Begin to start a plan."""
        body = {"plan": kept.as_json(plan), "asked": kept.as_json(options)}
        return _row(self._call("POST", "", body))

    def restart(self, name: str, *, drain_first: bool) -> DeploymentRow:
        """Roll every replica; returns when all are new."""
        return _row(self._call("POST", "/restart", {"name": name, "drain_first": drain_first}))

    def upgrade(
        self, name: str, plan: DeployPlan, options: DeployOptions, *, drain_first: bool
    ) -> DeploymentRow:
        """Roll to another plan; returns when all replicas follow it."""
        body = {"name": name, "plan": kept.as_json(plan), "asked": kept.as_json(options)}
        return _row(self._call("POST", "/upgrade", {**body, "drain_first": drain_first}))

    def stop(self, name: str, drain_s: float) -> None:
        """End a deployment after its answers."""
        self._call("POST", "/stop", {"name": name, "drain_s": drain_s})

    def log(self, name: str, replica: int) -> Sequence[str]:
        """Return the newest lines of an engine's log."""
        return self._call("POST", "/log", {"name": name, "replica": replica}, as_=_Lines).lines

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, as_: type[_T] = dict
    ) -> _T:
        try:
            return self._server.api.call(method, _AT + path, body, as_=as_)
        except ModelNotFound as e:
            if "no route" in e.message:  # a server of an earlier version
                raise ServerUnreachable(
                    f"the running server ({self._server.greeting.version}) deploys no engines",
                    "freehold stop, then start it with this version",
                ) from e
            raise


def _row(plain: Mapping[str, Any]) -> DeploymentRow:
    try:
        return kept.of_json(plain, DeploymentRow)
    except msgspec.ValidationError as e:
        raise UpstreamFailed(f"the server lists deployments of another version: {e}", "restart it") from e


# --- starting a deployment on the running server, and following it until it answers -----------------

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
            with suppress(ModelNotFound):
                server.stop(name, 0.0)
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
        f"{row.name} is ready after {seconds:.1f} s: {replicas} of {row.plan.engine} {version}".rstrip(),
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        "freehold deploy status | logs | restart | stop",
    ]


def last_words(log: Callable[[str, int], Sequence[str]], name: str) -> list[str]:
    """Return the last lines that a dead engine wrote, for a terminal. `log`: of a deployment's replica, by number."""
    try:
        return [f"  {printable(line)}" for line in list(log(name, 0))[-LAST_LINES:]]
    except FreeholdError:
        return []
