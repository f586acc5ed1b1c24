"""What a starting server prints about access: the page's link, reachable addresses, TLS, and what --insecure opens.

Knows local addresses, the route table and the browser. Path: Announcer -> page_line, opening -> stderr
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from freehold.cli.serving.options import ServeOptions
from freehold.platforms import has_screen

if TYPE_CHECKING:
    from freehold.server.console.login import Login

_SOON_DAYS = 14  # before a certificate expires, with a warning


def page_line(login: Login, url: str) -> str:
    """Return the line that leads to the page.

    On a terminal it is a link that signs its browser in as the owner, once: a file or a journal, which keeps what it
    is sent, gets no code.
    """
    from freehold.server.console.login import START_CODE_S

    if not sys.stderr.isatty():
        return f"the page: {url}/ (freehold open: as the owner)"
    link = owner_address(url, login.new_code(START_CODE_S))
    return f"open the page: {link} (signs you in, once, within an hour; later: freehold open)"


def owner_address(url: str, code: str) -> str:
    """Return the address of the page that signs its browser in as the owner."""
    return f"{url}/#/open/{code}"


def open_browser(address: str) -> bool:
    """Open an address in this machine's browser; return False where there is none, or no screen."""
    import webbrowser

    if not has_screen():
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def opening(options: ServeOptions, url: str) -> Iterator[str]:
    """Yield the lines: all open routes for --insecure, a certificate's names and end, a note about missing TLS."""
    if options.insecure:
        yield from _insecure(options, url)
    if options.tls is not None:
        ends = f"{options.tls.days_left:.0f} days" if options.tls.days_left >= 1 else "less than a day"
        yield f"TLS: certificate for {', '.join(options.tls.names) or 'no name'}, valid for {ends}"
        if options.tls.days_left < _SOON_DAYS:
            yield f"warning: the certificate expires in {ends}; restart the server with a new one"
    elif _reached(options.host) and options.keys:
        yield "note: without TLS the network can read keys and chats; --tls-cert and --tls-key turn it on"


def _insecure(options: ServeOptions, url: str) -> Iterator[str]:
    from freehold.server.app import routes
    from freehold.server.core.call import endpoint_of

    port = url.rpartition(":")[2]
    scheme = url.partition(":")[0]
    reached = _reached(options.host)
    if not reached:
        yield f"--insecure has no effect: {options.host} is reachable from this machine only"
        return
    where = ", ".join(f"{scheme}://{f'[{a}]' if ':' in a else a}:{port}" for a in reached)
    yield f"INSECURE: every host that reaches {where} may use these routes without a key:"
    open_to = [r for r in routes(console=options.console) if endpoint_of(r).audience != "admin"]
    for route in open_to:
        method = next(m for m in ("POST", "GET", "PATCH", "DELETE", "HEAD") if m in (route.methods or ()))
        yield f"  {method:<6} {route.path}"
    yield "that includes every model, compute time and /metrics; /admin/* stays closed"
    yield "to close them: freehold keys add NAME, and start without --insecure"


def _reached(host: str) -> list[str]:
    """Return the addresses at which other machines reach a server bound to `host`."""
    import psutil

    from freehold.server.core.auth import host_name, is_loopback

    name = host_name(host)
    if is_loopback(name):
        return []
    if name not in ("0.0.0.0", "::", ""):
        return [name]
    families = {socket.AF_INET} if name == "0.0.0.0" else {socket.AF_INET6}
    families = families | {socket.AF_INET, socket.AF_INET6} if name == "" else families
    reachable = [
        a.address
        for addresses in psutil.net_if_addrs().values()
        for a in addresses
        if a.family in families and not is_loopback(a.address.partition("%")[0])
    ]
    return [a for a in reachable if not a.startswith("fe80:")] or [name or "every address"]
