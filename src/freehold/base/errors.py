"""The error tree: every failure a caller can meet has a name here.

    FreeholdError
    ├── UsageError             an argument is wrong; the CLI exits 2
    │   └── ChatNotFound       a name leads to no saved chat
    ├── BadPrompt              a prompt is empty, or binary where text is due
    ├── ModelNotFound          a name, path or hub reference leads nowhere
    ├── BadModelFile           a file is truncated, inconsistent, or not what it claims
    │   └── UnsupportedModel   a sound file whose architecture, type or tokenizer we do not run
    ├── DamagedPack            the packed copy of a model's weights was altered on disk
    ├── BadTemplate            a chat template fails, loops, or refuses the messages
    ├── ContextOverflow        more tokens than the context holds
    ├── CapacityExceeded       memory or disk does not suffice
    ├── NonFiniteLogits        the model, or an adapter of it, computed NaN or infinity (damaged weights)
    ├── StepFailed             a step of the engine failed; it continues with other requests
    ├── DownloadFailed         a source cannot be reached, refuses, or sends something else
    │   └── AccessDenied       the source requires a login, a token or an accepted licence
    ├── Offline                a call out was needed and offline mode forbids it
    ├── StoreError             the local store cannot be read or written
    │   └── FileVanished       a model's file is gone, or another one than was recorded
    ├── Overloaded             the queue is full; it gives the expected wait
    ├── SlowReader             the reader of a stream fell too far behind
    ├── DeadlineExceeded       a request's own time limit passed
    ├── EngineLost             an engine process died, and so did the ones that took its place
    ├── ServerUnreachable      no server answers, or one of another version
    ├── UpstreamFailed         a server broke an answer off, or sent an invalid one
    ├── PolicyRefused          no place is allowed to answer a request
    ├── BudgetSpent            a key's money does not suffice; it gives the amounts and the renewal
    ├── LedgerUnavailable      the ledger cannot be written, so nothing is sent, or the answer's end is withheld
    ├── AddressTaken           another server has the port, or serves this home already
    └── EngineClosed           use after close(), or in a forked child

Knows no protocol and no terminal: the CLI prints `message` and `hint` as two lines,
the server maps each class to a status.
"""

from __future__ import annotations


class FreeholdError(Exception):
    """Base of all errors: `message` gives the value and the limit, `hint` a remedy (may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FreeholdError):
    """An argument or option is wrong."""

    def __init__(self, message: str, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint)
        self.field = field  # which one of a Job's, where that is known


class ChatNotFound(UsageError):
    """The caller has no saved chat with this name."""


class BadPrompt(FreeholdError):
    """A prompt is empty, or contains bytes that are not text."""


class ModelNotFound(FreeholdError):
    """There is no model with this name, path or hub reference."""


class BadModelFile(FreeholdError):
    """A model file is truncated, inconsistent, or of another kind."""


class UnsupportedModel(BadModelFile):
    """A valid file needs an architecture, tensor type or tokenizer that Freehold does not support."""


class DamagedPack(FreeholdError):
    """The packed copy of a model's weights was changed on disk and has been removed; the model's file is intact."""


class BadTemplate(FreeholdError):
    """A chat template has a syntax error, takes too long, or rejects the messages."""


class ContextOverflow(FreeholdError):
    """The request needs more tokens than the loaded context holds."""


class CapacityExceeded(FreeholdError):
    """There is not enough memory or disk space."""


class NonFiniteLogits(FreeholdError):
    """The model computed NaN or infinity; its weights, or those of an adapter, are damaged."""


class StepFailed(FreeholdError):
    """A step of the engine, or its work for one request, failed; the engine continues with other requests."""


class DownloadFailed(FreeholdError):
    """A source cannot be reached, rejects the request, or sends unexpected data."""


class AccessDenied(DownloadFailed):
    """The source requires a login, a token, or an accepted licence."""


class Offline(FreeholdError):
    """A network request was needed, but offline mode forbids it."""


class StoreError(FreeholdError):
    """The local store cannot be read or written."""


class FileVanished(StoreError):
    """A model's file is missing, or is not the recorded one."""


class Overloaded(FreeholdError):
    """The queue is full. `wait_s`: expected seconds until the waiting requests have started."""

    def __init__(self, message: str, hint: str = "", wait_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.wait_s = wait_s


class SlowReader(FreeholdError):
    """The client read a stream too slowly, and the stream ended."""


class DeadlineExceeded(FreeholdError):
    """A request's time limit passed before its answer was complete."""


class EngineLost(FreeholdError):
    """Engine processes crashed during a request more often than is allowed."""


class ServerUnreachable(FreeholdError):
    """No server answers at the address, or it speaks another version."""


class UpstreamFailed(FreeholdError):
    """A server ended an answer before it was whole, failed in it, or sent an invalid answer."""


class PolicyRefused(FreeholdError):
    """Labels, licences or quality bars exclude every model that could answer a request."""


class NotMet(FreeholdError):
    """A result is further from what it must be than was allowed, and is not kept."""


class BudgetSpent(FreeholdError):
    """A key's budget does not cover a request. `renews_s`: seconds until it is renewed; amounts in nano-dollars."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        renews_s: float = 0.0,
        *,
        spent: int = 0,
        reserved: int = 0,
        asked: int = 0,
        limit: int = 0,
    ) -> None:
        super().__init__(message, hint)
        self.renews_s = renews_s
        self.spent, self.reserved, self.asked, self.limit = spent, reserved, asked, limit


class LedgerUnavailable(FreeholdError):
    """The ledger was locked for too long, or its disk is full; no request is answered without a row."""


class AddressTaken(FreeholdError):
    """Another process listens at the address, or another server has this home."""


class EngineClosed(FreeholdError):
    """The engine was closed, or this process is a fork of the one that loaded it."""
