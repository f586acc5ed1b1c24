"""`freehold keys add|list|rm|owner`: the server's API keys, stored as hashes; a running server reloads them.

Knows options and messages; the file is http/core/keys.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.shared import json_option, table

SCHEMA = 1
HEAD = ("NAME", "KIND", "MODELS", "RATE", "TOKENS", "SPENT TODAY", "CREATED")


@click.group("keys")
def command() -> None:
    """Create, list and revoke the API keys of `freehold serve`.

    Only hashes are stored, in keys.json of the data folder. A running server applies a change within a second.
    """


def _file(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Use this key file, for serve --key-file.",
    )(f)


@command.command("add", epilog="Example: freehold keys add alice --rate 60/min")
@click.argument("name")
@click.option(
    "--models", metavar="A,B", default="", help="Allow only these models; patterns such as qwen* work."
)
@click.option("--rate", metavar="N/TIME", default="", help="Request rate: 60/min, 10/s, 5000/h.")
@click.option(
    "--tokens", metavar="N/day", default="", help="Token budget for prompts and answers: 1M/day (UTC)."
)
@click.option(
    "--admin", is_flag=True, help="For the /admin routes (load, unload, stop, ps) only; not for models."
)
@_file
@json_option
@click.pass_obj
def add(settings: Settings, name: str, file: Path | None, as_json: bool, **options: Any) -> None:
    """Create a key named NAME and print it once.

    Only the key's hash is stored. NAME is the tenant: fair shares, the prefix cache and budgets are kept per tenant.
    """
    from freehold.serve.http.core.keys import KeyFile, made, new_secret

    scope = tuple(m.strip() for m in options["models"].split(",") if m.strip())
    if options["admin"] and (scope or options["rate"] or options["tokens"]):
        raise UsageError("an admin key cannot use models", "leave out --models, --rate and --tokens")
    secret, kept = new_secret(), KeyFile(file or settings.keys)
    key = made(
        name, secret, admin=options["admin"], models=scope, rate=options["rate"], tokens=options["tokens"]
    )
    kept.add(key)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "name": name, "key": secret, "file": str(kept.path)}))
        return
    click.echo(secret)
    click.echo(f"the key of {name}, shown this once; its hash is in {kept.path}", err=True)
    _tell(settings, file, "requires a key from now on: requests without one are refused")


@command.command("list", epilog="Example: freehold keys list")
@_file
@json_option
@click.pass_obj
def list_(settings: Settings, file: Path | None, as_json: bool) -> None:
    """List the keys: scope, limits, and tokens used today."""
    from freehold.serve.http.core.accounts import Accounts
    from freehold.serve.http.core.keys import KeyFile

    kept = KeyFile(file or settings.keys)
    keys, spent = kept.read(), Accounts(settings.accounts).today()
    if as_json:
        rows = [
            {
                "name": key.name,
                "kind": key.kind,
                "models": list(key.models),
                "rate": key.rate or None,
                "tokens": key.tokens or None,
                "spent_today": spent.get(key.name, 0),
                "created": key.created,
            }
            for key in keys
        ]
        click.echo(json.dumps({"schema": SCHEMA, "file": str(kept.path), "keys": rows}, indent=1))
    elif keys:
        table(
            HEAD,
            [
                (
                    k.name,
                    k.kind,
                    ",".join(k.models) or "all",
                    k.rate or "-",
                    k.tokens or "-",
                    f"{spent.get(k.name, 0):,}",
                    k.created[:10],
                )
                for k in keys
            ],
            right=(5,),
        )
    else:
        click.echo(f"no keys in {kept.path}; freehold keys add NAME makes one", err=True)


@command.command("rm", epilog="Example: freehold keys rm alice")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_file
@json_option
@click.pass_obj
def rm(settings: Settings, names: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Revoke keys.

    A running server refuses them within a second. Their token counts are kept.
    """
    from freehold.serve.http.core.keys import KeyFile

    kept = KeyFile(file or settings.keys)
    for name in dict.fromkeys(names):
        kept.remove(name)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "removed": list(dict.fromkeys(names))}))
        return
    for name in dict.fromkeys(names):
        click.echo(f"{name}: revoked", err=True)
    if kept.emptied():
        click.echo(
            f"no key is left: a server will not start until one is added or {kept.path} is removed", err=True
        )
        _tell(
            settings,
            file,
            "still requires a key and has none: only the owner's socket and token are accepted",
        )


@command.command("owner", epilog="Example: freehold keys owner")
@json_option
@click.pass_obj
def owner(settings: Settings, as_json: bool) -> None:
    """Print the token for the owner's routes.

    With this token, a program may pull, create, copy and delete models, as over the owner's socket. For Ollama's
    clients: OLLAMA_API_KEY=$(freehold keys owner). It is stored in owner.token of the data folder.
    """
    from freehold.serve.http.core.auth import owner_token

    token = owner_token(settings.owner_token)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "token": token, "file": str(settings.owner_token)}))
    else:
        click.echo(token)


def _tell(settings: Settings, file: Path | None, what: str) -> None:
    """Print what a change does to this home's running server, if it uses this file."""
    from freehold.cli.serving.attach import holder

    if file is None and (pid := holder(settings)):
        click.echo(f"the running server (pid {pid}), unless it has a --key-file, {what}", err=True)
