"""The servers of tools that the owner configured: `[mcp.NAME]` of config.toml, checked.

    [mcp.files]
    command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/home/ann/notes"]
    env = {LOG_LEVEL = "warning"}
    keys = ["ann"]

Neither the page nor a request writes them: a command is the right to run any program. Knows the table; starts nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from freehold.base.config import suggestion
from freehold.base.errors import UpstreamFailed, UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
MAX_SERVERS = 32
# Bytes of one message of a server: it is parsed beside the streams of all users, in some 20 ms.
MAX_MESSAGE = 4 << 20
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KEYS = ("command", "url", "env", "headers", "keys", "private")


@dataclass(frozen=True, slots=True)
class ToolServer:
    """One server: a local program, or an address."""

    name: str
    command: tuple[str, ...] = ()  # words; no shell reads them
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # all it gets beside PATH and its like
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # of requests to the url
    keys: tuple[str, ...] = ()  # API keys that may use it; the owner always may
    private: bool = False  # the url may lead into this network

    @property
    def where(self) -> str:
        """The command or the address, on one line."""
        import shlex

        return shlex.join(self.command) if self.command else self.url

    def identity(self) -> dict[str, Any]:
        """Return what a standing permission holds for: another program, address or environment is another server."""
        if self.command:
            return {"command": list(self.command), "env": dict(sorted(self.env.items()))}
        return {"url": self.url, "headers": dict(sorted(self.headers.items()))}


def tool_servers(table: Mapping[str, Any], where: str = "config.toml") -> dict[str, ToolServer]:
    """Return the servers of an `[mcp]` table by name. Raises UsageError for what is wrong in it."""
    if len(table) > MAX_SERVERS:
        raise UsageError(f"{where}: [mcp] has {len(table)} servers; expected at most {MAX_SERVERS}")
    return {name: tool_server(name, options, f"{where}: [mcp.{name}]") for name, options in table.items()}


def tool_server(name: str, options: Any, where: str) -> ToolServer:
    """Return one server. Raises UsageError."""
    if NAME.fullmatch(name) is None:
        hint = "use small letters, digits, - and _, at most 32"
        raise UsageError(f"{where}: {name[:60]!r} is not a valid name of a server", hint)
    if not isinstance(options, dict):
        raise UsageError(f"{where} must be a table with command or url")
    for key in options.keys() - set(_KEYS):
        hint = suggestion(key, _KEYS)
        raise UsageError(f"{where}: unknown key {key!r}", hint)
    if ("command" in options) == ("url" in options):
        raise UsageError(f"{where} needs either command or url")
    return _remote(name, options, where) if "url" in options else _local(name, options, where)


def _local(name: str, options: dict[str, Any], where: str) -> ToolServer:
    command = options["command"]
    if isinstance(command, str):
        hint = 'write a list of words: command = ["npx", "-y", "package"]'
        raise UsageError(f"{where}: command is a text; no shell reads it", hint)
    words = _texts(command, f"{where}: command")
    if not words or not words[0]:
        raise UsageError(f"{where}: command is empty")
    _only(options, ("command", "env", "keys"), where)
    env = _mapping(options.get("env", {}), _VARIABLE, f"{where}: env")
    return ToolServer(name, command=words, env=env, keys=_texts(options.get("keys", []), f"{where}: keys"))


def _remote(name: str, options: dict[str, Any], where: str) -> ToolServer:
    _only(options, ("url", "headers", "keys", "private"), where)
    url, private = options["url"], options.get("private", False)
    if not isinstance(url, str) or not isinstance(private, bool):
        raise UsageError(f"{where}: url must be a text, and private true or false")
    check_url(url, where, private=private)
    headers = _mapping(options.get("headers", {}), _HEADER, f"{where}: headers")
    keys = _texts(options.get("keys", []), f"{where}: keys")
    return ToolServer(name, url=url, headers=headers, keys=keys, private=private)


def _only(options: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    if strange := [key for key in options if key not in known]:
        beside = "url" if "url" in options else "command"
        raise UsageError(f"{where}: {strange[0]} has no meaning beside {beside}")


def _texts(texts: Any, where: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(each, str) and "\0" not in each for each in texts):
        raise UsageError(f"{where} must be a list of texts")
    return tuple(texts)


def _mapping(mapping: Any, name: re.Pattern[str], where: str) -> dict[str, str]:
    if not isinstance(mapping, dict):
        raise UsageError(f"{where} must be a table of texts")
    for key, value in mapping.items():
        if name.fullmatch(key) is None:
            raise UsageError(f"{where}: {key[:60]!r} is not a valid name")
        if not isinstance(value, str) or re.search(r"[\0\r\n]", value):
            raise UsageError(f"{where}: {key} must be a text on one line")
    return mapping


# --- which addresses a server of tools may have -----------------------------------------------------
# Its url is checked as written, and again for what its name stands for.
# An address counts in every spelling: `0x7f.1`, `2130706433` and `::ffff:127.0.0.1` resolve to what they
# mean. Knows addresses; opens no connection.

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # behind a provider's or a VPN's translation
_ASSIGNED = ipaddress.ip_network("192.0.0.0/24")  # of protocols; Python calls some of it global
# IPv6 networks in which an IPv4 address is written: NAT64 for all (RFC 6052), with its last 32 bits; NAT64 of a network
# of one's own (RFC 8215), at any of four places.
_TRANSLATED, _OWN_TRANSLATED = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, where: str, *, private: bool) -> None:
    """Refuse (UsageError) a url whose form is wrong, or whose host is an address that is refused."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as e:
        raise UsageError(f"{where}: url {url[:100]!r} is not valid: {e}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{where}: url {url[:100]!r} must begin with https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{where}: url holds a password", "put it into headers")
    local = is_local(host)
    if parts.scheme == "http" and not (local or private):
        hint = "use https://; http:// is for this machine"
        raise UsageError(f"{where}: {host} would be asked without encryption", hint)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # a name, or another spelling of an address: it is checked when it is resolved
    if why := refusal(address, local=local, private=private):
        raise UsageError(f"{where}: {host} {why}")


def is_local(host: str) -> bool:
    """Return whether a url was written for this machine: localhost, 127.0.0.1 or ::1, and no other spelling."""
    return host.lower() in _LOCAL_NAMES


def refusal(address: Address, *, local: bool, private: bool) -> str:
    """Return why an address is not asked, or "". `local`: the url names this machine; `private`: this network."""
    for each in _meant(address):
        if local:
            if not each.is_loopback:
                return "is not this machine, which its url names"
        elif each.is_loopback or each.is_unspecified:
            return "is this machine; write localhost if that is meant"
        elif each.is_link_local or each.is_multicast or _is_reserved(each):
            return "is an address of the link or a reserved one, where clouds keep their keys"
        elif each in _ASSIGNED:
            return "is reserved for protocols"
        elif not each.is_global and not private and each not in _TRANSLATED:
            return "is in a private network; private = true allows that"
        elif (each in _SHARED or each in _OWN_TRANSLATED) and not private:
            return "is in a shared network; private = true allows that"
    return ""


def _is_reserved(address: Address) -> bool:
    return address.is_reserved and address not in _TRANSLATED and address not in _OWN_TRANSLATED


def _meant(address: Address) -> list[Address]:
    """Return the address and those that it has within: ::ffff:, 6to4, Teredo, NAT64, ::a.b.c.d."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    within: list[Address] = [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        within.append(address.sixtofour)
    if address.teredo is not None:
        within += address.teredo
    bits = int(address)
    if address in _TRANSLATED or (address in _COMPATIBLE and bits > 1):
        within.append(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    if address in _OWN_TRANSLATED:
        within += [ipaddress.IPv4Address(each) for each in _places(bits) if each >> 24]
    return within


def _places(bits: int) -> list[int]:
    """Return the bits where RFC 6052 writes an IPv4 address: after 48, 56, 64 and 96 bits, around bits 64 to 71."""
    return [
        (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF,
        (bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF,
        bits >> 24 & 0xFFFFFFFF,
        bits & 0xFFFFFFFF,
    ]


async def resolved(host: str, port: int, *, local: bool, private: bool) -> str:
    """Return an address of `host`, all of whose addresses were checked. Raises UpstreamFailed."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise UpstreamFailed(f"{host} is not known: {e.strerror}") from e
    addresses = [str(entry[4][0]).partition("%")[0] for entry in entries]
    for address in addresses:
        if why := refusal(ipaddress.ip_address(address), local=local, private=private):
            raise UpstreamFailed(f"{host} stands for {address}, which {why}")
    if not addresses:
        raise UpstreamFailed(f"{host} has no address")
    return addresses[0]
