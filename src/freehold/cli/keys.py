"""`freehold keys add|list|rm`: the keys of the server, kept as hashes; a running server sees the change.

Knows options and what to say; the file is server/core/keys.py's. Path: main -> keys -> KeyFile
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from freehold.cli.shared import json_option, table
from freehold.config import Settings
from freehold.errors import UsageError

SCHEMA = 1
HEAD = ("NAME", "KIND", "MODELS", "RATE", "TOKENS", "SPENT TODAY", "CREATED")


@click.group("keys")
def command() -> None:
    """Make, list and revoke the API keys of `freehold serve`.

    Only a key's hash is kept, in keys.json of the data folder. A running server sees the change within a second.
    """


def _file(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--file", type=click.Path(path_type=Path), metavar="FILE", help="Another file, for serve --key-file."
    )(f)


@command.command("add")
@click.argument("name")
@click.option("--models", metavar="A,B", default="", help="Only these models; patterns such as qwen* do.")
@click.option("--rate", metavar="N/TIME", default="", help="Requests: 60/min, 10/s, 5000/h.")
@click.option("--tokens", metavar="N/day", default="", help="Tokens of prompts and answers: 1M/day (UTC).")
@click.option("--admin", is_flag=True, help="For the /admin routes (load, unload, stop, ps), and no model.")
@_file
@json_option
@click.pass_obj
def add(settings: Settings, name: str, file: Path | None, as_json: bool, **given: Any) -> None:
    """Make a key called NAME and print it, once.

    The key itself is not stored, only its hash. NAME is the tenant: its requests share the machine and the cache
    under it.
    """
    from freehold.server.core.keys import KeyFile, made, new_secret

    scope = tuple(m.strip() for m in given["models"].split(",") if m.strip())
    if given["admin"] and (scope or given["rate"] or given["tokens"]):
        raise UsageError("an admin's key asks no model", "give it neither --models nor --rate nor --tokens")
    secret, kept = new_secret(), KeyFile(file or settings.keys)
    key = made(name, secret, admin=given["admin"], models=scope, rate=given["rate"], tokens=given["tokens"])
    kept.add(key)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "name": name, "key": secret, "file": str(kept.path)}))
        return
    click.echo(secret)
    click.echo(f"the key of {name}, shown this once; its hash is in {kept.path}", err=True)
    _tell(settings, file, "needs a key from now on, this one too: requests without one are refused")


@command.command("list")
@_file
@json_option
@click.pass_obj
def list_(settings: Settings, file: Path | None, as_json: bool) -> None:
    """List the keys: what each may do, and the tokens it spent today."""
    from freehold.server.core.keys import KeyFile

    kept = KeyFile(file or settings.keys)
    keys, spent = kept.read(), _spent(settings)
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


@command.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_file
@json_option
@click.pass_obj
def rm(settings: Settings, names: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Revoke keys.

    A running server refuses them within a second. What they spent stays counted.
    """
    from freehold.server.core.keys import KeyFile

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
            f"no key is left: the next server will not start without one (or without {kept.path})", err=True
        )
        _tell(settings, file, "still needs a key and has none: only the owner's socket and token come in")


@command.command("owner")
@json_option
@click.pass_obj
def owner(settings: Settings, as_json: bool) -> None:
    """Print the token of the owner's routes.

    Programs of yours that send it may pull, create, copy and delete models, as over the owner's socket. For
    Ollama's clients: OLLAMA_API_KEY=$(freehold keys owner). It is kept in owner.token of the data folder.
    """
    from freehold.server.core.owner import owner_token

    token = owner_token(settings.owner_token)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "token": token, "file": str(settings.owner_token)}))
    else:
        click.echo(token)


def _tell(settings: Settings, file: Path | None, what: str) -> None:
    """Say what a change does to the server that runs for this home, if it reads this file."""
    from freehold.cli.serving.lock import holder

    if file is None and (pid := holder(settings)):
        click.echo(f"the server that runs (pid {pid}; not if it has a --key-file) {what}", err=True)


def _spent(settings: Settings) -> dict[str, int]:
    from freehold.server.core.accounts import Accounts

    return dict(Accounts(settings.accounts).today())
