"""Reads [models.*]: owned ones by their name in the store, rented ones with their price, terms and abilities.

Knows which words go together; asks Outside whether a stored model and a price exist. Knows no route.
Path: reading.py -> read_models -> GatewayModel
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from typing import cast, get_args
from urllib.parse import SplitResult, urlsplit

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.providers.contract import HOUSE, Abilities, Kind, Provider, RemoteModel, Secret
from freehold.router.gateway import GatewayModel, Label
from freehold.router.price import Price, TokenRates
from freehold.router.terms import terms_of
from freehold.router.toml.outside import EXTRA, Outside
from freehold.router.toml.table import TomlTable, shown

ABILITIES: Mapping[str, Abilities] = {  # of a provider's usual models; a model's own table changes them
    "openai": Abilities(logprobs=True, several=True, seed=True),
    "openai-compatible": Abilities(logprobs=True, several=True, seed=True),
    "anthropic": Abilities(embeddings=False),
    "gemini": Abilities(several=True, seed=True),
    "mistral": Abilities(several=True, seed=True),
    "deepseek": Abilities(images=False, json_schema=False, logprobs=True, embeddings=False),
}
_RENTED = ("model", "context", "max_output", "can")


def read_models(
    top: TomlTable, providers: Mapping[str, Provider], outside: Outside
) -> dict[str, GatewayModel]:
    """Return the models by name; one with a mistake has what could be read of it."""
    models = {}
    for name, table in top.tables("models"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        models[name] = _model(name, table, providers, outside)
        if models[name].local != name:
            check_hides_nothing(name, table, outside)
        table.end()
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
        table.bad(
            "", "nothing says where the model answers", 'local = "qwen2.5-coder:1.5b", or provider and model'
        )
    remote = _remote(table, providers, seller)
    terms, may_teach = _terms(table, local, remote)
    if local and not seller:
        _check_local(table, local, outside)
    return GatewayModel(
        name=name,
        local=local,
        remote=remote,
        price=_price(table, remote, outside),
        terms=terms,
        may_teach=may_teach,
    )


def _terms(table: TomlTable, local: str, remote: RemoteModel | None) -> tuple[str, bool | None]:
    """Return what the file says of the terms, and of what it leaves open what the catalogue knows."""
    stated, teach = table.text("terms"), table.value("may_teach", bool)
    if stated:
        return stated, teach
    kind, name = ("", local) if remote is None else (remote.provider.kind, remote.model)
    terms, known = (
        terms_of(kind, name, remote is not None and not remote.provider.owned) if name else ("", None)
    )
    return terms, known if teach is None else teach


def _check_local(table: TomlTable, local: str, outside: Outside) -> None:
    for key in _RENTED:
        if table.has(key):
            table.bad(
                key, f"{key} belongs to a model of a provider", "leave it out: the model's file says it"
            )
            table.skip(key)
    if outside.has_model is not None and not outside.has_model(local):
        table.bad(
            "local",
            f"{shown(local)} is not downloaded",
            f"freehold pull {local} fetches it; freehold list shows what is downloaded",
        )


def _remote(table: TomlTable, providers: Mapping[str, Provider], seller: str) -> RemoteModel | None:
    if not seller:
        return None
    model = table.text("model")
    if not table.has("model"):
        table.bad("model", "nothing says how the provider calls the model", 'model = "gpt-5-mini"')
    provider = providers.get(seller)
    if provider is None:
        near = nearest(seller, [*providers])
        known = f"the file has: {', '.join(providers)}" if providers else f"add a table [providers.{seller}]"
        table.bad(
            "provider",
            f"there is no provider {shown(seller)}",
            f"did you mean {near}?" if near else known,
        )
    context, most = (table.whole(key, 0, 1, 100_000_000) for key in ("context", "max_output"))
    can = _abilities(table, provider.kind if provider else "")
    return None if provider is None else RemoteModel(provider, model, context, most, can)


def _abilities(table: TomlTable, kind: str) -> Abilities:
    defaults = ABILITIES.get(kind, Abilities())
    can = table.table("can")
    if can is None:
        return defaults
    flags = {f.name: can.flag(f.name, getattr(defaults, f.name)) for f in fields(Abilities)}
    can.end()
    return replace(defaults, **flags)


def _price(table: TomlTable, remote: RemoteModel | None, outside: Outside) -> Price | None:
    kind = remote.provider.kind if remote is not None else ""
    price_table = table.table("price")
    if price_table is not None:
        return stated_price(price_table, kind)
    if remote is None or remote.provider.owned or not remote.model or table.has("price"):
        return None
    price = outside.price_of(remote.provider.kind, remote.model)
    own = remote.provider.kind == "openai-compatible"
    if price is None and remote.provider.kind:
        table.bad(
            "model",
            f"no price is known for {shown(remote.model)} at {remote.provider.name}",
            "price = { input = 2.0, output = 12.0 }, in dollars for a million tokens"
            + (", or owned = true of the provider if the machine is yours" if own else ""),
        )
    return price


# --- reads price = {...} of a model: dollars for a million tokens, in whole pico-dollars a token ----

PICO = 1_000_000  # pico-dollars a token of a dollar for a million
MOST = 100_000  # dollars for a million tokens; beyond it is a slip
STATED = "file"  # the version of a price that the file states
_RATES = ("input", "cached", "written", "written_hour", "output")
_BOUND = ("input", "output")


def stated_price(table: TomlTable, kind: str) -> Price | None:
    """Return the price that a table states, or note what is wrong with it and return None."""
    before = len(table.mistakes.found)
    rates = _rates(table, kind)
    over, long, batch = table.whole("over", 0, 1, 100_000_000), table.table("long"), table.table("batch")
    if table.has("over") and long is None:
        table.bad("over", "no price says what holds beyond", "long = { input = ..., output = ... }")
    if long is not None and not table.has("over"):
        table.bad("long", "nothing says from how many tokens it holds", "over = 200_000")
    for word in _RATES:
        if long is not None and table.has(word) and not long.has(word):
            long.bad(word, f"the price has {word}, and beyond {over:,} tokens none", f"write {word} here too")
    long_rates = _rates(long, kind) if long is not None else None
    batch_rates = _rates(batch, kind) if batch is not None else None
    for each in (long, batch, table):
        if each is not None:
            each.end()
    if len(table.mistakes.found) > before or rates is None:
        return None
    tiers = ((over, long_rates),) if long_rates is not None else ()
    return Price(rates, tiers=tiers, batch=batch_rates, version=STATED, source="gateway.toml")


def _rates(table: TomlTable, kind: str) -> TokenRates | None:
    prices = {word: _pico(table, word) for word in _RATES}
    if missing := [word for word in _BOUND if not table.has(word)]:
        table.bad(
            "", f"the price has no {' and no '.join(missing)}", "input and output are both needed, in dollars"
        )
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
        table.bad(
            word,
            f"{shown(value)} is not within 0..{MOST:,} dollars",
            "write dollars for a million tokens, such as 2.0",
        )
        return None
    if (pico := value * PICO) != pico.to_integral_value():
        table.bad(word, f"{shown(value)} is finer than {Decimal(1) / PICO:f}", "round it to six places")
        return None
    return int(pico)


# --- reads [providers.*]: kind, address, key, whether the machine is the house's --------------------
# A key is never in the file: it names a variable of the environment or an entry of the keyring. No message
# quotes a value in the place of a key.

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


# --- reads [labels.*]: where a labelled request may be, and what sets the label without being asked -

DETECTORS = ("pii", "secrets")
MOST_PATTERN = 1000  # characters of an expression


def read_labels(
    top: TomlTable, providers: Mapping[str, Provider], models: Mapping[str, GatewayModel]
) -> dict[str, Label]:
    """Return the labels by name."""
    found_labels = {}
    for name, table in top.tables("labels"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        if not table.has("stay"):
            table.bad("stay", "the label does not say where its requests may be", 'stay = "owned"')
        found_labels[name] = Label(
            name=name,
            stay=_stay(table, providers, models),
            detect=_detectors(table),
            patterns=_patterns(table),
            classifier=_classifier(table, models),
        )
        table.end()
    return found_labels


def _stay(table: TomlTable, providers: Collection[str], models: Collection[str]) -> frozenset[str] | None:
    value = table.value("stay", str, list)
    if isinstance(value, str):
        if value != "owned":
            table.bad(
                "stay",
                f"{shown(value)} is not a place",
                f'stay = "owned", or an array of providers: ["{value[:60] or "box"}"]',
            )
        return None
    if value is None:
        return None
    places = table.placed("stay")
    for at, place in places:
        if place not in providers:
            table.mistakes.add(
                at, f"there is no provider {shown(place)}", _other_place(place, providers, models)
            )
    if not value:
        table.bad("stay", "the array names no place", 'stay = "owned" keeps requests in the house')
    return frozenset(place for _, place in places)


def _other_place(place: str, providers: Collection[str], models: Collection[str]) -> str:
    if place == "owned":
        return 'stay = "owned" takes no array'
    if place in models:
        return f"{place} is a model: a label names providers, and this machine is always allowed"
    near = nearest(place, [*providers])
    return f"did you mean {near}?" if near else f"the file has: {', '.join(providers) or 'none'}"


def _detectors(table: TomlTable) -> tuple[str, ...]:
    detectors = table.placed("detect")
    for at, name in detectors:
        if name not in DETECTORS:
            near = nearest(name, DETECTORS)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(DETECTORS)}"
            table.mistakes.add(at, f"there is no detector {shown(name)}", hint)
    return tuple(name for _, name in detectors)


def _patterns(table: TomlTable) -> tuple[str, ...]:
    placed = table.placed("patterns")
    for at, pattern in placed:
        if why := wrong_pattern(pattern):
            table.mistakes.add(at, f"{shown(pattern)}: {why[0]}", why[1])
    return tuple(pattern for _, pattern in placed)


def wrong_pattern(pattern: str) -> tuple[str, str] | None:
    """Return what is wrong with an expression, and the way out; None for a sound one. Raises UsageError without RE2."""
    try:
        import re2
    except ImportError:
        raise UsageError("patterns of labels need the package google-re2", EXTRA) from None
    if len(pattern) > MOST_PATTERN:
        return f"{len(pattern):,} characters; at most {MOST_PATTERN:,}", "write two patterns"
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as e:
        detail = e.args[0] if e.args else ""
        text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        return f"is not an expression of RE2: {text}", "RE2 has no look-ahead and no back-reference"
    if compiled.search("") is not None:
        return "matches an empty text, so it would label every request", "ask for a character at least"
    return None


def _classifier(table: TomlTable, models: Mapping[str, GatewayModel]) -> str:
    name = table.text("classifier")
    if not name:
        return ""
    if name not in models:
        near = nearest(name, [*models])
        table.bad(
            "classifier",
            f"there is no model {shown(name)}",
            f"did you mean {near}?" if near else f"add a table [models.{name[:60]}] with local = ...",
        )
    elif not models[name].owned:
        table.bad(
            "classifier",
            f"{name} runs at {models[name].place}, which would read every request",
            "a classifier is an owned model",
        )
    return name
