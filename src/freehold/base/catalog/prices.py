"""Prices of APIs: what a request costs by tokens, with cached, tiered, batch and hourly rates.

The table is the package genai-prices, read as installed and never fetched; `data/prices/extra.toml` holds
what it lacks. Tiers are cliffs: a prompt beyond one is priced at its rate from the first token, so requests
are priced one by one and never as a day's sum. Knows no traffic and no hardware.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from freehold.base.catalog.model import data_table
from freehold.base.errors import StoreError, UsageError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

    from freehold.base.catalog.model import Model


STALE_DAYS = 60  # in autumn 2026 a seller of the usual list below changed a price about once a month
USUAL = (  # what people hold their own machine against: a large and a small one of each seller
    "openai:gpt-6.2-sol",
    "openai:gpt-5-mini",
    "anthropic:claude-sonnet-5-5",
    "anthropic:claude-haiku-5-5",
    "google:gemini-3.1-pro-preview",
    "google:gemini-2.5-flash",
    "deepseek:deepseek-flash",
)
_BATCH = {"processing": "batch"}
_BUNDLES = frozenset({"cursor", "github-copilot", "typesafe"})  # sold with a subscription, not by themselves
# Words of a host's name for a model that do not change whose weights it runs.
_HOST_WORDS = re.compile("instruct|it|chat|hf|turbo|instant|versatile|meta|fp[48]|nvfp4|bf16|awq|maas|basic")
_UNLISTED = re.compile("No longer listed|Imported from OpenRouter")  # as the table's comments begin then
_DAY = re.compile(r"20\d\d-\d\d-\d\d|date\(20\d\d, \d+, \d+\)")  # in a comment, or a condition's repr


@dataclass(frozen=True, slots=True)
class PricedRequest:
    """Tokens of one request; fractions are those of a mean one."""

    input: float  # all that is read, `cached` and `written` included
    output: float  # all that is written, thinking included
    cached: float = 0.0  # of the input: found in the seller's cache
    written: float = 0.0  # of the input: put into it at a price of its own


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one seller."""

    provider: str
    model: str
    seller: str
    context: int  # tokens; 0: not noted
    noted: date | None  # the newest date beside its prices
    source: str  # the seller's price page
    _provider: Provider = field(repr=False, compare=False)
    _model: ModelInfo = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """As the user writes it: groq:openai/gpt-oss-120b."""
        return f"{self.provider}:{self.model}"

    def cost(self, request: PricedRequest, when: datetime, batch: bool = False) -> Decimal:
        """Return dollars for one request sent at `when`; `batch`: at the price for an answer within a day.

        Raises UsageError where the seller has no batch price.
        """
        from genai_prices.types import Usage

        usage = Usage(
            input_tokens=request.input,
            cache_read_tokens=request.cached,
            cache_write_tokens=request.written,
            output_tokens=request.output,
        )
        if not batch:
            return self._priced(usage, when)
        if self._batch_listed(when):
            return self._priced(usage, when, _BATCH)
        discount = _discount(self.provider, self.model)
        if discount is None:
            raise UsageError(f"{self.name} has no batch price that we know of", "leave --batch away")
        plain = self._priced(usage, when)  # nothing with a discount of ours has tiers
        if discount.cached == discount.share or not request.cached:
            return plain * discount.share
        rest = Usage(input_tokens=request.input, output_tokens=request.output)
        fresh = Usage(input_tokens=request.cached)
        held = plain - self._priced(rest, when) + self._priced(fresh, when)
        return (plain - held) * discount.share + held * discount.cached

    def costs(self, request: PricedRequest, day: date, batch: bool = False) -> tuple[Decimal, ...]:
        """Return the cost at each of the day's 24 hours (UTC), as some sellers ask more at some of them."""
        noon = datetime.combine(day, time(12), UTC)
        if not self.hourly:
            return (self.cost(request, noon, batch),) * 24
        return tuple(self.cost(request, noon.replace(hour=h, minute=30), batch) for h in range(24))

    def sells_batch(self, day: date) -> bool:
        """Say whether a batch price is known."""
        noon = datetime.combine(day, time(12), UTC)
        return self._batch_listed(noon) or _discount(self.provider, self.model) is not None

    def _batch_listed(self, when: datetime) -> bool:
        variants = self._model.price_variants or ()
        return any(v.when == _BATCH and (v.constraint is None or v.constraint.active(when)) for v in variants)

    @property
    def gone(self) -> bool:
        """Whether the table says that the seller does not list it, or never did."""
        return bool(_UNLISTED.match(self._model.price_comments or ""))

    @property
    def hourly(self) -> bool:
        """Whether the price depends on the hour."""
        from genai_prices.types import TimeOfDateConstraint

        return any(isinstance(c, TimeOfDateConstraint) for c, _ in _priced_when(self._model))

    def next_change(self, day: date) -> date | None:
        """Return the next day after `day` from which other prices are announced."""
        from genai_prices.types import StartDateConstraint

        starts = (c.start_date for c, _ in _priced_when(self._model) if isinstance(c, StartDateConstraint))
        return min((s for s in starts if s > day), default=None)

    def _priced(self, usage: Any, when: datetime, context: dict[str, str] | None = None) -> Decimal:
        calculation = self._model.calc_price(
            usage, self._provider, genai_request_timestamp=when, price_context=context
        )
        return calculation.total_price


@dataclass(frozen=True, slots=True)
class Table:
    """Where prices come from: the package's version and the newest date in it that has come."""

    version: str
    noted: date

    def age_days(self, today: date) -> int:
        """Days since a price in it was last looked at, at the latest."""
        return (today - self.noted).days


def find(name: str) -> Offer:
    """Return the offer called `name`: provider:model, or the model's own name at its maker.

    Raises UsageError with the nearest names, or if it is not sold by tokens.
    """
    wanted = name.strip().lower()
    seller, _, model = wanted.partition(":")
    candidates = [(seller, model)] if model and seller in _sellers() else []
    if not candidates:
        seller, _, model = wanted.partition("/")
        candidates = [(seller, model)] if model and seller in _sellers() else []
        makers = (p for p in _sellers().values() if p.model_match and p.model_match.is_match(wanted))
        candidates += [(p.id, wanted) for p in makers]
    for seller, model in candidates:
        if model_price := _sellers()[seller].find_model(model):
            offer = _offer(_sellers()[seller], model_price)
            if not _by_tokens(offer._model):
                raise UsageError(f"{offer.name} is not sold by tokens of text", "name a chat model")
            return offer
    exact = [o for o in offers() if o.model.lower() == wanted or o.name.lower() == wanted]
    if exact:
        return exact[0]
    raise UsageError(f"no price is known for {name!r}", _near(wanted))


def hosts(model: Model) -> tuple[Offer, ...]:
    """Return who sells the same open weights by tokens: names equal but for words such as -instruct or -turbo."""
    wanted = _weights(model.id)
    sold = (o for o in offers() if ":" not in o.model and not o._model.deprecated and not o.gone)
    by_provider = {o.provider: o for o in sold if _weights(o.model) == wanted}
    return tuple(
        o for p, o in by_provider.items() if p.removeprefix("huggingface_") not in by_provider.keys() - {p}
    )


def usual() -> tuple[Offer, ...]:
    """Return what is sold of USUAL: a newer table may have dropped some."""
    offers = []
    for name in USUAL:
        with suppress(UsageError):
            offers.append(find(name))
    return tuple(offers)


def table() -> Table:
    """Return which price table is installed and how old it is."""
    from genai_prices.data import providers

    return Table(metadata.version("genai-prices"), _newest(repr(providers)) or date.min)


@cache
def offers() -> tuple[Offer, ...]:
    """Return all that is sold by tokens at a price above zero."""
    everything = (
        _offer(p, m) for p in _sellers().values() if p.id not in _BUNDLES for m in p.models if _by_tokens(m)
    )
    return tuple(everything)


@cache
def tiers() -> tuple[int, ...]:
    """Return the lengths of prompts, in tokens, beyond which some seller asks more."""
    from genai_prices.types import TieredPrices

    starts = {
        tier.start
        for offer in offers()
        for _, prices in _priced_when(offer._model)
        for price in vars(prices).values()
        if isinstance(price, TieredPrices)
        for tier in price.tiers
    }
    return tuple(sorted(starts))


@cache
def _sellers() -> dict[str, Provider]:
    """Return the package's providers, with the models added that it lacks."""
    from dataclasses import replace as changed

    from genai_prices.data import providers

    by_id = {p.id: p for p in providers}
    for raw in _extra().get("model", ()):
        seller = by_id[raw["provider"]]
        if seller.find_model(raw["id"]) is None:
            by_id[seller.id] = changed(seller, models=[*seller.models, _added(raw)])
    return by_id


def _added(raw: dict[str, Any]) -> ModelInfo:
    """Turn an entry of extra.toml into what the package's own entries are."""
    from genai_prices import types

    def priced(share: float) -> types.ModelPrice:
        keys = {"input": "input_mtok", "cached": "cache_read_mtok", "written": "cache_write_mtok"}
        prices: dict[str, Any] = {}
        for key, known in {**keys, "output": "output_mtok"}.items():
            if key in raw:
                base, over = (_exact(p[key], share) for p in (raw, raw.get("long", raw)))
                tier = [types.Tier(raw["over"], over)] if "over" in raw else []
                prices[known] = types.TieredPrices(base, tier) if tier else base
        return types.ModelPrice(**prices)

    batch = [types.PriceVariant(when=_BATCH, prices=priced(raw["batch"]))] if "batch" in raw else None
    return types.ModelInfo(
        id=raw["id"],
        match=types.ClauseEquals(raw["id"]),
        context_window=raw.get("context"),
        price_comments=f"{raw['checked']}: {_extra()['sources'][raw['source']]}",
        prices=priced(1.0),
        price_variants=batch,
    )


def _exact(price: float, share: float) -> Decimal:
    return Decimal(str(price)) * Decimal(str(share))


@dataclass(frozen=True, slots=True)
class _Discount:
    """What a batch costs, as a share of the usual price; `cached`: of the price of tokens from a cache."""

    share: Decimal
    cached: Decimal


def _discount(provider: str, model: str) -> _Discount | None:
    for raw in _extra().get("batch", ()):
        if raw["provider"] == provider and model in raw.get("models", [model]):
            return _Discount(_exact(raw["share"], 1.0), _exact(raw.get("cached", raw["share"]), 1.0))
    return None


@cache
def _extra() -> dict[str, Any]:
    data = data_table("prices", "extra.toml")
    for raw in (*data.get("model", ()), *data.get("batch", ()), *data.get("sound", ())):
        if raw["source"] not in data["sources"] or not isinstance(raw["checked"], date):
            raise StoreError(f"extra.toml: {raw} has no known source or no date")
    return data


def _offer(provider: Provider, model: ModelInfo) -> Offer:
    return Offer(
        provider.id,
        model.id,
        provider.name,
        model.context_window or 0,
        _newest(f"{model.prices} {model.price_variants} {model.price_comments}"),
        (provider.pricing_urls or [""])[0],
        provider,
        model,
    )


def _by_tokens(model: ModelInfo) -> bool:
    """Say whether tokens that go in and tokens that come out have a price, and not nought."""
    return any(_above_zero(p.input_mtok) and _above_zero(p.output_mtok) for _, p in _priced_when(model))


def _above_zero(price: Any) -> bool:
    return price is not None and getattr(price, "base", price) > 0


def _priced_when(model: ModelInfo) -> Iterator[tuple[Any, ModelPrice]]:
    """Yield each price of a model with the condition under which it holds."""
    if not isinstance(model.prices, list):
        yield None, model.prices
        return
    for conditional in model.prices:
        yield conditional.constraint, conditional.prices


def _weights(name: str) -> frozenset[str]:
    """Reduce a host's name for a model to what tells weights apart: glm-5p3 and zai-org/GLM-5.3 are one."""
    last = name.rsplit("/", 1)[-1].lower()
    last = re.sub(r"(\d)p(\d)", r"\1.\2", last)
    words = (re.sub(r"^v(?=\d)", "", w) for w in re.split(r"[-_: ]+", last))
    return frozenset(w for w in words if w and not _HOST_WORDS.fullmatch(w))


def _near(name: str) -> str:
    """Word the three names most like it."""
    import difflib

    known = {o.model.lower(): o.name for o in reversed(offers())} | {o.name.lower(): o.name for o in offers()}
    close = [known[n] for n in difflib.get_close_matches(name, list(known), n=6, cutoff=0.5)]
    return f"did you mean {', '.join(list(dict.fromkeys(close))[:3])}?" if close else "write provider:model"


def _newest(text: str) -> date | None:
    """Return the newest date named in it that is not in the future."""
    today, days = date.today(), []
    for match in _DAY.finditer(text):
        with suppress(ValueError):
            days.append(date(*(int(part) for part in re.findall(r"\d+", match[0]))))
    return max((d for d in days if d <= today), default=None)


# --- what a seller asks for each kind of token ------------------------------------------------------
# By length of the prompt and moment: the rows behind a price.
# Embeddings and models of any seller are in it; what prices.py adds to the package's table is, too. Dollars
# for a million tokens, as decimals.


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


@dataclass(frozen=True, slots=True)
class SoundRates:
    """Dollars for sound that goes in: an hour of it, or a million tokens of it."""

    hour: Decimal | None
    audio: Decimal | None
    least_s: int  # seconds that a shorter recording is billed as


def sound_rates(offer: Offer, when: datetime) -> SoundRates | None:
    """Return what a model asks for recordings; None: nothing of its own."""
    prices = offer._model.get_prices(when)
    hour = getattr(prices, "input_audio_hours", None) or getattr(prices, "audio_hours", None)
    audio = getattr(prices, "input_audio_mtok", None)
    if hour is None and audio is None:
        return None
    least = next(
        (raw["least_s"] for raw in _extra().get("sound", ()) if raw["provider"] == offer.provider), 0
    )
    return SoundRates(
        None if hour is None else _in_tier(hour, 0), None if audio is None else _in_tier(audio, 0), least
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
