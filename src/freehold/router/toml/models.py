"""Reads [models.*]: owned ones by their name in the store, rented ones with their price, terms and abilities.

Knows which words go together; asks Outside whether a stored model and a price exist. Knows no route.
Path: reading.py -> read_models -> GatewayModel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import Decimal

from freehold.config import nearest
from freehold.providers.contract import Abilities, Provider, RemoteModel
from freehold.router.gateway import GatewayModel
from freehold.router.price import Price, TokenRates
from freehold.router.terms import terms_of
from freehold.router.toml.mistakes import shown
from freehold.router.toml.outside import Outside
from freehold.router.toml.providers import NAME
from freehold.router.toml.table import TomlTable

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
