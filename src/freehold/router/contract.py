"""What the gateway's middle asks of its neighbours: rented models, books, bars.

Protocols, so that a test can state a neighbour in ten lines. Implemented by rented.py, budgets.py and
bar.py. Knows none of them.
Path: handle.py, attempts.py -> RentedModels, Books, BarCheck
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from freehold.providers.cleared import Cleared
from freehold.providers.contract import Provider, RemoteModel
from freehold.router.gateway import GatewayModel, QualityTask, SpendLimit
from freehold.router.ledger.rows import Intent, LedgerRow
from freehold.serving import EmbedJob, Job, Stream, Vectors


class RentedStream(Stream, Protocol):
    """An answer of a rented model."""

    @property
    def answer_id(self) -> str:
        """The provider's id of the answer; "" before it has come."""
        ...


class RentedModels(Protocol):
    """Models at providers. Each call raises UpstreamFault, and PolicyRefused for a place that is not allowed."""

    def keep(self, providers: Iterable[Provider]) -> None:
        """Give up the connections of every other provider: the file was read again."""
        ...

    async def start(
        self,
        cleared: Cleared[Job],
        model: RemoteModel,
        *,
        first_token_s: float,
        timeout_s: float,
    ) -> RentedStream:
        """Return an answer whose first chunk has come in time; `timeout_s`: to its last one.

        A job that is `whole` is asked for in one piece, for which `timeout_s` alone holds.
        """
        ...

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors: ...
    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        """Return the provider's count of a prompt; None where it has no door for it."""
        ...


class Books(Protocol):
    """The ledger, and the budgets in it. Each call raises LedgerUnavailable where it cannot be written."""

    async def reserve(
        self,
        row_id: str,
        key: str,
        limit: SpendLimit,
        nano: int,
        at: float,
        *,
        about: Intent,
        sent: bool = True,
        wait_s: float = 0.0,
    ) -> None:
        """Set money of a key's budget aside for a row. Raises BudgetSpent, after `wait_s` where waiting may help.

        `sent` False: a target that costs nothing is asked first.
        """
        ...

    async def change(self, row_id: str, key: str, limit: SpendLimit, nano: int, at: float) -> None:
        """Change what is set aside for a row. Raises BudgetSpent where more does not fit."""
        ...

    async def sent(self, row_id: str) -> None:
        """Note that a request goes to a provider now, which may charge for it whatever happens here."""
        ...

    async def ready(self) -> None:
        """Return if a row could be written now."""
        ...

    async def book(self, row: LedgerRow) -> None:
        """Write a row and settle what was set aside for it, in one transaction."""
        ...


class BarCheck(Protocol):
    """Measured scores of models on tasks."""

    def passes(self, task: QualityTask, model: GatewayModel) -> tuple[bool, str]:
        """Return whether a model reaches a task's bar, and the figures."""
        ...
