"""Reads price = {...} of a model: dollars for a million tokens, in whole pico-dollars a token.

Knows the words of a price and what one that is not written is derived from; knows no seller.
Path: toml/models.py -> stated_price -> Price
"""

from __future__ import annotations

from decimal import Decimal

from freehold.router.price import Price, TokenRates
from freehold.router.toml.mistakes import shown
from freehold.router.toml.table import TomlTable

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
