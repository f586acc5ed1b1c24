"""Opens connections to providers: the one file by which a request leaves this machine for another.

Takes nothing but a cleared request, and checks again that it may go there. Follows no redirect, uses no proxy but the
provider's own, keeps no cookie, unpacks nothing. Errors say what happened and where, never what was sent.
Knows no wire.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from freehold.base.errors import EngineClosed
from freehold.route.providers.contract import Cleared, Outgoing, Provider, UpstreamFault

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

# Bytes of an answer that does not stream: 2,048 vectors of 3,072 numbers as text are some 60 MB.
MAX_BODY = 64 << 20
MAX_ERROR = 64 << 10  # bytes of an error that are read
MAX_PATHS = 1024  # addresses a provider's models may have, before those kept are dropped
DRAIN_S = 1.0  # what a provider may take to end its connection's answer after the wire's own end
IDLE_S = 30.0  # an unused connection is kept so long: most servers close theirs after 60 s or more
_HEADERS = {"User-Agent": "freehold", "Accept-Encoding": "identity", "Content-Type": "application/json"}
LARGE = 1 << 20  # bytes of a body that is written in portions


def http_client() -> Any:
    """Return aiohttp, which takes 0.1 s to import: only who asks an engine or a provider needs it."""
    import aiohttp

    return aiohttp


class Hop:
    """Connections to providers, kept open between requests. One event loop's; close it when done."""

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._channels: dict[Provider, _Channel] = {}
        self._closed = False
        self.keep(providers)

    def keep(self, providers: Iterable[Provider]) -> None:
        """Give up the connections of every other provider, each once it is idle: the file was read again."""
        named = set(providers)
        self.forget([p for p in self._channels if p not in named])

    def forget(self, providers: Iterable[Provider]) -> None:
        """Give up the connections of these, each once it is idle."""
        for provider in providers:
            if (channel := self._channels.pop(provider, None)) is not None:
                channel.retire()

    async def close(self) -> None:
        """Close every connection; requests in progress break."""
        self._closed = True
        channels, self._channels = [*self._channels.values()], {}
        for channel in channels:
            await channel.close()

    async def post(
        self, cleared: Cleared[Any], provider: Provider, key: Mapping[str, str], sent: Outgoing
    ) -> HopReply:
        """Send a request and return its answer, body unread. Raises PolicyRefused, or UpstreamFault."""
        return await self._ask("POST", cleared, provider, key, sent)

    async def get(
        self, cleared: Cleared[Any], provider: Provider, key: Mapping[str, str], path: str
    ) -> HopReply:
        """Ask for what a provider tells of itself, such as its metrics. Raises as `post` does."""
        return await self._ask("GET", cleared, provider, key, Outgoing(path, b""))

    async def _ask(
        self, method: str, cleared: Cleared[Any], provider: Provider, key: Mapping[str, str], sent: Outgoing
    ) -> HopReply:
        cleared.check(provider.name)
        if self._closed:
            raise EngineClosed("the gateway is closing", "try again")
        channel = self._channels.get(provider)
        if channel is None:
            await asyncio.to_thread(_connectors)  # imports aiohttp, and reads the system's certificates
            channel = self._channels.get(provider)
        if channel is None:
            channel = self._channels[provider] = _Channel(provider)
        channel.busy += 1
        body = sent.body if len(sent.body) <= LARGE else io.BytesIO(sent.body)
        data, headers = body, {**sent.headers, **key}
        if sent.upload is not None:
            data, headers = sent.upload.pieces(), {**headers, "Content-Length": str(sent.upload.size)}
        try:
            response = await channel.session.request(
                method,
                channel.url(sent.path),
                data=None if method == "GET" else data,
                headers=headers,
                allow_redirects=False,
                proxy=provider.proxy or None,
            )
        except Exception as e:
            channel.done()
            raise _opening_fault(e, provider.name) from None
        except BaseException:  # cancelled
            channel.done()
            raise
        return HopReply(response, provider.name, channel)


@cache
def _connectors() -> tuple[type[aiohttp.TCPConnector], type[aiohttp.UnixConnector]]:
    aiohttp = http_client()

    class Clean:
        """Reuses no connection on which bytes came unasked: they would be read as the next request's answer."""

        async def _get(self, key: Any, traces: Any) -> Any:
            while (connection := await super()._get(key, traces)) is not None:  # type: ignore[misc]
                if connection.protocol is not None and not connection.protocol.should_close:
                    return connection
                connection.close()
            return None

    class Connector(Clean, aiohttp.TCPConnector):
        pass

    class SocketConnector(Clean, aiohttp.UnixConnector):
        pass

    return Connector, SocketConnector


def _connector(provider: Provider) -> aiohttp.BaseConnector:
    """Return what opens a provider's connections: to its host, or to its socket on this machine."""
    tcp, unix = _connectors()
    if provider.socket is None:
        return tcp(limit=provider.connections, ttl_dns_cache=60, keepalive_timeout=IDLE_S)
    return unix(path=str(provider.socket), limit=provider.connections, keepalive_timeout=IDLE_S)


class _Channel:
    """The connections to one provider."""

    def __init__(self, provider: Provider) -> None:
        aiohttp = http_client()
        self._base = provider.url
        self._urls: dict[str, URL] = {}
        self._draining: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}
        self.busy = 0
        self._retired = False
        self.session: aiohttp.ClientSession = aiohttp.ClientSession(
            connector=_connector(provider),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=provider.connect_s),
            headers=_HEADERS,
            trust_env=False,
            auto_decompress=False,
        )

    def url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            from yarl import URL

            if len(self._urls) >= MAX_PATHS:
                self._urls.clear()
            url = self._urls[path] = URL(self._base + path)
        return url

    def retire(self) -> None:
        self._retired = True
        if not self.busy:
            self._end()

    def done(self) -> None:
        self.busy -= 1
        if self._retired and not self.busy:
            self._end()

    def drain(self, response: aiohttp.ClientResponse) -> None:
        """Close an answer that is over in DRAIN_S, unless the provider ends it: then its connection is free."""
        closing = asyncio.get_running_loop().call_later(DRAIN_S, response.close)
        self._draining[response] = closing

        def free() -> None:
            closing.cancel()
            self._draining.pop(response, None)

        response.content.on_eof(free)

    async def close(self) -> None:
        for response, closing in self._draining.items():
            closing.cancel()
            response.close()
        self._draining.clear()
        await self.session.close()

    def _end(self) -> None:
        closing = asyncio.get_running_loop().create_task(self.close())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)


_CLOSING: set[asyncio.Task[None]] = set()  # a loop keeps no reference to its tasks


class HopReply:
    """One answer of a provider while it comes. End it with `finished` or `close`, whatever happened."""

    def __init__(self, response: aiohttp.ClientResponse, place: str, channel: _Channel) -> None:
        self._response, self._place, self._channel = response, place, channel
        self._content = response.content
        connection = response.connection  # none left where the whole body came with the head
        self._protocol = connection.protocol if connection else None
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._expired = False
        self.status = response.status
        self.opened = time.monotonic()

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def media_type(self) -> str:
        """What the body is said to be, without parameters, in lower case."""
        content_type = self._response.headers.get("Content-Type", "")
        return content_type.partition(";")[0].strip().lower()

    def limit(self, seconds: float) -> None:
        """Close the connection after `seconds`, unless the answer has ended by then."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._expire)

    async def some(self) -> bytes:
        """Return what has come, at least a byte; b"" at the end. Raises UpstreamFault."""
        try:
            return await self._content.readany()
        except Exception as e:
            raise self._reading_fault(e) from None

    async def body(self) -> bytes:
        """Return the whole body. Raises UpstreamFault, also where it has more than MAX_BODY bytes."""
        parts: list[bytes] = []
        size = 0
        while data := await self.some():
            parts.append(data)
            size += len(data)
            if size > MAX_BODY:
                raise UpstreamFault(
                    "invalid", f"{self._place} sent more than {MAX_BODY:,} bytes", status=self.status
                )
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def start_of_body(self, most: int = MAX_ERROR) -> bytes:
        """Return at most `most` bytes of an error's body, or what came of it."""
        parts = bytearray()
        try:
            while len(parts) < most and (data := await self.some()):
                parts += data
        except UpstreamFault:
            pass  # the status says enough
        return bytes(parts[:most])

    def finished(self) -> None:
        """Give the connection back for the next request, once the provider has ended its answer."""
        if not self._open:
            return
        self._end()
        if not self._content.is_eof():  # its last bytes are on their way
            self._channel.drain(self._response)

    def close(self) -> None:
        """Close the connection at once, so that the provider stops; harmless after the end.

        One whose body ended before its answer is free again by then. Its provider often closes it next, under the
        request that would follow: it takes none.
        """
        if self._open:
            self._end()
            self._response.close()
            if self._protocol is not None:
                self._protocol.force_close()

    def _end(self) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        self._channel.done()

    def _expire(self) -> None:
        self._expired = True
        self._response.close()

    def _reading_fault(self, e: Exception) -> Exception:
        if self._expired:
            seconds = time.monotonic() - self.opened
            return UpstreamFault("timeout", f"{self._place} had not ended its answer after {seconds:.1f} s")
        return _foreign(e, "broken", f"{self._place} broke its answer off")


def _opening_fault(e: Exception, place: str) -> Exception:
    aiohttp = http_client()
    if isinstance(e, aiohttp.ClientResponseError):
        return UpstreamFault("invalid", f"{place} did not answer in HTTP")
    return _foreign(e, "connect", f"no answer of {place}: {_why(e)}")


def _foreign(e: Exception, cause: Any, message: str) -> Exception:
    """Return the fault that an error of the connection is, and any other error as it is."""
    aiohttp = http_client()
    kinds = aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, asyncio.TimeoutError
    return UpstreamFault(cause, message) if isinstance(e, kinds) else e


def _why(e: Exception) -> str:
    """Say why there is no connection, in words of our own: an error's text may hold anything."""
    aiohttp = http_client()
    reasons = (
        (aiohttp.ClientConnectorDNSError, "its host's name is not known"),
        (aiohttp.ClientConnectorCertificateError, "its certificate is not valid"),
        (aiohttp.ClientSSLError, "no TLS connection"),
        (aiohttp.ClientProxyConnectionError, "its proxy does not answer"),
        (aiohttp.ConnectionTimeoutError, "it took too long to connect"),
        (aiohttp.ClientConnectorError, "the connection was refused"),
        (aiohttp.ServerDisconnectedError, "it closed the connection"),
    )
    message = next((text for kind, text in reasons if isinstance(e, kind)), "the connection was reset")
    code = getattr(e, "errno", None)
    return f"{message} (errno {code})" if isinstance(code, int) and code > 0 else message
