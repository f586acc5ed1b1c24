"""The servers of tools that the owner configured: `[mcp.NAME]` of config.toml, checked.

    [mcp.files]
    command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/home/ann/notes"]
    env = {LOG_LEVEL = "warning"}
    keys = ["ann"]

Neither the page nor a request writes them: a command is the right to run any program. Knows the table; starts nothing.
Path: Settings.mcp -> tool_servers -> ToolServer -> RunTools
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.tools.mcp.addresses import check_url

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
MAX_SERVERS = 32
MAX_MESSAGE = (
    4 << 20
)  # bytes of one message of a server: it is parsed beside the streams of all users, in some 20 ms
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
        raise UsageError(
            f"{where}: {name[:60]!r} is not a valid name of a server",
            "use small letters, digits, - and _, at most 32",
        )
    if not isinstance(options, dict):
        raise UsageError(f"{where} must be a table with command or url")
    for key in options.keys() - set(_KEYS):
        near = nearest(key, _KEYS)
        raise UsageError(
            f"{where}: unknown key {key!r}", f"did you mean {near}?" if near else f"known: {', '.join(_KEYS)}"
        )
    if ("command" in options) == ("url" in options):
        raise UsageError(f"{where} needs either command or url")
    return _remote(name, options, where) if "url" in options else _local(name, options, where)


def _local(name: str, options: dict[str, Any], where: str) -> ToolServer:
    command = options["command"]
    if isinstance(command, str):
        raise UsageError(
            f"{where}: command is a text; no shell reads it",
            'write a list of words: command = ["npx", "-y", "package"]',
        )
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
