"""What a rented model costs, in whole nano-dollars a request, by length of the prompt, hour and kind of processing.

Resolved once at start and at reload: a request's price is integer arithmetic. Prices are cliffs: a prompt beyond a
tier is priced at its rate from the first token. Knows which seller a
provider's kind is; a server of another kind has no price here, and gateway.toml states it. Knows no budget.

Where nothing here has the model's tokenizer, the number of tokens is guessed from the text's length by a ratio that
follows the target's own counts: for windows, for explain, and for answers that broke off and carry no usage. Bounds for
reservations are those of prompts.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from freehold.base.prompts import PromptSize
from freehold.base.serving import Stream
from freehold.base.types import Chunk, Usage
from freehold.route.providers.contract import KINDS, NO_KIND, Kind, SoundUsage

if TYPE_CHECKING:
    from freehold.base.catalog.prices import Offer, SellerRates

NANO = 1_000_000_000  # nano-dollars of a dollar
DAY_S = 86400


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Pico-dollars (1e-12) a token, so that a price of 0.0375 dollars a million is a whole number."""

    input: int
    output: int
    cached: int  # of the input: found in the provider's cache
    written: int  # of the input: put into it for minutes
    written_hour: int  # and for an hour
    thought: int | None = None  # of the output: reasoning; None: as the rest of it


# Of gpt-4o-transcribe, where no count came: tokens of a second of sound and of its text, as seen and at most. OpenAI
# counts a token for 100 ms of sound; 15 tokens of text a second are 600 words a minute.
AUDIO_S, TEXT_S, MOST_AUDIO_S, MOST_TEXT_S, MOST_MORE = 10, 4, 20, 15, 1000


@dataclass(frozen=True, slots=True)
class SoundPrice:
    """What recordings cost: by their length, or where `hour` is 0 by tokens, whose text has the model's own rates."""

    hour: int = 0  # pico-dollars an hour of sound
    audio: int = 0  # pico-dollars a token of sound
    least_s: int = 0  # seconds that a shorter recording is billed as

    def pico(self, seconds: float, rates: TokenRates, used: SoundUsage) -> int:
        """Return pico-dollars of a recording."""
        if self.hour:
            billed_ms = round(1000 * max(used.seconds or seconds, self.least_s))
            return -(-billed_ms * self.hour // 3_600_000)
        return used.audio * self.audio + used.text * rates.input + used.output * rates.output


@dataclass(frozen=True, slots=True)
class Price:
    """Rates by tier: those of the greatest `over` below the prompt's tokens hold."""

    rates: TokenRates
    tiers: tuple[tuple[int, TokenRates], ...] = ()  # (prompt tokens beyond which, rates), ascending
    # Equal parts of a day (UTC), where the price depends on the time of day.
    slots: tuple[TokenRates, ...] = ()
    batch: TokenRates | None = None
    batch_tiers: tuple[tuple[int, TokenRates], ...] = ()
    fee: int = 0  # pico-dollars a request, whatever its tokens
    # Announced changes: (time.time() from which, price), ascending.
    later: tuple[tuple[float, Price], ...] = ()
    sound: SoundPrice | None = None  # None: it is not for recordings
    version: str = ""  # of the table, or "file" for a price that gateway.toml states
    source: str = field(default="", compare=False)

    def at(self, when: float) -> Price:
        """Return the price that holds at the moment `when`."""
        current = self
        for start, price in self.later:
            if when >= start:
                current = price
        return current

    def rates_at(self, prompt_tokens: int, when: float, *, batch: bool = False) -> TokenRates:
        """Return the rates of one request; `self` holds at `when` already."""
        if batch and self.batch is not None:
            price, tiers = self.batch, self.batch_tiers
        else:
            price, tiers = self.rates, self.tiers
            if self.slots:
                price = self.slots[int(when % DAY_S) * len(self.slots) // DAY_S]
        for over, rates in tiers:
            if prompt_tokens > over:
                price = rates
        return price

    def cost(self, usage: Usage, when: float = 0.0, *, batch: bool = False) -> int:
        """Return nano-dollars for what a request sent at `when` (time.time()) used, rounded half up once, at the end.

        `usage.prompt_tokens` counts cached and written tokens too, and `completion_tokens` thought ones, whatever
        the provider's own fields do.
        """
        price = self.at(when) if self.later else self
        rates = price.rates_at(usage.prompt_tokens, when, batch=batch)
        cached, written, hour = usage.cached_tokens, usage.written_tokens, usage.written_hour_tokens
        pico = price.fee + usage.completion_tokens * rates.output
        pico += (usage.prompt_tokens - cached - written - hour) * rates.input
        if cached or written or hour:
            pico += cached * rates.cached + written * rates.written + hour * rates.written_hour
        if rates.thought is not None:
            pico += usage.thought_tokens * (rates.thought - rates.output)
        return (pico + 500) // 1000

    def of_sound(self, seconds: float, used: SoundUsage | None, when: float = 0.0) -> int:
        """Return nano-dollars of a recording, by what the provider counted, or by our own estimate for None."""
        if used is None:
            used = SoundUsage(0.0, round(AUDIO_S * seconds), 0, round(TEXT_S * seconds))
        return (self._of_sound(seconds, used, when) + 500) // 1000

    def most_of_sound(self, seconds: float, prompt_bytes: int, when: float = 0.0) -> int:
        """Return nano-dollars that no transcript of a recording exceeds."""
        whole = int(seconds) + 2  # providers round up
        audio, text = MOST_AUDIO_S * whole + MOST_MORE, MOST_TEXT_S * whole + MOST_MORE
        return (
            self._of_sound(whole, SoundUsage(whole, audio, prompt_bytes + MOST_MORE, text), when) + 999
        ) // 1000

    def _of_sound(self, seconds: float, used: SoundUsage, when: float) -> int:
        price = self.at(when) if self.later else self
        return price.fee + (price.sound or SoundPrice()).pico(seconds, price.rates, used)

    def most(self, prompt_tokens: int, output_tokens: int, when: float = 0.0, *, batch: bool = False) -> int:
        """Return nano-dollars that no answer exceeds, for a prompt and an answer of at most these tokens.

        The prompt may be shorter than stated and fall below a tier, be written to a cache whole, or be priced at a
        later time of day: the dearest of all these rates is taken.
        """
        price = self.at(when) if self.later else self
        plain, tiers = (
            (price.batch, price.batch_tiers) if batch and price.batch else (price.rates, price.tiers)
        )
        reach = [plain, *(rates for over, rates in tiers if prompt_tokens > over)]
        reach += price.slots
        paid = max(max(r.input, r.cached, r.written, r.written_hour) for r in reach)
        answer_price = max(max(r.output, r.thought or 0) for r in reach)
        return (price.fee + prompt_tokens * paid + output_tokens * answer_price + 999) // 1000


# --- prices of the sellers' tables ------------------------------------------------------------------
# A price finer than a millionth of a dollar for a million tokens is rounded to that: of the table's 2,900
# rows 28, all of resellers, with thirds in binary fractions.

PICO = 1_000_000  # pico-dollars a token of a dollar for a million tokens
FEE = 1_000_000_000  # pico-dollars a request of a dollar for a thousand
PICO_DOLLAR = 1_000_000_000_000  # pico-dollars of a dollar
SLOTS = 48  # sellers change prices at half hours


def resolve(kind: Kind, model: str) -> Price | None:
    """Return what a provider of this kind asks for `model`, changes that are announced included; None: unknown."""
    return resolve_at(KINDS.get(kind, NO_KIND).seller, model)


def resolve_at(seller: str, model: str) -> Price | None:
    """Return what a seller of the table asks for `model`; None: unknown."""
    return _resolved(seller, model, datetime.now(UTC).toordinal())


@cache
def table_version() -> str:
    """Return which table the prices are from, as rows of the ledger name it."""
    from freehold.base.catalog.prices import table

    return f"genai-prices {table().version}"


@lru_cache(maxsize=1024)
def _resolved(seller: str, model: str, day: int) -> Price | None:
    from freehold.base.catalog.prices import listed

    if not seller:
        return None
    offer = listed(seller, model.removeprefix("models/"))
    return None if offer is None else price_of(offer, datetime.fromordinal(day).replace(tzinfo=UTC))


def price_of(offer: Offer, day: datetime) -> Price:
    """Return an offer's price on a day (UTC midnight) and from each later day on which another one begins."""
    from freehold.base.catalog.prices import changes

    starts = [datetime.combine(start, time(), UTC) for start in changes(offer, day.date())]
    later = tuple((start.timestamp(), _on(offer, start)) for start in starts)
    price = _on(offer, day)
    return replace(price, later=later) if later else price


def _on(offer: Offer, day: datetime) -> Price:
    from freehold.base.catalog.prices import rates_at, tier_starts

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
        sound=_sound(offer, day),
        version=table_version(),
        source=offer.source,
    )


def _sound(offer: Offer, day: datetime) -> SoundPrice | None:
    from freehold.base.catalog.prices import sound_rates

    rates = sound_rates(offer, day)
    if rates is None:
        return None
    hour, audio = rates.hour or Decimal(0), rates.audio or Decimal(0)
    return SoundPrice(_rounded(hour * PICO_DOLLAR), _rounded(audio * PICO), rates.least_s)


def _whole(rates: SellerRates) -> TokenRates:
    dollars = {f.name: getattr(rates, f.name) for f in fields(TokenRates)}
    pico: dict[str, Any] = {name: None if v is None else _rounded(v * PICO) for name, v in dollars.items()}
    return TokenRates(**pico)


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


# --- tokens of a text ------------------------------------------------------------------------------

BYTES_A_TOKEN = 4.0  # of English prose, before a target's own counts say better
LEARN = 0.2  # share of the newest answer in a ratio
LEAST, MOST = 1.0, 12.0  # bytes a token: of single bytes, and of a language's longest words


def letters_in(chunk: Chunk) -> int:
    """Return how many bytes of text a chunk adds to an answer, about."""
    letters = len(chunk.text)
    if chunk.thinking or chunk.refusal:
        letters += len(chunk.thinking) + len(chunk.refusal)
    for piece in chunk.tool_calls:
        letters += len(piece.name) + len(piece.arguments)
    return letters


class TokenRatio:
    """Bytes a token of one target, of prompts and of answers: learnt from the counts it reports.

    A count outside of LEAST to MOST bytes a token is left out: it is a mistake, or of a prompt that the provider cut.
    """

    __slots__ = ("answer", "prompt")

    def __init__(self) -> None:
        self.prompt = self.answer = BYTES_A_TOKEN

    def prompt_tokens(self, size: PromptSize) -> int:
        """Guess the tokens of a prompt."""
        return math.ceil(size.bytes / self.prompt) + size.ids

    def answer_tokens(self, length: int) -> int:
        """Guess the tokens of an answer."""
        return math.ceil(length / self.answer)

    def learn(self, size: PromptSize, prompt_tokens: int, length: int, answer_tokens: int) -> None:
        """Follow a whole answer's counts. Pictures and ids are no text, and teach nothing."""
        if not size.images and not size.ids:
            self.prompt = _followed(self.prompt, size.bytes, prompt_tokens)
        self.answer = _followed(self.answer, length, answer_tokens)


def _followed(ratio: float, length: int, tokens: int) -> float:
    """Return a ratio that has learnt from one more count, unless no text has such a one."""
    if not length or not tokens or not LEAST <= length / tokens <= MOST:
        return ratio
    return ratio + LEARN * (length / tokens - ratio)


def used_so_far(stream: Stream, ratio: TokenRatio, size: PromptSize, length: int, tokens: int) -> Usage:
    """Return what an answer that is not whole has used: what its target counted, and an estimate of the rest.

    `length`: bytes of text that came; `tokens`: ids that came, where they are reported.
    """
    reported: Usage | None = getattr(stream, "reported", None)
    answer_tokens = tokens or ratio.answer_tokens(length)
    if reported is None:
        return Usage(len(stream.begin.prompt_ids) or ratio.prompt_tokens(size), answer_tokens)
    return replace(reported, completion_tokens=max(reported.completion_tokens, answer_tokens))
