"""The verbs of `freehold deploy`: a file each, and what they share.

The options of `freehold deploy` and `deploy upgrade` that say what to plan are here, once for both. Knows sections;
names, ranges and helps are outgrow/options.py's, what they mean is outgrow/planning/options.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import click

from freehold.base.errors import UsageError
from freehold.cli.helping import section
from freehold.cli.options import setting_options
from freehold.outgrow.options import DeployOptions

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

# Options by the section of help that shows them; what each takes, its field says.
_PLAN = (
    ("The plan", ("engine", "replicas", "context", "streams", "quant", "cache_type", "flags")),
    ("The engine's environment", ("python", "env", "command")),
    ("An engine that is already running", ("attach", "attach_key_env", "attach_cleartext")),
    ("The plan", ("fallback",)),
)


def plan_options(command: Callable) -> Callable:
    """Add the options to a click command."""
    for title, names in reversed(_PLAN):
        command = section(title)(setting_options(DeployOptions, *names, unset=True)(command))
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
