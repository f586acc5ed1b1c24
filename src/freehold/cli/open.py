"""`freehold open`: the address of the running server's page, with a one-time code that makes its browser the owner's.

Knows the owner's socket and this machine's browser; what the code opens is server/console/login.py's.
Path: main -> open -> attach.server_here -> POST /console/api/code -> browser -> POST /console/owner
"""

from __future__ import annotations

import json
from typing import Any

import click

from freehold.cli.serving.attach import RunningServer, server_here
from freehold.cli.serving.opening import open_browser, owner_address
from freehold.cli.shared import json_option
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError

SCHEMA = 1


@click.command("open")
@click.option("--print", "only_print", is_flag=True, help="Print the address without opening a browser.")
@json_option
@click.pass_obj
def command(settings: Settings, only_print: bool, as_json: bool) -> None:
    """Open the page of the running server as its owner.

    Prints an address with a one-time code, valid for 60 seconds, and opens it if there is a browser. The page can
    then also pull and delete models, use tools and make keys. For chat on this machine, the plain address is
    enough.
    """
    with server_here(settings) as server:
        if not server.greeting.url:
            raise UsageError("this server has no port, so no page", "start it with freehold serve")
        code = _code(server)
        address, seconds = owner_address(server.greeting.url, code["code"]), code["seconds"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "url": address, "seconds": seconds}))
        return
    click.echo(address)
    opened = not only_print and open_browser(address)
    what = "opened in the browser" if opened else "open it in a browser on this machine"
    click.echo(f"{what}; the code in it works once, within {seconds:.0f} s", err=True)


def _code(server: RunningServer) -> dict[str, Any]:
    """Ask for a code. Raises UsageError where the server has no page."""
    try:
        return server.api.call("POST", "/console/api/code", {})
    except FreeholdError as e:
        if "no route" in e.message:
            raise UsageError(
                "this server was started without its page", "start it without --no-console"
            ) from e
        raise
