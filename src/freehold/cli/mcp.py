"""`freehold mcp add|list|rm|test|revoke`: the servers of tools, in config.toml.

Knows options and messages; a server is started by `test` alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.serving.configfile import add_table, remove_table
from freehold.cli.shared import json_option, table

SCHEMA = 1
HEAD = ("NAME", "KIND", "KEYS", "ALLOWED", "COMMAND OR URL")


@click.group("mcp")
def command() -> None:
    """Configure the programs and addresses whose tools a model may call (MCP servers).

    Only this command and config.toml can do that; the page and requests cannot. Freehold asks before each call,
    unless you allowed the tool, with its present description, for a chat or always.
    """


@command.command(
    "add",
    epilog="Example: freehold mcp add files -- python ~/files_server.py ~/notes",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("name")
@click.argument("words", metavar="COMMAND... | URL", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set a variable of the program; repeatable.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="Send a header to the URL; repeatable.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Let this API key use it too; repeatable.")
@click.option("--private", is_flag=True, help="Allow a URL in a private network.")
@json_option
@click.pass_obj
def add(settings: Settings, name: str, words: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Add a server: a program with its arguments after --, or a URL.

    The program gets PATH, HOME, the language and the variables of --env, but none of your other variables. No shell
    interprets the words. Example: freehold mcp add files -- npx -y @modelcontextprotocol/server-filesystem ~/notes
    """
    from freehold.serve.tools.mcp.configured import tool_server

    is_url = len(words) == 1 and re.match(r"https?://", words[0])
    table: dict[str, Any] = {"url": words[0]} if is_url else {"command": list(words)}
    table |= {"env": _named(options["env"], "--env")} if options["env"] else {}
    table |= {"headers": _named(options["header"], "--header")} if options["header"] else {}
    table |= {"keys": list(options["keys"])} if options["keys"] else {}
    table |= {"private": True} if options["private"] else {}
    server = tool_server(name, table, "freehold mcp add")
    if name in settings.mcp:
        raise UsageError(f"there is a server {name!r}", f"freehold mcp rm {name} removes it")
    path = settings.home / "config.toml"
    add_table(path, settings.home, ("mcp", name), table)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "name": name, "where": server.where, "file": str(path)}))
        return
    click.echo(f"{name}: {server.where}, in {path}; freehold mcp test {name} starts it", err=True)


@command.command("list", epilog="Example: freehold mcp list")
@json_option
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """List the servers and how many of their tools you always allow."""
    from freehold.serve.tools.mcp.configured import tool_servers
    from freehold.serve.tools.mcp.permissions import Permissions

    servers = tool_servers(settings.mcp).values()
    entries = Permissions.of(settings.home).entries()
    if as_json:
        rows = [
            {
                "name": server.name,
                "command": list(server.command) or None,
                "url": server.url or None,
                "env": sorted(server.env),
                "headers": sorted(server.headers),
                "keys": list(server.keys),
                "allowed": [
                    {"tool": e.tool, "scope": e.scope, "chat": e.chat or None, "digest": e.digest}
                    for e in entries
                    if e.server == server.name
                ],
            }
            for server in servers
        ]
        click.echo(json.dumps({"schema": SCHEMA, "servers": rows}, indent=1))
    elif servers:
        table(HEAD, [_row(server, sum(e.server == server.name for e in entries)) for server in servers])
    else:
        click.echo("no servers; freehold mcp add NAME -- COMMAND... adds one", err=True)


@command.command("rm", epilog="Example: freehold mcp rm files")
@click.argument("name")
@json_option
@click.pass_obj
def rm(settings: Settings, name: str, as_json: bool) -> None:
    """Remove a server from config.toml, with its permissions."""
    if name not in settings.mcp:
        raise UsageError(f"no server named {name!r}", "freehold mcp list shows them")
    remove_table(settings.home / "config.toml", settings.home, ("mcp", name))
    revoked = _revoke(settings, name, "")
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "removed": name, "revoked": revoked}))
    else:
        click.echo(f"{name}: removed", err=True)


@command.command("revoke", epilog="Example: freehold mcp revoke files")
@click.argument("name")
@click.argument("tool", default="")
@json_option
@click.pass_obj
def revoke(settings: Settings, name: str, tool: str, as_json: bool) -> None:
    """Revoke what you allowed for a server, or for one TOOL; Freehold then asks again."""
    revoked = _revoke(settings, name, tool)
    if not revoked:
        raise UsageError(f"nothing of {name!r} is allowed", "freehold mcp list --json shows what is")
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "revoked": revoked}))
    else:
        click.echo(f"{', '.join(revoked)}: asks again", err=True)


@command.command("test", epilog="Example: freehold mcp test files")
@click.argument("name")
@json_option
@click.pass_obj
def test(settings: Settings, name: str, as_json: bool) -> None:
    """Start a server, list its tools, and stop it."""
    from freehold.serve.tools.mcp.configured import tool_servers
    from freehold.serve.tools.mcp.permissions import pinned
    from freehold.serve.tools.mcp.use import visible

    servers = tool_servers(settings.mcp)
    if name not in servers:
        raise UsageError(f"no server named {name!r}", "freehold mcp list shows them")
    began = time.monotonic()
    tools, left_out = pinned(servers[name], asyncio.run(_listed(servers[name])))
    took = time.monotonic() - began
    if as_json:
        report = {"tools": [tool.shown() for tool in tools], "left_out": left_out}
        click.echo(
            json.dumps({"schema": SCHEMA, "name": name, "seconds": round(took, 3), **report}, indent=1)
        )
        return
    for tool in tools:
        summary = tool.description.partition("\n")[0][:200]
        click.echo(visible(f"{tool.name}  {summary}".rstrip(), lines=False))
    for sentence in left_out:
        click.echo(visible(f"warning: {sentence}", lines=False), err=True)
    click.echo(f"{len(tools)} tools, started and listed in {took:.1f} s", err=True)


async def _listed(server: Any) -> list[dict[str, Any]]:
    from freehold.serve.tools.mcp.connection import ToolConnection

    connection = ToolConnection(server)
    try:
        await connection.start()
        return await connection.listed()
    finally:
        await connection.close()


def _named(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    values = {}
    for each in pairs:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"{option} {each[:40]!r} has no =", f"write {option} NAME=VALUE")
        values[name] = value
    return values


def _row(server: Any, allowed: int) -> tuple[str, ...]:
    kind = "program" if server.command else "address"
    return server.name, kind, ",".join(server.keys) or "-", str(allowed), server.where


def _revoke(settings: Settings, name: str, tool: str) -> list[str]:
    from freehold.serve.tools.mcp.permissions import Permissions

    kept = Permissions.of(settings.home)
    entries = [e for e in kept.entries() if e.server == name and (not tool or e.tool == tool)]
    for digest in dict.fromkeys(entry.digest for entry in entries):
        kept.revoke(digest)
    return list(dict.fromkeys(entry.tool for entry in entries))
