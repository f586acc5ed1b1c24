"""What the gateway's middle asks of its neighbours: rented models, books, bars.

Protocols, so that a test can state a neighbour in ten lines. Implemented by rented.py, record.py and
bar.py. Knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from freehold.base.serving import EmbedJob, Job, SpeechJob, SpeechSource, Stream, Vectors
from freehold.route.providers.contract import Cleared, Provider, RemoteModel, RentedTranscript
from freehold.route.router.gateway import GatewayModel, QualityTask
from freehold.route.router.ledger.rows import LedgerRow, Reservation
from freehold.run.sounds.opening import MeasuredSound


class RentedStream(Stream, Protocol):
    """An answer of a rented model."""

    @property
    def answer_id(self) -> str:
        """The provider's id of the answer; "" before it has come."""
        ...


class RentedModels(Protocol):
    """Models at providers, those on owned machines too.

    Each call raises UpstreamFault, and PolicyRefused for a place that is not allowed.
    """

    def keep(self, providers: Iterable[Provider]) -> None:
        """Give up the connections of every other provider: the file was read again."""
        ...

    async def start(
        self, cleared: Cleared[Job], model: RemoteModel, *, first_token_s: float, timeout_s: float
    ) -> RentedStream:
        """Return an answer whose first chunk has come in time; `timeout_s`: to its last one.

        A job that is `whole` is asked for in one piece, for which `timeout_s` alone holds.
        """
        ...

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors: ...
    async def hear(
        self,
        cleared: Cleared[SpeechJob],
        model: RemoteModel,
        recording: SpeechSource,
        sound: MeasuredSound,
        *,
        timeout_s: float,
    ) -> RentedTranscript:
        """Send a recording, which was measured at home, and return its transcript."""
        ...

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        """Return the provider's count of a prompt; None where it has no door for it."""
        ...


class Books(Protocol):
    """The ledger, and the budgets in it. Each call raises LedgerUnavailable where it cannot be written."""

    async def reserve(self, wanted: Reservation, *, wait_s: float = 0.0) -> None:
        """Set money aside for a row. Raises BudgetSpent, after `wait_s` where waiting may help."""
        ...

    async def change(self, wanted: Reservation) -> None:
        """Set the amount of a reservation anew. Raises BudgetSpent where more does not fit; then nothing changes."""
        ...

    async def sent(self, row_id: str) -> None:
        """Note that a provider may charge from now on, for a row that was reserved with `sent` False."""
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
