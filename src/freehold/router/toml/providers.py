"""Reads [providers.*]: kind, address, key, whether the machine is the house's.

A key is never in the file: it names a variable of the environment or an entry of the keyring. No message quotes a
value in the place of a key. Knows no model and no route.
Path: reading.py -> read_providers -> Provider
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import cast, get_args
from urllib.parse import SplitResult, urlsplit

from freehold.config import nearest
from freehold.providers.cleared import HOUSE
from freehold.providers.contract import Kind, Provider, Secret
from freehold.router.toml.mistakes import shown
from freehold.router.toml.outside import EXTRA, Outside
from freehold.router.toml.table import TomlTable

KINDS = get_args(Kind)
URLS: Mapping[str, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com",
}
# Hosts that sell answers to everyone: none of their machines is the house's.
SELLERS = re.compile(
    r"(?:.*\.)?(?:openai\.(?:com|azure\.com)|anthropic\.com|googleapis\.com|mistral\.ai|deepseek\.com|openrouter\.ai"
    r"|groq\.com|together\.(?:ai|xyz)|fireworks\.ai|x\.ai|cohere\.(?:ai|com)|perplexity\.ai|deepinfra\.com"
    r"|cerebras\.ai|nvidia\.com|huggingface\.co|amazonaws\.com|moonshot\.(?:ai|cn)|aliyuncs\.com|bigmodel\.cn"
    r"|z\.ai|novita\.ai|sambanova\.ai|replicate\.com|services\.ai\.azure\.com|cloudflare\.com|ollama\.com)"
)
NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,127}")
# Names that no public name server resolves: RFC 6762, RFC 6761, RFC 8375, and .internal as ICANN reserved it.
_INSIDE = (".local", ".localhost", ".home.arpa", ".internal")
_ROUTES = ("/chat/completions", "/completions", "/messages", "/embeddings", "/models", "/responses")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def read_providers(top: TomlTable, outside: Outside) -> dict[str, Provider]:
    """Return the sound providers by name."""
    providers = {}
    for name, table in top.tables("providers"):
        kind = cast(Kind, table.choice("kind", KINDS))
        if not table.has("kind"):
            table.bad("kind", "the provider has no kind", f"one of: {', '.join(KINDS)}")
        _check_name(table, name)
        url = _url(table, kind)
        host = (urlsplit(url).hostname or "") if url else ""
        if outside.offline and host and not is_inside(host):
            table.bad(
                "url", f"offline mode forbids calls of {host}", "start without offline mode, or leave it out"
            )
        owned = table.flag("owned")
        if owned and SELLERS.fullmatch(host):
            table.bad(
                "owned",
                f"{host} sells its answers to everyone, so it does not belong to the house",
                "leave owned out: private requests will not go there",
            )
        providers[name] = Provider(
            name=name,
            kind=kind,
            url=url,
            key=_key(table, url, outside),
            owned=owned,
            proxy=_proxy(table),
            connections=table.whole("connections", 256, 1, 10_000),
            connect_s=table.seconds("connect", 5.0),
        )
        table.end()
    return providers


def _check_name(table: TomlTable, name: str) -> None:
    if name in (HOUSE, "owned"):
        table.bad("", f"a provider cannot be called {shown(name)}", "labels use that word: choose another")
    elif not NAME.fullmatch(name):
        table.bad(
            "", f"{shown(name)} is not a valid name", "letters, digits and . _ : / @ + - only, 128 at most"
        )


# --- addresses ---------------------------------------------------------------------------------------


def _url(table: TomlTable, kind: str) -> str:
    url = table.text("url")
    plain = table.flag("plain_http")
    if not url:
        if kind == "openai-compatible":
            table.bad("url", "openai-compatible has no address of its own", 'url = "http://10.0.0.7:8000/v1"')
        return URLS.get(kind, "")
    parts = _parsed(table, "url", url)
    if parts is None:
        return ""
    if parts.query or parts.fragment:
        table.bad("url", "the address has a ? or # part", "write it without: https://host/v1")
        return ""
    if end := next((end for end in _ROUTES if parts.path.rstrip("/").endswith(end)), ""):
        table.bad("url", f"the address ends with a route, {end}", "leave the route out")
    own = urlsplit(URLS.get(kind, ""))
    if kind != "deepseek" and parts.hostname == own.hostname and not parts.path.startswith(own.path):
        table.bad("url", f"{shown(url)} lacks {own.path}", f"leave url out: {URLS[kind]} is this kind's own")
    if parts.scheme == "http" and not plain and not is_inside(parts.hostname or ""):
        table.bad(
            "url",
            f"http to {parts.hostname} lets the network read prompts and keys",
            "write https, or plain_http = true where that network is yours",
        )
    return url.rstrip("/")


def _proxy(table: TomlTable) -> str:
    proxy = table.text("proxy")
    return proxy if proxy and _parsed(table, "proxy", proxy) else ""


def _parsed(table: TomlTable, key: str, url: str) -> SplitResult | None:
    """Split an http(s) address without credentials; note what is wrong and return None."""
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, secret, sound = urlsplit(""), "@" in url, False
    if secret or ("@" in url and not sound):
        table.bad(
            key,
            "the address holds a user name or password",
            'write it without: the key belongs into key = "env:..."',
        )
    elif not sound or any(c.isspace() or not c.isprintable() for c in url):
        table.bad(key, f"{shown(url)} is not an http(s) address", "write https://host/v1")
    else:
        return parts
    return None


def is_inside(host: str) -> bool:
    """Return whether a host is this machine, a private address, or a name that only a private network resolves."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.rstrip(".").lower()
        return "." not in name or name.endswith(_INSIDE)
    return address.is_loopback or address.is_private or address.is_link_local


# --- keys --------------------------------------------------------------------------------------------


def _key(table: TomlTable, url: str, outside: Outside) -> Secret | None:
    key = table.text("key")
    if not key:
        if url and SELLERS.fullmatch(urlsplit(url).hostname or ""):
            table.bad("key", "this provider does not answer without a key", 'write key = "env:NAME"')
        return None
    store, colon, name = key.partition(":")
    if store not in ("env", "keyring") or not colon:
        near = nearest(store, ["env", "keyring"]) if colon and len(store) < 10 else ""
        table.bad(
            "key",
            "a key does not belong in this file",
            f'did you mean "{near}:..."?'
            if near
            else 'write "env:NAME" or "keyring:NAME", and change the key if others may have read it',
        )
        return None
    value = _from_environment(table, name, outside) if store == "env" else _kept(table, name, outside)
    if value and (not value.isascii() or not value.isprintable() or " " in value):
        table.bad("key", f"the key in {store}:{name} holds characters that no header may", "set it again")
        return None
    return Secret(value) if value else None


def _from_environment(table: TomlTable, name: str, outside: Outside) -> str:
    if not _VARIABLE.fullmatch(name):
        table.bad("key", "what follows env: is not the name of a variable", 'write "env:OPENAI_API_KEY"')
        return ""
    value = outside.environment.get(name, "").strip()
    if not value:
        state = "is empty" if name in outside.environment else "is not set"
        table.bad("key", f"the environment variable {name} {state}", f"export {name}=... before the start")
    return value


def _kept(table: TomlTable, name: str, outside: Outside) -> str:
    if not NAME.fullmatch(name):
        table.bad("key", "what follows keyring: is not a name", 'write "keyring:NAME"')
        return ""
    value = (outside.keyring(name) or "").strip()
    if not value:
        table.bad(
            "key",
            f"the keyring holds nothing for {name}",
            f"keyring set freehold {name} stores it; {EXTRA.replace('it', 'that command')}",
        )
    return value
