"""`freehold deploy status|restart|upgrade|stop|logs`: what runs, and what is done about it; and a plan on stdout.

Knows options and words; the server does it, through its owner's socket. Without a server, `status` lists what is kept,
and `stop` forgets it. A plan has a reason for each flag and a line for a shell, or is JSON, or files that start it
elsewhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from freehold.base.config import Settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.terminal import printable
from freehold.cli.deploying import asked_of, plan_options
from freehold.cli.deploying import running as tables
from freehold.cli.deploying.running import LOOKED_S, RunningDeployments
from freehold.cli.progress import StatusLine
from freehold.cli.serving.attach import running, server_here
from freehold.cli.shared import Seconds, json_option, table, write_beside
from freehold.outgrow.contract import DeploymentRow, DeployPlan
from freehold.outgrow.emit import EmitOptions, emit
from freehold.outgrow.kept import KeptDeployment, forget, kept
from freehold.outgrow.planning.options import planned
from freehold.outgrow.planning.printed import as_dict, text
from freehold.outgrow.ray.plan import is_ray

SCHEMA = 1
_LISTS = "freehold deploy status lists what is kept"
FOLLOWED_S = 0.5  # between two looks at a log


@click.command("status", epilog="Example: freehold deploy status --json")
@click.argument("name", required=False, default="")
@json_option
@click.pass_obj
def status(settings: Settings, name: str, as_json: bool) -> None:
    """List deployments with their replicas: state, process, memory, answers, restarts, and why a replica last ended.

    Without a running server, lists the stored deployments. With --json, prints {"schema": 1, "deployments": [...],
    ...}.
    """
    server = running(settings)
    held = [each.name for each in _kept(settings)]
    if server is None:
        if name and name not in held:
            raise ModelNotFound(f"there is no deployment {name}, and no server runs", _LISTS)
        _tell_kept([each for each in held if name in ("", each)], as_json=as_json)
        return
    with server:
        server_deployments = RunningDeployments(server)
        every = server_deployments.rows()
        shown = [server_deployments.row(name)] if name else every
    idle = [each for each in held if each not in {row.name for row in every}]
    if as_json:
        summary = {
            "schema": SCHEMA,
            "url": server_deployments.url,
            "deployments": [tables.as_json(row) for row in shown],
        }
        click.echo(json.dumps({**summary, "kept": idle}))
        return
    if shown:
        table(tables.HEAD, tables.rows(shown), right=tables.RIGHT)
    else:
        click.echo("there are no deployments; freehold deploy MODEL creates one", err=True)
    for line in [*filter(None, map(tables.counts, shown)), *tables.deaths(shown)]:
        click.echo(printable(line))
    if idle:
        click.echo(f"kept, not running: {', '.join(idle)} (freehold deploy starts them)", err=True)


_drain_first = click.option(
    "--drain-first",
    is_flag=True,
    help="End each engine before the new one starts, as if the device could not hold both.",
)


@click.command("restart", epilog="Example: freehold deploy restart qwen3:8b")
@click.argument("name")
@_drain_first
@json_option
@click.pass_obj
def restart(settings: Settings, name: str, drain_first: bool, as_json: bool) -> None:
    """Replace every replica of NAME with a new engine, one at a time. No answer is cut off.

    A new engine takes requests once it has generated a token; the old one finishes its answers before it ends. If
    the device cannot hold a second engine, the old one ends first. If the new one fails, the old command is started
    again. After Ctrl-C, the server finishes the work alone.
    """
    with server_here(settings) as server:
        server_deployments = RunningDeployments(server)
        row = server_deployments.row(name)
        _tell_gap(row, row.plan, drain_first)
        row = _rolled(
            server_deployments, name, lambda: server_deployments.restart(name, drain_first=drain_first)
        )
    _told(row, "restarted", as_json=as_json)


@click.command("upgrade", epilog="Example: freehold deploy upgrade qwen3:8b --replicas 3")
@click.argument("name")
@plan_options
@_drain_first
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@json_option
@click.pass_obj
def upgrade(
    settings: Settings, name: str, drain_first: bool, dry_run: bool, as_json: bool, **values: Any
) -> None:
    """Move NAME to another plan, replica by replica: other flags, another environment, more or fewer replicas.

    Options that you leave out keep their values. If an engine of the new plan does not become ready, the old ones
    stay, or are started again if the device could not hold both.
    """

    before = next((each for each in _kept(settings) if each.name == name), None)
    if before is None:
        raise ModelNotFound(f"there is no deployment {name}", "freehold deploy status lists the deployments")
    options = asked_of(values, replace(before.asked, name=name))
    here = before.plan.nodes if before.plan.nodes.here else None
    plan = planned(settings, options, start=not dry_run, here=here)
    if dry_run:
        show_plan(plan, as_json=as_json)
        return
    with server_here(settings) as server:
        server_deployments = RunningDeployments(server)
        _tell_gap(server_deployments.row(name), plan, drain_first)
        row = _rolled(
            server_deployments,
            name,
            lambda: server_deployments.upgrade(name, plan, options, drain_first=drain_first),
        )
    _told(row, "upgraded", as_json=as_json)


@click.command("stop", epilog="Example: freehold deploy stop qwen3:8b")
@click.argument("name")
@click.option(
    "--drain",
    type=Seconds(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Wait this long for running answers.",
)
@json_option
@click.pass_obj
def stop(settings: Settings, name: str, drain: float, as_json: bool) -> None:
    """End the engines of NAME after their answers, and forget the deployment."""
    server = running(settings)
    if server is None:
        if not forget(settings.home, name):
            raise ModelNotFound(f"there is no deployment {name}", _LISTS)
        click.echo(f"{name} is forgotten; no server ran it", err=True)
    else:
        with server:
            RunningDeployments(server).stop(name, drain)
        click.echo(f"{name} has ended", err=True)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "name": name, "stopped": True}))


@click.command("logs", epilog="Example: freehold deploy logs qwen3:8b --follow")
@click.argument("name")
@click.option(
    "--replica", type=click.IntRange(0), default=0, show_default=True, help="Number of the replica."
)
@click.option("-n", "--lines", type=click.IntRange(1), help="Print the newest N lines only.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines until Ctrl-C.")
@json_option
@click.pass_obj
def logs(settings: Settings, name: str, replica: int, lines: int | None, follow: bool, as_json: bool) -> None:
    """Print the log of a replica's engine. It contains no prompts and no answers."""
    if follow and as_json:
        raise UsageError("--follow prints lines, --json one object", "leave one of them out")
    with server_here(settings) as server:
        server_deployments = RunningDeployments(server)
        last = list(server_deployments.log(name, replica))
        shown = last[-lines:] if lines else last
        if as_json:
            click.echo(json.dumps({"schema": SCHEMA, "name": name, "replica": replica, "lines": shown}))
            return
        for line in shown:
            click.echo(printable(line))
        while follow:
            time.sleep(FOLLOWED_S)
            now = list(server_deployments.log(name, replica))
            for line in news(last, now):
                click.echo(printable(line))
            last = now


def news(before: list[str], now: list[str]) -> list[str]:
    """Return the lines of a bounded log that came since `before`; all of them where the two share nothing."""
    if not before:
        return now
    for at in range(len(now), 0, -1):
        if now[at - 1] == before[-1] and now[:at] == before[-at:]:
            return now[at:]
    return now


def _rolled(
    server_deployments: RunningDeployments, name: str, roll: Callable[[], DeploymentRow]
) -> DeploymentRow:
    """Run a roll in a thread, and show meanwhile how far it is. Raises what the server raised."""
    came: list[DeploymentRow | BaseException] = []

    def work() -> None:
        try:
            came.append(roll())
        except BaseException as e:
            came.append(e)

    thread = threading.Thread(target=work, daemon=True)
    with StatusLine("the server continues; freehold deploy status shows it") as line:
        thread.start()
        while thread.is_alive():
            line.show(tables.progress(server_deployments.row(name)))
            thread.join(LOOKED_S)
    if isinstance(came[0], BaseException):
        raise came[0]
    return came[0]


def _tell_gap(row: DeploymentRow, plan: DeployPlan, drain_first: bool) -> None:
    """Say that a roll of a single replica leaves a gap, and how long its latest start took."""
    if len(row.replicas) > 1 or not (drain_first or not row.plan.room_beside(plan)):
        return
    why = "--drain-first" if drain_first else "the device cannot hold a second engine"
    took = sum(each.load_s for each in row.replicas)
    lasting = f" about {took:.0f} s, as its latest start did" if took else ""
    click.echo(f"{row.name} has one replica, and {why}: requests wait{lasting}", err=True)


def _told(row: DeploymentRow, word: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "deployment": tables.as_json(row)}))
        return
    count = len(row.replicas)
    gap = f"; for {row.gap_s:.0f} s no engine answered" if row.gap_s else ""
    click.echo(f"{row.name} is {word}: {count} replica{'' if count == 1 else 's'}{gap}", err=True)


def _kept(settings: Settings) -> list[KeptDeployment]:
    """Return what is kept; damaged files are named on stderr."""
    held, damaged = kept(settings.home)
    for sentence in damaged:
        click.echo(f"warning: {printable(sentence)}", err=True)
    return held


def _tell_kept(names: list[str], *, as_json: bool) -> None:
    """Print what is kept while no server runs."""
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "url": "", "deployments": [], "kept": names}))
        return
    click.echo("no server runs", err=True)
    if names:
        click.echo(f"kept, not running: {', '.join(names)} (freehold deploy starts them)")


# --- a plan on stdout ------------------------------------------------------------------------------

# Options that say what is written, not what is started.
_EMITS = (
    *("emit", "out", "image", "server_image", "claim", "namespace", "monitoring", "scale", "pool", "members"),
    *("dry_run", "as_json"),
)
_HARDWARE = ("on", "nodes")  # of the machine that the unit is for: there it is what is found


def show_plan(plan: DeployPlan, *, as_json: bool) -> None:
    """Print what would be started, and why."""
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "plan": as_dict(plan)}))
        return
    for line in text(plan).splitlines():
        click.echo(printable(line))
    if not plan.attached:
        # MPI starts the same line on each node.
        lines = list(dict.fromkeys(map(plan.shell, range(plan.across))))
        head = "; HEAD: node 0's address" if "HEAD" in lines[0] else ""
        click.echo(f"as a line for a shell{', on node 0' if len(lines) > 1 else ''}{head}")
        click.echo(printable(f"  {lines[0]}"))
        for rank, line in enumerate(lines[1:], 1):
            click.echo(printable(f"on node {rank}\n  {line}"))


def _unit(options: EmitOptions, *, here: bool) -> EmitOptions:
    """Return what a unit starts: these options again; `here`: by this program, for this data folder and this user."""
    import getpass

    from freehold.cli.serving.service import given_options, own_program
    from freehold.outgrow.emit.systemd import PROGRAM

    ctx = click.get_current_context()
    model = ctx.params["model"]
    model = str(Path(model).expanduser().absolute()) if Path(model).expanduser().exists() else model
    but = _EMITS if here else (*_EMITS, *_HARDWARE)
    program = own_program() if here else [PROGRAM]
    options = replace(options, start=(*program, "deploy", *filter(None, [model]), *given_options(ctx, but)))
    return replace(options, home=str(ctx.obj.home), user=getpass.getuser()) if here else options


def emit_plan(plan: DeployPlan, kind: str, out: str | None, values: Mapping[str, Any]) -> None:
    """Write a plan as files into the folder `out`, or one file to stdout; nothing is started.

    `values`: the command line's options, of which EmitOptions takes its own. Raises UsageError.
    """
    names = {f.name for f in fields(EmitOptions)}
    options = EmitOptions(**{k: v for k, v in values.items() if k in names and v})
    if kind == "systemd":
        options = _unit(options, here=not values["on"] or is_ray(values["on"]))
    files = emit(plan, kind, options)
    if values["as_json"]:
        emitted = [{"name": file.name, "text": file.text} for file in files]
        click.echo(json.dumps({"schema": SCHEMA, "files": emitted}))
    elif out is not None:
        folder = Path(out).expanduser()
        if not folder.is_dir():
            raise UsageError(f"--out {out} is not a folder", f"mkdir -p {out}")
        for file in files:
            click.echo(f"written: {write_beside(folder / file.name, file.text)}", err=True)
    elif len(files) == 1:
        click.echo(files[0].text, nl=False)
    else:
        raise UsageError(f"--emit {kind} makes {len(files)} files", "name a folder for them: --out DIR")
