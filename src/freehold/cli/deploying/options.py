"""The options of `freehold deploy` and `deploy upgrade` that say what to plan, once for both; those that say nothing.

Knows names and help texts; what they mean is outgrow/planning/options.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from freehold.base.errors import UsageError
from freehold.cli.helping import section
from freehold.cli.shared import Amount

if TYPE_CHECKING:
    from freehold.outgrow.planning.options import DeployOptions

ENGINES = ("auto", "vllm", "sglang", "trtllm", "llamacpp", "ollama", "mlx", "freehold")

# Options about files -> the kinds of --emit that have a use for them; empty: every kind.
_OF_FILES: dict[str, tuple[str, ...]] = {
    "out": (),
    "image": ("compose", "k8s", "skypilot"),
    "server_image": ("compose", "k8s"),
    "claim": ("k8s",),
    "namespace": ("k8s",),
    "monitoring": ("k8s",),
    "scale": ("k8s",),
    "pool": ("k8s",),
    "members": ("ray",),
}

_PLAN = (
    section("The plan"),
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        help="Engine to start; auto: the available engine with the highest predicted speed. Default: auto.",
    ),
    click.option("--replicas", type=click.IntRange(1, 1000), metavar="N", help="Engines behind the name."),
    click.option("--context", type=Amount(whole=True), metavar="TOKENS", help="Context of each request."),
    click.option("--streams", type=click.IntRange(1), metavar="N", help="Requests at a time, per replica."),
    click.option(
        "--quant", metavar="Q", help="Published copy of a catalogue model to use: FP8, INT4, NVFP4, Q4_K_M."
    ),
    click.option(
        "--cache-type",
        metavar="TYPE",
        help="Type of cached keys and values: fp8 stores twice as many as 16 bits, at a small loss.",
    ),
    click.option(
        "--engine-flag",
        "flags",
        multiple=True,
        metavar="--NAME=VALUE",
        help="A flag of the engine's own, checked against its version; repeatable.",
    ),
    section("The engine's environment"),
    click.option("--python", metavar="PATH", help="Start the engine of this Python's environment."),
    click.option(
        "--env",
        metavar="DIR",
        help="Environment of the engine, created by uv or pip if missing; NAME: one in the data folder.",
    ),
    click.option("--command", metavar="WORDS", help="Start the engine by these words."),
    section("An engine that is already running"),
    click.option(
        "--attach",
        metavar="URL",
        help="Use an engine that is already running at URL or unix:PATH; MODEL is the engine's name "
        "for the model.",
    ),
    click.option("--attach-key-env", metavar="NAME", help="Variable that has the attached engine's key."),
    click.option(
        "--attach-cleartext",
        is_flag=True,
        default=None,
        help="Allow http:// to another machine, over a path that is private (a tunnel, a cable).",
    ),
    section("The plan"),
    click.option("--fallback", metavar="MODEL", help="An installed model that answers while no replica can."),
)


def plan_options(command: Callable) -> Callable:
    """Add the options to a click command."""
    for option in reversed(_PLAN):
        command = option(command)
    return command


def asked_of(values: Mapping[str, Any], base: DeployOptions) -> DeployOptions:
    """Return `base` with what was given on the command line."""
    names = {f.name for f in fields(base)}
    return replace(base, **{k: v for k, v in values.items() if k in names and v not in (None, ())})


def refuse_empty(ctx: click.Context) -> None:
    """Raise UsageError for an empty value, as of a script's variable that is not set: it would count as not given."""
    for param in ctx.command.params:
        if ctx.params.get(param.name or "") == "" and _is_given(ctx, param):
            named = param.opts[0] if isinstance(param, click.Option) else "MODEL"
            raise UsageError(f"{named} is empty", "give a value, or leave it out")


def refuse_idle(ctx: click.Context, kind: str) -> None:
    """Raise UsageError for an option about files that `--emit kind` does not use; "": nothing is emitted."""
    for option in _on_the_line(ctx, _OF_FILES):
        kinds = _OF_FILES[option.name or ""]
        if not kind or (kinds and kind not in kinds):
            wanted = f"--emit {', '.join(kinds)}" if kinds else "--emit"
            raise UsageError(
                f"{option.opts[0]} is for {wanted}",
                f"--emit {kind} has no use for it: leave it out"
                if kind
                else "name what to write: --emit k8s",
            )


def _planning() -> set[str]:
    """Return the options that say what to plan or to write."""
    from freehold.outgrow.planning.options import DeployOptions

    return {f.name for f in fields(DeployOptions)} | {"dry_run", "emit", *_OF_FILES}


def given_of_a_server(ctx: click.Context) -> list[str]:
    """Return the options of this command line that a server is started with."""
    others = {param.name or "" for param in ctx.command.params} - _planning() - {"as_json", "offline"}
    return [option.opts[0] for option in _on_the_line(ctx, others)]


def refuse_without_model(ctx: click.Context) -> None:
    """Raise UsageError for an option that says what to plan or to write: without MODEL, what is kept is started."""
    for option in _on_the_line(ctx, _planning()):
        raise UsageError(
            f"{option.opts[0]} needs a MODEL; without one, what was deployed before is started as it was",
            "name a MODEL; freehold deploy upgrade NAME changes a deployment",
        )


def _on_the_line(ctx: click.Context, names: Collection[str]) -> Iterator[click.Option]:
    for param in ctx.command.params:
        if isinstance(param, click.Option) and param.name in names and _is_given(ctx, param):
            yield param


def _is_given(ctx: click.Context, param: click.Parameter) -> bool:
    return ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
