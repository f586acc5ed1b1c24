"""What a rented model costs, in whole nano-dollars a request, by length of the prompt, hour and kind of processing.

Resolved once at start and at reload: a request's price is integer arithmetic. Prices are cliffs: a prompt beyond a
tier is priced at its rate from the first token. Knows the sellers' tables through prices.py; knows no budget.
Path: reading.py -> Price -> booking: Price.cost(Usage, when)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.types import Usage

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


@dataclass(frozen=True, slots=True)
class Price:
    """Rates by tier: those of the greatest `over` below the prompt's tokens hold."""

    rates: TokenRates
    tiers: tuple[tuple[int, TokenRates], ...] = ()  # (prompt tokens beyond which, rates), ascending
    slots: tuple[
        TokenRates, ...
    ] = ()  # equal parts of a day (UTC), where the price depends on the time of day
    batch: TokenRates | None = None
    batch_tiers: tuple[tuple[int, TokenRates], ...] = ()
    fee: int = 0  # pico-dollars a request, whatever its tokens
    later: tuple[
        tuple[float, Price], ...
    ] = ()  # (time.time() from which, price), ascending: announced changes
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
