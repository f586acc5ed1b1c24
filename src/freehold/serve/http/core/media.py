"""Pictures at addresses: fetched from the hosts that the owner named, and from no other place.

Without `--media-host` no name is resolved and no connection made. With it, a URL must be https to exactly such a host
at its usual port. The name is resolved once, every address of it must be public, and the connection goes to one of
them; no redirect is followed, no proxy used. Size, time and number are bounded, and charged to the client.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from freehold.base.errors import UsageError
from freehold.base.serving import Job, ModelInfo
from freehold.base.types import MAX_PICTURE_BYTES, Image, Message, Part
from freehold.base.version import __version__
from freehold.serve.http.core.bodies import CallerTurns
from freehold.serve.http.core.call import HttpCall, ServerCall
from freehold.serve.http.core.fields import Pictures
from freehold.serve.http.core.problems import Refused
from freehold.serve.worker.wire import MAX_PICTURES_BYTES

if TYPE_CHECKING:
    import httpx2

PORT = 443
ONE_S, ALL_S = 20.0, 60.0  # for one picture, and for all of a request
MOST, MOST_OF_CALLER = 8, 2  # pictures that are fetched at a time
TRIED = 3  # addresses of a host, of which one answers
MAX_HOSTS = 64
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
# All of a URL that is fetched: what has a user, another port, a trailing dot, a backslash, brackets or a character
# beyond ASCII does not match. Readers of URLs differ about those.
_URL = re.compile(r"https://([A-Za-z0-9.-]+)(?::443)?((?:/[!-\[\]-~]*)?(?:\?[!-\[\]-~]*)?)")

Resolver = Callable[[str], Awaitable[Sequence[str]]]  # a host's name -> its addresses


def host_name(text: str) -> str:
    """Return a host that `--media-host` names. Raises UsageError for whatever else: an address, a URL."""
    try:
        name = text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--media-host {text[:100]!r} is not the name of a host",
            "give only a host name, such as images.example.com: no https://, port, address or trailing dot",
        )
    return name


async def system_addresses(host: str) -> list[str]:
    """Ask the system for a host's addresses. Raises OSError."""
    loop = asyncio.get_running_loop()
    entries = await loop.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in entries]


def is_public(address: str) -> bool:
    """Return whether an address is of the internet: not of this machine, a private network, a link or a cloud's own."""
    from freehold.serve.tools.mcp.configured import refusal  # a server starts without the room of tools

    with suppress(ValueError):
        return not refusal(ipaddress.ip_address(address), local=False, private=False)
    return False


class MediaHosts:
    """The hosts from which pictures may be fetched, and what is fetched from them now.

    `resolver`, `allowed` (whether an address may be asked) and `tls` take the place of the system's in tests.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        resolver: Resolver = system_addresses,
        allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
        port: int = PORT,
    ) -> None:
        if len(hosts) > MAX_HOSTS:
            raise UsageError(f"--media-host is given {len(hosts)} times; the limit is {MAX_HOSTS}")
        self.hosts = frozenset(map(host_name, hosts))
        self._resolver, self._allowed, self._tls, self._port = resolver, allowed, tls, port
        self._abreast, self._turns = asyncio.Semaphore(MOST), CallerTurns(MOST_OF_CALLER)

    def target(self, url: str) -> tuple[str, str] | None:
        """Return the host and the path of a URL that may be fetched; None for any other."""
        match = _URL.fullmatch(url.partition("#")[0])
        if match is None or (host := match[1].lower()) not in self.hosts:
            return None
        path = match[2] or "/"
        return host, path if path.startswith("/") else f"/{path}"

    async def filled(self, call: ServerCall, jobs: Sequence[Job]) -> list[Job]:
        """Return jobs with the pictures in place of the addresses that may be fetched. Raises Refused."""
        pictures: dict[str, bytes] = {}
        async with _in_time(ALL_S, f"the pictures of the request were not fetched within {ALL_S:g} s"):
            for job in jobs:
                for message in job.messages or ():
                    for image in _addresses(message):
                        if image.url not in pictures and (target := self.target(image.url)):
                            pictures[image.url] = await self._one(call, image, *target, _left(pictures))
        return [await asyncio.to_thread(_with, job, pictures) for job in jobs] if pictures else [*jobs]

    async def _one(self, call: ServerCall, image: Image, host: str, path: str, left: int) -> bytes:
        """Fetch a picture, in its caller's turn and on its account."""
        async with self._turns.of(call.caller), self._abreast:
            late = f"{image.place}: {host} did not send the picture within {ONE_S:g} s"
            async with _in_time(ONE_S, late, image.place):
                addresses = await self._addresses(host, image.place)
                data = await self._from_one_of(
                    addresses, host, path, image.place, min(left, MAX_PICTURE_BYTES)
                )
        if isinstance(call, HttpCall):
            call.hold(3 * len(data))  # its bytes, and as base64 in a message
        return data

    async def _addresses(self, host: str, place: str) -> list[str]:
        """Return a host's addresses, which are asked for once. Raises Refused unless all of them may be asked."""
        try:
            addresses = list(dict.fromkeys(await self._resolver(host)))
        except OSError:
            addresses = []
        if not addresses:
            raise _refused(f"{place}: {host} has no address", place)
        if not all(map(self._allowed, addresses)):
            raise _refused(f"{place}: {host} stands for an address that is not public", place)
        return addresses[:TRIED]

    async def _from_one_of(
        self, addresses: Sequence[str], host: str, path: str, place: str, most: int
    ) -> bytes:
        import httpx2

        verify = self._tls or await asyncio.to_thread(httpx2.create_ssl_context)
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=0)
        why: Exception | None = None
        for address in addresses:
            # A transport of its own: a connection that is kept for an address was checked for another host's name.
            transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)
            try:
                async with transport:
                    return await self._read(transport, address, host, path, place, most)
            except httpx2.ConnectError as e:
                why = e
            except httpx2.HTTPError as e:
                why = e
                break
        raise _refused(f"{place}: {host} did not send the picture: {str(why)[:200]}", place)

    async def _read(
        self, transport: httpx2.AsyncHTTPTransport, address: str, host: str, path: str, place: str, most: int
    ) -> bytes:
        import httpx2

        at = f"[{address}]" if ":" in address else address
        headers = {"host": host, "user-agent": f"freehold/{__version__}", "accept": "image/*"}
        request = httpx2.Request(
            "GET",
            f"https://{at}:{self._port}{path}",
            headers={**headers, "accept-encoding": "identity", "connection": "close"},
            extensions={
                "sni_hostname": host,
                "timeout": {"connect": ONE_S / 2, "read": ONE_S, "write": ONE_S, "pool": ONE_S},
            },
        )
        response = await transport.handle_async_request(request)
        try:
            if 300 <= response.status_code < 400:
                raise _refused(f"{place}: {host} redirects, and redirects are not followed", place)
            if response.status_code != 200:
                raise _refused(f"{place}: {host} answered with status {response.status_code}", place)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _refused(f"{place}: {host} compresses the picture's file", place)
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > most:
                    raise _refused(f"{place} has more than {most:,} bytes, the limit", place)
            return bytes(data)
        finally:
            await response.aclose()


async def checked(
    call: ServerCall, pictures: Pictures, info: ModelInfo, jobs: Sequence[Job]
) -> Sequence[Job]:
    """Return the jobs of a request as the model may be asked them, pictures fetched. Raises Refused, as Pictures."""
    hosts = call.server.part(MediaHosts)
    if hosts is not None and info.can_see and pictures.addresses:
        jobs = await hosts.filled(call, jobs)
        left = {
            image.place for job in jobs for message in job.messages or () for image in _addresses(message)
        }
        pictures.addresses = [place for place in pictures.addresses if place in left]
    pictures.check(call, info, hosts.hosts if hosts is not None else ())
    return jobs


def _addresses(message: Message) -> list[Image]:
    return [part for part in message.parts if isinstance(part, Image) and part.url]


def _left(pictures: dict[str, bytes]) -> int:
    return MAX_PICTURES_BYTES - sum(map(len, pictures.values()))


def _with(job: Job, pictures: dict[str, bytes]) -> Job:
    """Put fetched pictures in the place of their addresses. Raises Refused for bytes that begin as no picture."""
    messages = [
        replace(m, parts=tuple(_picture(part, pictures) for part in m.parts)) if _addresses(m) else m
        for m in job.messages or ()
    ]
    return replace(job, messages=tuple(messages)) if messages else job


def _picture(part: Part, pictures: dict[str, bytes]) -> Part:
    if not isinstance(part, Image) or part.url not in pictures:
        return part
    try:
        image = Image.of(pictures[part.url], part.detail)
    except UsageError as e:
        message = e.message.replace("the picture", f"what {part.place} names", 1)
        raise _refused(message, part.place) from None
    return replace(image, place=part.place)


@asynccontextmanager
async def _in_time(seconds: float, message: str, place: str = "") -> AsyncIterator[None]:
    """Raise Refused for work that takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise _refused(message, place) from None


def _refused(message: str, place: str) -> Refused:
    return Refused(400, message, param=place or None, code="picture_not_fetched")
