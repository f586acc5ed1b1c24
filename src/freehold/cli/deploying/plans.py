"""A plan on stdout: a reason for each flag and a line for a shell, or JSON; or files that start it elsewhere.

Knows words; plans and the texts of files are made elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from freehold.base.errors import UsageError
from freehold.base.terminal import printable
from freehold.cli.shared import write_beside
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit.emit import EmitOptions, emit
from freehold.outgrow.planning.printed import as_dict, text
from freehold.outgrow.ray.plan import is_ray

SCHEMA = 1
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
