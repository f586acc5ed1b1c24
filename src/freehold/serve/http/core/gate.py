"""The outermost layer of the application: guard, request id, a count for each caller, and an answer to every exception.

Knows calls, keys and limits; knows no route but the probes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Receive, Scope, Send

from freehold.serve.http.core.auth import Headers
from freehold.serve.http.core.call import Endpoint, HttpCall, Server
from freehold.serve.http.core.limits import Gone
from freehold.serve.http.core.problems import Refused, Wording, forget_frames, openai_error
from freehold.serve.http.core.requestlog import log_request

PROBES = ("/health", "/ready")  # answered under any load


class Gate:
    """The outermost layer: guard, request id, and an answer to every exception."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        server: Server,
        wording: Callable[[str, Headers], Wording] = lambda *_: openai_error,
        posted: Mapping[str, Endpoint] | None = None,
    ) -> None:
        """`wording` tells by path and headers how errors are worded: some come before any route is found.

        `posted`: by their paths the endpoints of POST that need no router.
        """
        self._app, self._server, self._wording, self._posted = app, server, wording, posted or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = scope["freehold.call"] = HttpCall(self._server, scope, receive, send)
        call.wording = self._wording(scope["path"], call.headers)
        try:
            if scope["path"] not in PROBES and not self._server.loop_turns.free():
                await self._server.loop_turns.mine()
            _check_spare(scope)
            call.key, call.owner = self._server.guard.check(scope["path"], call.headers, scope["method"])
            direct = self._posted.get(scope["path"]) if scope["method"] == "POST" else None
            counted = self._count(call)
            try:
                await (direct or self._app)(scope, receive, send)
            finally:
                self._discount(counted)
        except Gone as e:
            forget_frames(e)
            call.status = call.status or 499  # never sent: for the metrics
        except Exception as e:
            trouble = call.problem(e)
            if call.status:  # an answer had begun, and cannot be taken back
                call.abort()
            else:
                await call.refuse(trouble)
        finally:
            call.close()
            # They refer to each other: apart they are freed at once, body and all, without the garbage collector.
            del scope["freehold.call"]
            self._server.metrics.answered(call.route, call.status)
            log_request(call)

    def _count(self, call: HttpCall) -> str:
        """Count a caller's running requests, and return whose this is: "" where it has no limit.

        Raises Refused (429) for one too many.
        """
        if call.owner or call.scope["path"] in PROBES:
            return ""
        under_way, caller, most = self._server.requests, call.caller, self._server.limits.caller_requests
        if under_way[caller] >= most:
            raise Refused(
                429,
                f"{most:,} requests of this {caller.partition(' ')[0]} are running, the limit; "
                "retry when one has ended",
                code="requests_too_many",
                headers=((b"retry-after", b"1"),),
            )
        under_way[caller] += 1
        return caller

    def _discount(self, caller: str) -> None:
        if not caller:
            return
        self._server.requests[caller] -= 1
        if not self._server.requests[caller]:
            del self._server.requests[caller]


def _check_spare(scope: Scope) -> None:
    """Raise Refused for all but probes on a connection that is reserved for them."""
    if scope.get("extensions", {}).get("freehold.spare") and scope["path"] not in PROBES:
        raise Refused(
            503,
            "too many connections are open; this one may ask for /health and /ready: try again in a moment",
            code="connections_too_many",
            headers=((b"retry-after", b"1"),),
        )
