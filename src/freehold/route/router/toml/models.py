"""Reads [providers.*] and [models.*]: where requests may be answered, by which model, at which price.

A key is never in the file: it names a variable of the environment or an entry of the keyring, and no message quotes a
value in the place of a key. Knows which words go together; asks Outside whether a stored model and a price exist. Knows
no label and no route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import Decimal
from typing import cast
from urllib.parse import SplitResult, urlsplit

from freehold.base.config import nearest
from freehold.route.providers.contract import (
    HOUSE,
    KINDS,
    NO_KIND,
    Abilities,
    Kind,
    Provider,
    RemoteModel,
    Secret,
)
from freehold.route.providers.openai.speech import HEARS
from freehold.route.router.gateway import GatewayModel, terms_of
from freehold.route.router.price import PICO, PICO_DOLLAR, Price, SoundPrice, TokenRates
from freehold.route.router.toml.table import EXTRA, NAME, Outside, TomlTable, shown

# Hosts that sell answers to everyone: none of their machines is the house's.
SELLERS = re.compile(
    r"(?:.*\.)?(?:openai\.(?:com|azure\.com)|anthropic\.com|googleapis\.com|mistral\.ai|deepseek\.com|openrouter\.ai"
    r"|groq\.com|together\.(?:ai|xyz)|fireworks\.ai|x\.ai|cohere\.(?:ai|com)|perplexity\.ai|deepinfra\.com"
    r"|cerebras\.ai|nvidia\.com|huggingface\.co|amazonaws\.com|moonshot\.(?:ai|cn)|aliyuncs\.com|bigmodel\.cn"
    r"|z\.ai|novita\.ai|sambanova\.ai|replicate\.com|services\.ai\.azure\.com|cloudflare\.com|ollama\.com)"
)
# Names that no public name server resolves: RFC 6762, RFC 6761, RFC 8375, and .internal as ICANN reserved it.
_INSIDE = (".local", ".localhost", ".home.arpa", ".internal")
_ROUTES = ("/chat/completions", "/completions", "/messages", "/embeddings", "/models", "/responses")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def read_providers(top: TomlTable, outside: Outside) -> dict[str, Provider]:
    """Return the providers by name; one with a mistake has what could be read of it."""
    providers = {}
    for name, table in top.tables("providers"):
        kind = cast(Kind, table.choice("kind", tuple(KINDS)))
        table.need("kind", "the provider has no kind", f"one of: {', '.join(KINDS)}")
        if name in (HOUSE, "owned"):
            table.bad(
                "", f"a provider cannot be called {shown(name)}", "labels use that word: choose another"
            )
        else:
            table.check_name(name)
        url = _url(table, kind)
        provider = Provider(
            name,
            kind,
            url,
            owned=table.flag("owned"),
            key=_key(table, url, outside),
            proxy=_proxy(table),
            **table.fields(Provider, "connections", "connect_s"),
        )
        _check_host(table, provider, outside)
        providers[name] = provider
    return providers


# --- addresses ---------------------------------------------------------------------------------------


def _url(table: TomlTable, kind: str) -> str:
    url = table.text("url")
    plain = table.flag("plain_http")
    own = KINDS.get(kind, NO_KIND).url
    if not url:
        if kind == "openai-compatible":
            table.bad("url", "openai-compatible has no default address", 'url = "http://10.0.0.7:8000/v1"')
        return own
    parts = _parsed(table, "url", url)
    if parts is None:
        return ""
    if parts.query or parts.fragment:
        table.bad("url", "the address has a ? or # part", "write it without: https://host/v1")
        return ""
    if end := next((end for end in _ROUTES if parts.path.rstrip("/").endswith(end)), ""):
        table.bad("url", f"the address ends with a route, {end}", "leave the route out")
    usual = urlsplit(own)
    if kind != "deepseek" and parts.hostname == usual.hostname and not parts.path.startswith(usual.path):
        table.bad("url", f"{shown(url)} lacks {usual.path}", f"leave url out: {own} is this kind's own")
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
        hint = 'write it without: the key belongs into key = "env:..."'
        table.bad(key, "the address holds a user name or password", hint)
    elif not sound or any(c.isspace() or not c.isprintable() for c in url):
        table.bad(key, f"{shown(url)} is not an http(s) address", "write https://host/v1")
    else:
        return parts
    return None


def _check_host(table: TomlTable, provider: Provider, outside: Outside) -> None:
    host = urlsplit(provider.url).hostname or ""
    if outside.offline and host and not is_inside(host):
        hint = "start without offline mode, or leave it out"
        table.bad("url", f"offline mode forbids calls of {host}", hint)
    if provider.owned and SELLERS.fullmatch(host):
        table.bad(
            "owned",
            f"{host} is a public provider, so it cannot be owned",
            "leave owned out: private requests will not go there",
        )


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
        anew = 'write "env:NAME" or "keyring:NAME", and change the key if others may have read it'
        table.bad(
            "key", "a key does not belong in this file", f'did you mean "{near}:..."?' if near else anew
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
        hint = f"keyring set freehold {name} stores it; {EXTRA.replace('it', 'that command')}"
        table.bad("key", f"the keyring holds nothing for {name}", hint)
    return value


# --- models ------------------------------------------------------------------------------------------

_RENTED = ("model", "context", "max_output", "can")


def read_models(
    top: TomlTable, providers: Mapping[str, Provider], outside: Outside
) -> dict[str, GatewayModel]:
    """Return the models by name; one with a mistake has what could be read of it."""
    models = {}
    for name, table in top.tables("models"):
        table.check_name(name)
        models[name] = _model(name, table, providers, outside)
        if models[name].local != name:
            check_hides_nothing(name, table, outside)
    return models


def check_hides_nothing(name: str, table: TomlTable, outside: Outside) -> None:
    """Refuse a name under which requests reach a stored model."""
    if outside.has_model is not None and outside.has_model(name):
        table.bad("", f"the name hides the stored model {shown(name)}", "choose another name")


def _model(name: str, table: TomlTable, providers: Mapping[str, Provider], outside: Outside) -> GatewayModel:
    local, seller = table.text("local"), table.text("provider")
    if local and seller:
        table.bad(
            "provider",
            f"the model is both local ({shown(local)}) and a provider's ({shown(seller)})",
            "leave one of local and provider out; two models need two tables",
        )
    elif not table.has("local") and not table.has("provider"):
        hint = 'local = "qwen2.5-coder:1.5b", or provider and model'
        table.bad("", "nothing says where the model answers", hint)
    remote = _remote(table, providers, seller)
    if remote is not None and remote.abilities.transcription:
        check_transcriber(table, remote)
    terms, may_teach = _terms(table, local, remote)
    if local and not seller:
        _check_local(table, local, outside)
    return GatewayModel(name, local, remote, _price(table, remote, outside), terms, may_teach)


def _terms(table: TomlTable, local: str, remote: RemoteModel | None) -> tuple[str, bool | None]:
    """Return what the file says of the terms, and of what it leaves open what the catalogue knows."""
    stated, teach = table.text("terms"), table.value("may_teach", bool)
    if stated:
        return stated, teach
    kind, name = ("", local) if remote is None else (remote.provider.kind, remote.model)
    rented = remote is not None and not remote.provider.owned
    terms, known = terms_of(kind, name, rented) if name else ("", None)
    return terms, known if teach is None else teach


def _check_local(table: TomlTable, local: str, outside: Outside) -> None:
    for key in _RENTED:
        if table.has(key):
            table.bad(
                key, f"{key} belongs to a model of a provider", "leave it out: the model's file says it"
            )
            table.skip(key)
    if outside.has_model is not None and not outside.has_model(local):
        hint = f"freehold pull {local} fetches it; freehold list shows what is downloaded"
        table.bad("local", f"{shown(local)} is not downloaded", hint)


def _remote(table: TomlTable, providers: Mapping[str, Provider], seller: str) -> RemoteModel | None:
    if not seller:
        return None
    model = table.text("model")
    table.need("model", "nothing says how the provider calls the model", 'model = "gpt-5-mini"')
    provider = providers.get(seller)
    if provider is None:
        known = f"the file has: {', '.join(providers)}" if providers else f"add a table [providers.{seller}]"
        table.mistakes.unknown((*table.path, "provider"), "provider", seller, providers, known)
    limits = table.fields(RemoteModel, "context", "max_output")
    can = _abilities(table, provider.kind if provider else "", model)
    return None if provider is None else RemoteModel(provider, model, abilities=can, **limits)


TRANSCRIBERS = ("openai", "openai-compatible")  # kinds whose wire takes recordings


def check_transcriber(table: TomlTable, remote: RemoteModel) -> None:
    """Refuse a model that is to transcribe at a provider to which no recording can be sent."""
    if remote.provider.kind not in TRANSCRIBERS:
        table.bad(
            "can",
            f"recordings cannot be sent to a provider of kind {remote.provider.kind}",
            f"kinds that take them: {', '.join(TRANSCRIBERS)}",
        )


def _abilities(table: TomlTable, kind: str, model: str) -> Abilities:
    usual = KINDS.get(kind, NO_KIND).abilities
    by_minute = "minute" in (table.value("price", dict) or {})
    if kind in TRANSCRIBERS and (by_minute or HEARS.search(model)):
        usual = replace(usual, transcription=True)
    can = table.table("can")
    if can is None:
        return usual
    flags = {f.name: can.flag(f.name, getattr(usual, f.name)) for f in fields(Abilities)}
    can.end()
    return replace(usual, **flags)


def _price(table: TomlTable, remote: RemoteModel | None, outside: Outside) -> Price | None:
    kind = remote.provider.kind if remote is not None else ""
    price_table = table.table("price")
    if price_table is not None and price_table.has("minute"):
        return _by_minute(price_table)
    if price_table is not None and remote is not None and remote.abilities.transcription:
        price_table.bad(
            "", "the price has no minute", "price = { minute = 0.006 }, in dollars per minute of audio"
        )
        price_table.skip(*_RATES, "over", "long", "batch")
        return None
    if price_table is not None:
        return stated_price(price_table, kind)
    if remote is None or remote.provider.owned or not remote.model or table.has("price"):
        return None
    price = outside.price_of(remote.provider.kind, remote.model)
    hears = remote.abilities.transcription
    if price is None and hears:
        price = outside.price_at(
            SELLS_SOUND.get(urlsplit(remote.provider.url).hostname or "", ""), remote.model
        )
    if hears and (price is None or price.sound is None):
        hint = "price = { minute = 0.006 }, in dollars per minute of audio; owned = true of the provider if it is yours"
        table.bad(
            "model", f"no price for audio is known for {shown(remote.model)} at {remote.provider.name}", hint
        )
    elif price is None and remote.provider.kind:
        own = (
            ", or owned = true of the provider if the machine is yours" if kind == "openai-compatible" else ""
        )
        table.bad(
            "model",
            f"no price is known for {shown(remote.model)} at {remote.provider.name}",
            f"price = {{ input = 2.0, output = 12.0 }}, in dollars for a million tokens{own}",
        )
    return price


# --- reads price = {...} of a model: dollars for a million tokens, in whole pico-dollars a token ----

MOST = 100_000  # dollars for a million tokens; beyond it is a slip
STATED = "file"  # the version of a price that the file states
_RATES = ("input", "cached", "written", "written_hour", "output")


MOST_MINUTE = 100  # dollars a minute of sound; beyond it is a slip
# Sellers of the price table whose servers are reached as openai-compatible ones, by their hosts.
SELLS_SOUND = {"api.groq.com": "groq"}


def _by_minute(table: TomlTable) -> Price | None:
    """Return the price of sound that a table states: a minute alone."""
    value = table.number("minute")
    table.end()
    if value is None:
        return None
    if not 0 <= value <= MOST_MINUTE:
        table.bad(
            "minute", f"{shown(value)} is not within 0..{MOST_MINUTE} dollars", "write dollars such as 0.006"
        )
        return None
    hour = value * 60 * PICO_DOLLAR
    if hour != hour.to_integral_value():
        table.bad("minute", f"{shown(value)} has more than 12 places", "round it")
        return None
    return Price(
        TokenRates(0, 0, 0, 0, 0), sound=SoundPrice(int(hour)), version=STATED, source="gateway.toml"
    )


def stated_price(table: TomlTable, kind: str) -> Price | None:
    """Return the price that a table states, or note what is wrong with it and return None."""
    before = len(table.mistakes.noted)
    rates = _rates(table, kind)
    over, long, batch = table.whole("over", 0, 1, 100_000_000), table.table("long"), table.table("batch")
    if table.has("over") and long is None:
        table.bad("over", "no price says what holds beyond", "long = { input = ..., output = ... }")
    if long is not None:
        if not table.has("over"):
            table.bad("long", "nothing says from how many tokens it holds", "over = 200_000")
        for word in _RATES:
            if table.has(word):
                missing = f"the price has {word}, and beyond {over:,} tokens none"
                long.need(word, missing, f"write {word} here too")
    long_rates = _rates(long, kind) if long is not None else None
    batch_rates = _rates(batch, kind) if batch is not None else None
    for each in (long, batch, table):
        if each is not None:
            each.end()
    if len(table.mistakes.noted) > before or rates is None:
        return None
    tiers = ((over, long_rates),) if long_rates is not None else ()
    return Price(rates, tiers=tiers, batch=batch_rates, version=STATED, source="gateway.toml")


def _rates(table: TomlTable, kind: str) -> TokenRates | None:
    prices = {word: _pico(table, word) for word in _RATES}
    if missing := [word for word in ("input", "output") if not table.has(word)]:
        hint = "input and output are both needed, in dollars"
        table.bad("", f"the price has no {' and no '.join(missing)}", hint)
    paid, output = prices["input"], prices["output"]
    if paid is None or output is None:
        return None
    # Anthropic asks a quarter more for what it writes into its cache for minutes, and twice for an hour.
    written = prices["written"] if table.has("written") else (paid * 5 // 4 if kind == "anthropic" else paid)
    hour = paid * 2 if kind == "anthropic" and not table.has("written_hour") else prices["written_hour"]
    cached = prices["cached"] if table.has("cached") else paid
    if written is None or cached is None:
        return None
    return TokenRates(paid, output, cached, written, written if hour is None else hour)


def _pico(table: TomlTable, word: str) -> int | None:
    value = table.number(word)
    if value is None:
        return None
    if not 0 <= value <= MOST:
        hint = "write dollars for a million tokens, such as 2.0"
        table.bad(word, f"{shown(value)} is not within 0..{MOST:,} dollars", hint)
        return None
    if (pico := value * PICO) != pico.to_integral_value():
        table.bad(word, f"{shown(value)} is finer than {Decimal(1) / PICO:f}", "round it to six places")
        return None
    return int(pico)
