"""HTTP to one configured server of tools, and to nothing else.

The connection is made to an address that was checked, since a name that is resolved again could stand for another. No
redirect is followed, no proxy of the environment is used, and an answer has 4 MB at most. Knows HTTP; knows no protocol
above it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

from freehold.base.errors import UpstreamFailed
from freehold.serve.tools.mcp.configured import MAX_MESSAGE, is_local, resolved


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Connects to the host of `url` alone, at an address that was checked. `private`: as configured."""

    def __init__(self, url: str, *, private: bool) -> None:
        self._origin = httpx2.URL(url)
        self._private = private
        self._local = is_local(self._origin.host)
        self._address = ""
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the address; refuse redirects, compressed answers, and GET, which waits for events."""
        url, own = request.url, self._origin
        if (url.scheme, url.host, url.port) != (own.scheme, own.host, own.port):
            raise UpstreamFailed(f"{url.host} is not the configured host")
        if request.method == "GET":  # a stream of the server's own requests: all of them would be refused
            return httpx2.Response(405, request=request)
        if not self._address:
            port = url.port or (443 if url.scheme == "https" else 80)
            self._address = await resolved(url.host, port, local=self._local, private=self._private)
        request.headers["accept-encoding"] = "identity"
        checked = httpx2.Request(
            request.method,
            url.copy_with(host=self._address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": url.host},
        )
        response = await self._inner.handle_async_request(checked)
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise UpstreamFailed(
                f"{url.host} redirects (status {response.status_code}); that is not followed"
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise UpstreamFailed(f"{url.host} compresses its answer, whose size would be unknown")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends with an error beyond the limit."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async for part in self._inner:
            taken += len(part)
            if taken > MAX_MESSAGE:
                raise UpstreamFailed(f"the server sent more than {MAX_MESSAGE:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()
