"""What the stand-in charges, by its own arithmetic: exact decimals, cliffs at a prompt's length, rounded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from tests.providers.standin.script import Tokens

MILLION = Decimal(1_000_000)
NANO = Decimal(1_000_000_000)


@dataclass(frozen=True)
class Rates:
    """Dollars a million tokens, as a price page prints them."""

    input: str
    output: str
    cached: str = ""  # "": as input
    written: str = ""
    written_hour: str = ""

    def dollars(self, tokens: Tokens) -> Decimal:
        fresh = tokens.prompt - tokens.cached - tokens.written - tokens.written_hour
        parts = (
            (fresh, self.input),
            (tokens.cached, self.cached or self.input),
            (tokens.written, self.written or self.input),
            (tokens.written_hour, self.written_hour or self.written or self.input),
            (tokens.output, self.output),
        )
        return sum((n * Decimal(price) for n, price in parts), Decimal(0)) / MILLION


@dataclass(frozen=True)
class Tariff:
    """What a model costs: the rates of the last tier whose `over` a prompt exceeds, from its first token."""

    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    hours: tuple[Rates, ...] = ()  # 24, UTC
    batch: Rates | None = None

    def nano(self, tokens: Tokens, *, hour: int = 0, batch: bool = False) -> int:
        """Return nano-dollars, rounded half up."""
        rates = self.hours[hour] if self.hours else self.rates
        for over, dearer in self.tiers:
            if tokens.prompt > over:
                rates = dearer
        if batch and self.batch is not None:
            rates = self.batch
        return int((rates.dollars(tokens) * NANO).quantize(Decimal(1), ROUND_HALF_UP))


@dataclass(frozen=True)
class Bill:
    """What one request was charged."""

    number: int  # of the request, from 0
    model: str
    answer_id: str
    tokens: Tokens
    nano: int
    whole: bool  # False: broken off; charged for what was made
    kind: str = "chat"


@dataclass
class Account:
    """All bills of a stand-in."""

    tariffs: dict[str, Tariff] = field(default_factory=dict)
    bills: list[Bill] = field(default_factory=list)

    def charge(
        self,
        number: int,
        model: str,
        answer_id: str,
        tokens: Tokens,
        *,
        whole: bool,
        hour: int,
        kind: str = "chat",
    ) -> None:
        tariff = self.tariffs.get(model)
        nano = tariff.nano(tokens, hour=hour) if tariff is not None else 0
        self.bills.append(Bill(number, model, answer_id, tokens, nano, whole, kind))

    @property
    def nano(self) -> int:
        return sum(bill.nano for bill in self.bills)
