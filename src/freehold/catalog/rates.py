"""What a seller asks for each kind of token, by length of the prompt and moment: the rows behind a price.

Embeddings and models of any seller are in it; what prices.py adds to the package's table is, too. Dollars for a
million tokens, as decimals. Knows no request.
Path: router/prices.py -> listed, rates_at, tier_starts, changes
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from freehold.catalog.prices import _BATCH, Offer, _discount, _offer, _priced_when, _sellers


@dataclass(frozen=True, slots=True)
class SellerRates:
    """Dollars for a million tokens. `thought` None: reasoning costs what the rest of the answer does."""

    input: Decimal
    output: Decimal
    cached: Decimal
    written: Decimal
    written_hour: Decimal
    thought: Decimal | None = None
    fee: Decimal = Decimal(0)  # for a thousand requests


def listed(seller: str, model: str) -> Offer | None:
    """Return what a seller asks for a model, embeddings included; None where the table has no such model."""
    known = _sellers().get(seller)
    match = known.find_model(model) if known is not None else None
    return _offer(known, match) if known is not None and match is not None else None


def all_listed() -> tuple[Offer, ...]:
    """Return every row of the table."""
    return tuple(_offer(p, m) for p in _sellers().values() for m in p.models)


def rates_at(offer: Offer, prompt_tokens: int, when: datetime, *, batch: bool = False) -> SellerRates | None:
    """Return the rates of a request with so long a prompt; None: no batch price is known."""
    if not batch:
        return _rates(offer._model.get_prices(when), prompt_tokens)
    if offer._batch_listed(when):
        return _rates(offer._model.get_prices(when, _BATCH), prompt_tokens)
    discount = _discount(offer.provider, offer.model)
    if discount is None:
        return None
    plain, share = _rates(offer._model.get_prices(when), prompt_tokens), discount.share
    return SellerRates(
        plain.input * share,
        plain.output * share,
        plain.cached * discount.cached,
        plain.written * share,
        plain.written_hour * share,
        None if plain.thought is None else plain.thought * share,
        plain.fee * share,
    )


def tier_starts(offer: Offer, when: datetime, *, batch: bool = False) -> tuple[int, ...]:
    """Return the lengths of prompts beyond which other rates hold, ascending."""
    prices = offer._model.get_prices(when, _BATCH if batch else None)
    tiers = (getattr(price, "tiers", ()) for price in vars(prices).values())
    return tuple(sorted({tier.start for each in tiers for tier in each}))


def changes(offer: Offer, day: date) -> tuple[date, ...]:
    """Return the days after `day` from which other prices are announced, batch prices included."""
    variants = [variant.constraint for variant in offer._model.price_variants or ()]
    constraints = [constraint for constraint, _ in _priced_when(offer._model)] + variants
    starts = {getattr(constraint, "start_date", None) for constraint in constraints}
    return tuple(sorted(start for start in starts if start is not None and start > day))


def _rates(prices: Any, prompt_tokens: int) -> SellerRates:
    """A kind without a price of its own is part of a wider one: written for an hour, written, input."""

    def rate(*keys: str) -> Decimal | None:
        for key in keys:
            price = getattr(prices, key)
            if price is not None:
                return _in_tier(price, prompt_tokens)
        return None

    zero = Decimal(0)
    return SellerRates(
        rate("input_mtok") or zero,
        rate("output_mtok") or zero,
        rate("cache_read_mtok", "input_mtok") or zero,
        rate("cache_write_mtok", "input_mtok") or zero,
        rate("cache_write_1h_mtok", "cache_write_mtok", "input_mtok") or zero,
        rate("output_reasoning_mtok"),
        rate("requests_kcount") or zero,
    )


def _in_tier(price: Any, prompt_tokens: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    total = price.base
    for tier in price.tiers:
        if prompt_tokens > tier.start:
            total = tier.price
    return total
