"""What a rented model costs, in whole nano-dollars a token, by length of the prompt, hour and kind of processing.

Resolved once at start and at reload: a request's price is integer arithmetic. Prices are cliffs: a prompt beyond a
tier is priced at its rate from the first token. Knows the sellers' tables through catalog/prices.py; knows no budget.
Path: reading.py -> Price -> booking: Price.cost(Usage, when)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.types import Usage


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Pico-dollars (1e-12) a token, so that a price of 0.0375 dollars a million is a whole number."""

    input: int
    output: int
    cached: int  # of the input: found in the provider's cache
    written: int  # of the input: put into it for minutes
    written_hour: int  # and for an hour


@dataclass(frozen=True, slots=True)
class Price:
    """Rates by tier: those of the greatest `over` below the prompt's tokens hold."""

    rates: TokenRates
    tiers: tuple[tuple[int, TokenRates], ...] = ()  # (prompt tokens beyond which, rates), ascending
    hours: tuple[TokenRates, ...] = ()  # 24 of them (UTC), where the seller's price depends on the hour
    batch: TokenRates | None = None
    version: str = ""  # of the table, or "file" for a price that gateway.toml states
    source: str = field(default="", compare=False)

    def rates_at(self, prompt_tokens: int, hour: int) -> TokenRates:
        """Return the rates of one request."""
        found = self.hours[hour] if self.hours else self.rates
        for over, rates in self.tiers:
            if prompt_tokens > over:
                found = rates
        return found

    def cost(self, usage: Usage, hour: int = 0, *, batch: bool = False) -> int:
        """Return nano-dollars for what a request used, rounded half up once, at the end.

        `usage.prompt_tokens` counts cached and written tokens too, whatever the provider's own field does.
        """
        rates = self.batch if batch and self.batch is not None else self.rates_at(usage.prompt_tokens, hour)
        parts = usage.cached_tokens, usage.written_tokens, usage.written_hour_tokens
        fresh = usage.prompt_tokens - sum(parts)
        pico = fresh * rates.input + usage.completion_tokens * rates.output
        prices = rates.cached, rates.written, rates.written_hour
        pico += sum(n * price for n, price in zip(parts, prices, strict=True))
        return (pico + 500) // 1000

    def most(self, prompt_tokens: int, max_tokens: int, hour: int = 0) -> int:
        """Return nano-dollars for the dearest answer: nothing cached, all written for an hour, all tokens used."""
        rates = self.rates_at(prompt_tokens, hour)
        dearest = max(rates.input, rates.written, rates.written_hour)
        return (prompt_tokens * dearest + max_tokens * rates.output + 999) // 1000
