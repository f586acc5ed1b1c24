"""Resolves a model's price in the sellers' tables into integers, once at start and at each reload.

Knows which seller a provider's kind is; a server of another kind has no price here, and gateway.toml states it.
A price finer than a millionth of a dollar for a million tokens is rounded to that: of the table's 2,900 rows 28, all
of resellers, with thirds in binary fractions.
Path: toml/outside.py -> resolve -> catalog.prices -> Price
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from freehold.providers.contract import Kind
from freehold.router.price import Price, TokenRates

if TYPE_CHECKING:
    from freehold.catalog.prices import Offer, SellerRates

PICO = 1_000_000  # pico-dollars a token of a dollar for a million tokens
FEE = 1_000_000_000  # pico-dollars a request of a dollar for a thousand
SLOTS = 48  # sellers change prices at half hours
SELLERS: Mapping[Kind, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "deepseek": "deepseek",
}


def resolve(kind: Kind, model: str) -> Price | None:
    """Return what a provider of this kind asks for `model`, changes that are announced included; None: unknown."""
    return _resolved(kind, model, datetime.now(UTC).toordinal())


@cache
def table_version() -> str:
    """Return which table the prices are from, as rows of the ledger name it."""
    from freehold.catalog.prices import table

    return f"genai-prices {table().version}"


@lru_cache(maxsize=1024)
def _resolved(kind: Kind, model: str, day: int) -> Price | None:
    from freehold.catalog.prices import listed

    if kind not in SELLERS:
        return None
    offer = listed(SELLERS[kind], model.removeprefix("models/"))
    return None if offer is None else price_of(offer, datetime.fromordinal(day).replace(tzinfo=UTC))


def price_of(offer: Offer, day: datetime) -> Price:
    """Return an offer's price on a day (UTC midnight) and from each later day on which another one begins."""
    from freehold.catalog.prices import changes

    starts = [datetime.combine(start, time(), UTC) for start in changes(offer, day.date())]
    later = tuple((start.timestamp(), _on(offer, start)) for start in starts)
    price = _on(offer, day)
    return replace(price, later=later) if later else price


def _on(offer: Offer, day: datetime) -> Price:
    from freehold.catalog.prices import rates_at, tier_starts

    def tiers(batch: bool) -> tuple[tuple[int, TokenRates], ...]:
        tiers_stated = (
            (over, rates_at(offer, over + 1, day, batch=batch))
            for over in tier_starts(offer, day, batch=batch)
        )
        return tuple((over, _whole(rates)) for over, rates in tiers_stated if rates is not None)

    plain, batch = rates_at(offer, 0, day), rates_at(offer, 0, day, batch=True)
    assert plain is not None  # without `batch` there is always one
    moments = (
        day.replace(hour=n * 24 // SLOTS, minute=n % 2 * 30) for n in range(SLOTS if offer.hourly else 0)
    )
    slots = [rates for when in moments if (rates := rates_at(offer, 0, when)) is not None]
    return Price(
        _whole(plain),
        tiers=tiers(False),
        slots=tuple(_whole(rates) for rates in slots),
        batch=None if batch is None else _whole(batch),
        batch_tiers=() if batch is None else tiers(True),
        fee=_rounded(plain.fee * FEE),
        version=table_version(),
        source=offer.source,
    )


def _whole(rates: SellerRates) -> TokenRates:
    return TokenRates(
        _rounded(rates.input * PICO),
        _rounded(rates.output * PICO),
        _rounded(rates.cached * PICO),
        _rounded(rates.written * PICO),
        _rounded(rates.written_hour * PICO),
        None if rates.thought is None else _rounded(rates.thought * PICO),
    )


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))
