"""ChatModels over HTTP: one connection, and one file for each wire protocol.

The connection is to one HTTP server, ours or any other: requests, JSON, server-sent events, and what its errors mean.

Knows statuses and error bodies; knows no message and no model. It asks once: an answer that breaks off is an error,
and is never requested again in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from freehold.base import errors
from freehold.base.errors import (
    EngineClosed,
    FreeholdError,
    Overloaded,
    ServerUnreachable,
    UpstreamFailed,
    UsageError,
)
from freehold.base.types import OnPrefill

if TYPE_CHECKING:
    import httpx2


ADMIN_PROTOCOL = 1  # of our server's admin routes: grows when an older command line could misread an answer
CONNECT_S = 5.0
SILENCE_S = 600.0  # over a network; a local socket closes when its server dies
MAX_ANSWER = 64 << 20  # bytes of a whole JSON answer, or of one event
MAX_ERROR_CHARS = 2000  # characters of a foreign server's error that are passed on

PREFILL = re.compile(r"^: prefill (\d{1,9}) (\d{1,9})$", re.MULTILINE)  # http/core/answering.py writes it

_BY_STATUS: Mapping[int, type[FreeholdError]] = {
    **dict.fromkeys((400, 422), UsageError),
    **dict.fromkeys((401, 403), errors.AccessDenied),
    404: errors.ModelNotFound,
    **dict.fromkeys((408, 504), errors.DeadlineExceeded),
    413: errors.ContextOverflow,
    **dict.fromkeys((429, 503), Overloaded),
}
_T = TypeVar("_T")


class Api:
    """One HTTP server, at a URL or a Unix socket. Safe from many threads; close it when done.

    Every failure leaves it as a FreeholdError: the one that the server named, or what its status means.
    """

    def __init__(self, url: str = "http://localhost", *, key: str = "", socket: Path | None = None) -> None:
        import httpx2

        self._where = str(socket or url)
        try:
            self._client = httpx2.Client(
                base_url=url.rstrip("/"),
                headers={"User-Agent": "freehold"} | ({"Authorization": f"Bearer {key}"} if key else {}),
                transport=httpx2.HTTPTransport(uds=str(socket)) if socket else None,
                trust_env=socket is None,
                timeout=httpx2.Timeout(None if socket else SILENCE_S, connect=CONNECT_S),
            )
        except httpx2.InvalidURL as e:
            raise _no_address(self._where, e) from e

    def label(self, names: Sequence[str]) -> None:
        """Send these labels with every request from now on: a gateway keeps what is sent where they allow."""
        self._client.headers["X-Freehold-Label"] = ", ".join(names)

    def close(self) -> None:
        """Close all connections; later calls raise EngineClosed."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        as_: type[_T] = dict,
        patience_s: float | None = None,
    ) -> _T:
        """Send JSON and return the answer, read as `as_`; it may take `patience_s` between two bytes."""
        with self._open(method, path, body, patience_s) as response:
            return self.read(_bounded(response, self._where), as_)

    def events(
        self, path: str, body: Mapping[str, Any], as_: type[_T], on_prefill: OnPrefill | None = None
    ) -> Iterator[_T]:
        """Post JSON and yield the answer's server-sent events until [DONE] or the stream's end.

        An event that carries an error raises it. Comments keep the line open; those of our own server that count the
        prompt's tokens go to `on_prefill`.
        """
        import httpx2

        with self._open("POST", path, body) as response:
            source = response if on_prefill is None else cast(Any, _Prefilling(response, on_prefill))
            for event in httpx2.EventSource(source, MAX_ANSWER):
                if event.data == "[DONE]":
                    return
                if event.data:
                    failure = self.read(event.data, _ErrorBody)
                    if failure.error is not None:
                        raise _named(failure.error, 0)
                    yield self.read(event.data, as_)

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, patience_s: float | None = None
    ) -> Iterator[httpx2.Response]:
        """Send a request; give its response if it is a success, body unread."""
        import httpx2

        if self._client.is_closed:
            raise EngineClosed(f"the connection to {self._where} was closed", "open another")
        timeout = self._client.timeout if patience_s is None else httpx2.Timeout(patience_s)
        try:
            with self._client.stream(method, path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    raise _refusal(response, _bounded(response, self._where))
                yield response
        except httpx2.ConnectError as e:
            raise ServerUnreachable(
                f"no server answers at {self._where}: {e}", "is it running? freehold serve starts one here"
            ) from e
        except httpx2.UnsupportedProtocol as e:
            raise _no_address(self._where, e) from e
        except httpx2.HTTPError as e:
            reason = str(e) or type(e).__name__
            raise UpstreamFailed(f"the server at {self._where} broke off: {reason}", "try again") from e

    def read(self, raw: str | bytes, as_: type[_T]) -> _T:
        """Read JSON of the server as `as_`; raise UpstreamFailed if it is something else."""
        try:
            return msgspec.json.decode(raw, type=as_)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise UpstreamFailed(f"the server at {self._where} sent an unexpected answer: {e}") from e


def _no_address(where: str, e: Exception) -> UsageError:
    return UsageError(f"{where} is not a valid address of a server: {e}", "for example http://127.0.0.1:8000")


class _Prefilling:
    """A response whose comments on the prompt's prefill are reported; a comment cut in two is left out."""

    def __init__(self, response: httpx2.Response, on_prefill: OnPrefill) -> None:
        self.headers, self.request = response.headers, response.request
        self._response, self._on_prefill = response, on_prefill

    def iter_text(self) -> Iterator[str]:
        """Yield the text as it comes."""
        for text in self._response.iter_text():
            for done, total in PREFILL.findall(text):
                self._on_prefill(int(done), int(total))
            yield text


class _Error(msgspec.Struct):
    """An error object. `name` and what follows are ours: the class it had at the server, and its fields."""

    message: str = ""
    code: str | int | None = None
    name: str = ""
    hint: str = ""
    expected_wait_s: float = 0.0


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None


def _refusal(response: httpx2.Response, body: bytes) -> FreeholdError:
    try:
        sent = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        sent = body.decode("utf-8", "replace")
    error = sent if isinstance(sent, _Error) else _Error(message=sent or "")
    error.message = error.message[:MAX_ERROR_CHARS] or f"HTTP {response.status_code}"
    after = response.headers.get("retry-after", "")
    if not error.expected_wait_s and after.isdigit():
        error.expected_wait_s = float(after)
    return _named(error, response.status_code)


def _named(sent: _Error | str, status: int) -> FreeholdError:
    """Return the error that the server named, or the nearest of ours to its status."""
    error = _Error(message=sent) if isinstance(sent, str) else sent
    kind = getattr(errors, error.name, None)
    if not (isinstance(kind, type) and issubclass(kind, FreeholdError)):
        kind = _kind(status, error)
    message = error.message.removesuffix(f"; {error.hint}")  # repeated there for other clients
    if kind is Overloaded:
        return Overloaded(message, error.hint, error.expected_wait_s)
    return kind(message, error.hint)


def _kind(status: int, error: _Error) -> type[FreeholdError]:
    if error.code == "context_length_exceeded":
        return errors.ContextOverflow
    return _BY_STATUS.get(status, UpstreamFailed)


def _bounded(response: httpx2.Response, where: str) -> bytes:
    body = bytearray()
    for block in response.iter_bytes():
        body += block
        if len(body) > MAX_ANSWER:
            raise UpstreamFailed(f"{where} answered with more than {MAX_ANSWER:,} bytes of JSON")
    return bytes(body)
