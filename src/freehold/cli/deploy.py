"""`freehold deploy MODEL`: another engine behind our server, and the verbs about what is deployed.

Knows options and the order of starting: the running server of this home is asked to add the deployment; where none
runs, this command becomes the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings, nearest
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.terminal import printable
from freehold.cli.deploying import (
    asked_of,
    given_of_a_server,
    plan_options,
    refuse_empty,
    refuse_idle,
    refuse_without_model,
)
from freehold.cli.helping import section
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine
from freehold.cli.serving.logs import LEVELS
from freehold.cli.serving.options import ServeRequest, door_options, read_options
from freehold.cli.shared import drain_option, gateway_option, json_option, offline_option, with_offline
from freehold.cli.verbs import UNDER_DEPLOY
from freehold.outgrow.options import DeployOptions

if TYPE_CHECKING:
    from freehold.outgrow.contract import DeployPlan

EMITTED = ("systemd", "compose", "k8s", "skypilot", "ray")


class _DeployGroup(click.Group):
    """`deploy MODEL` deploys; `deploy status` and its like are verbs of their own, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(UNDER_DEPLOY)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in UNDER_DEPLOY:
            return None
        from importlib import import_module

        from freehold.cli.complete import with_names
        from freehold.cli.helping import Context

        file, name, _ = UNDER_DEPLOY[cmd_name]
        verb: click.Command = getattr(import_module(f"freehold.cli.deploying.{file}"), name)
        verb.context_class = Context
        return with_names(verb)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, importing none of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, help) for name, (_, _, help) in UNDER_DEPLOY.items()])

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Leave MODEL out where a verb follows."""
        params = super().get_params(ctx)
        return [p for p in params if p.name != "model"] if ctx.meta.get(__name__) else params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a verb's name only as the first word; everything else is an option of `deploy MODEL`."""
        if args and args[0] in UNDER_DEPLOY:
            ctx.meta[__name__] = True
            return super().parse_args(ctx, args)
        ctx.allow_interspersed_args = True
        rest = click.Command.parse_args(self, ctx, args)
        if rest and not ctx.resilient_parsing:
            raise UsageError(
                f"{rest[0]!r} follows {ctx.params['model']!r}, and one MODEL is deployed", _verb(ctx)
            )
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] [MODEL]", "|", "COMMAND ..."]


def _verb(ctx: click.Context) -> str:
    """Return which verb was meant by MODEL; "" for none."""
    near = nearest(ctx.params["model"], list(UNDER_DEPLOY))
    return f"did you mean freehold deploy {near}?" if near else ""


@click.group("deploy", cls=_DeployGroup, invoke_without_command=True)
@click.argument("model", required=False, default="")
@plan_options
@section("The plan")
@setting_options(DeployOptions, "name", unset=True)
@click.option("--dry-run", is_flag=True, help="Print the command with a reason for each flag; start nothing.")
@section("Plans for other machines")
@setting_options(DeployOptions, "on", "nodes", unset=True)
@click.option(
    "--emit",
    type=click.Choice(EMITTED),
    help="Write files that run the plan elsewhere; start nothing.",
)
@click.option("--out", metavar="DIR", help="With --emit: write the files into DIR.")
@click.option("--image", metavar="NAME@DIGEST", help="With --emit: the engine's container image.")
@click.option("--server-image", metavar="NAME@DIGEST", help="With --emit: Freehold's container image.")
@click.option("--claim", metavar="NAME", help="With --emit k8s: the volume claim that holds the model.")
@click.option("--namespace", metavar="NAME", help="With --emit k8s: the namespace.")
@click.option("--monitoring", metavar="NAME", help="With --emit k8s: namespace of the cluster's Prometheus.")
@click.option(
    "--scale", metavar="A..B", help="With --emit k8s: scale the replicas by the engines' queues, with KEDA."
)
@click.option(
    "--pool",
    metavar="GATEWAY",
    help="With --emit k8s: an InferencePool behind this Gateway keeps prefixes together.",
)
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="ADDRESS",
    help="With --emit ray: a machine of the cluster, or this one, for the firewall rules; repeatable.",
)
@section("Address and access")
@door_options
@section("The server")
@gateway_option
@drain_option
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Level of the server's log.")
@section("Output and network")
@json_option
@offline_option
@click.pass_context
def command(ctx: click.Context, model: str = "", **values: Any) -> None:
    """Deploy MODEL with another engine, behind this server's API, keys, limits and metrics.

    If a server with this data folder is running, it adds the deployment. Otherwise, this command serves it until
    Ctrl-C, with the options of freehold serve (--host, --port, --key-file, ...). Without MODEL, it starts the
    stored deployments that were not stopped.

    The engine listens on a socket that only you can open. Ctrl-C during a start ends the engine completely.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = with_offline(ctx.obj, values.pop("offline"))
    refuse_empty(ctx)
    if not model and not values["attach"]:
        refuse_without_model(ctx)
        ctx.exit(_again(settings, values))
    from freehold.outgrow.planning.options import planned
    from freehold.outgrow.ray.plan import is_ray

    refuse_idle(ctx, values["emit"] or "")
    options = asked_of(values, DeployOptions(model))
    only = bool(values["emit"] or values["dry_run"] or (options.on and not is_ray(options.on)))
    try:
        with StatusLine("nothing was started") as line:
            plan = planned(settings, options, start=not only, show=line.show)
    except ModelNotFound as e:
        raise ModelNotFound(e.message, _verb(ctx) or e.hint) from e
    if values["emit"]:
        from freehold.cli.deploying.verbs import emit_plan

        emit_plan(plan, values["emit"], values["out"], values)
        return
    if only:
        from freehold.cli.deploying.verbs import show_plan

        show_plan(plan, as_json=values["as_json"])
        if not values["dry_run"]:
            click.echo("nothing was started: --on plans for hardware that may be elsewhere", err=True)
        return
    ctx.exit(_start(settings, [(plan, options)], values))


def _again(settings: Settings, options: Mapping[str, Any]) -> int:
    from freehold.cli.deploying.running import RunningDeployments
    from freehold.cli.serving.attach import running
    from freehold.outgrow.kept import kept

    held, damaged = kept(settings.home)
    for sentence in damaged:
        click.echo(f"warning: {printable(sentence)}", err=True)
    server = running(settings)
    names: set[str] = set()
    if server is not None:
        with server:
            names = {row.name for row in RunningDeployments(server).rows()}
    plans = [(each.plan, each.asked) for each in held if each.name not in names]
    if not plans:
        raise UsageError("there is no deployment to start again", "name a MODEL: freehold deploy MODEL")
    return _start(settings, plans, options, again=True)


def _start(
    settings: Settings,
    plans: list[tuple[DeployPlan, DeployOptions]],
    values: Mapping[str, Any],
    *,
    again: bool = False,
) -> int:
    """Start plans on the running server, or in one that this command becomes."""
    from freehold.cli.serving.attach import running

    server = running(settings)
    if server is not None:
        from freehold.cli.deploying.running import RunningDeployments, start_all

        for option in given_of_a_server(click.get_current_context()):
            click.echo(f"note: {option} is for a server that this command starts; one runs already", err=True)
        with server:
            return start_all(RunningDeployments(server), plans, printed=values["as_json"], again=again)
    from freehold.cli.deploying.serving import StartedDeployments
    from freehold.cli.serving.running import serve_models
    from freehold.run.store import Store

    names = {each.name for each in fields(ServeRequest)}
    request = ServeRequest(**{name: value for name, value in values.items() if name in names})
    options = read_options(settings, request)
    return serve_models(settings, Store(settings), (), options, StartedDeployments(plans, again=again))
