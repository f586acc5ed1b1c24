"""The outermost layer of the application: guard, request id, a count for each caller, and an answer to every exception.

Knows calls, keys and limits; knows no route but the probes.

One log line per answered request has key, route, model, tokens, speed and status. Prompts, answers and secrets are
never logged. Polled routes (health, metrics, the page) are logged at level debug, failures of the server at warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from freehold.serve.http.core.auth import Headers
from freehold.serve.http.core.call import Endpoint, HttpCall, Server, protocol_of
from freehold.serve.http.core.limits import Gone
from freehold.serve.http.core.problems import Refused, Wording, forget_frames, openai_error

if TYPE_CHECKING:
    from freehold.serve.http.core.call import ServerCall

# --- a line of the log -----------------------------------------------------------------------------

POLLED = frozenset(
    {"/health", "/ready", "/metrics", "/", "/version", "/api/version", "/api/ps"}
    | {"/assets/{name}", "/console/api/me"}
)
_SHOWN = 120  # characters of a name that a client gave
_log = logging.getLogger("freehold.requests")


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request in the log."""

    at: float  # time.time() of its end
    fields: dict[str, Any]

    def __str__(self) -> str:
        """Write it as text; unknown values are left out."""
        f = self.fields
        parts = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at)), f["key"] or "-"]
        parts += [f["method"], f["route"], f["model"] or "-", str(f["status"])]
        if f["prompt_tokens"]:
            parts.append(f"prompt {f['prompt_tokens']} (cached {f['cached_tokens']})")
        if f["answer_tokens"]:
            parts.append(f"completion {f['answer_tokens']}")
        if f["ttft_s"] is not None:
            parts.append(f"first {f['ttft_s']:.3f} s")
        if "picture_decode_s" in f:
            names = ("decode", "picture_decode_s"), ("encode", "picture_encode_s"), ("prefill", "prefill_s")
            parts += [f"{name} {f[field]:.3f} s" for name, field in names]
        if "sound_s" in f:
            parts.append(f"sound {f['sound_s']:.1f} s (speech {f['speech_s']:.1f} s)")
        if f["tok_s"] is not None:
            parts.append(f"{f['tok_s']:.1f} tok/s")
        parts.append(f"{f['duration_s']:.3f} s")
        parts += [word for word in (f["code"], "" if f["whole"] else "cut off") if word]
        return " ".join(parts)


def log_request(call: ServerCall) -> None:
    """Log a request that is over."""
    level = _level(call)
    if _log.isEnabledFor(level):
        # Made here: Logger.log would search the stack for the source line, a third of the cost.
        _log.handle(_Record(level, RequestLine(time.time(), _fields(call))))


_SAME = vars(logging.LogRecord(_log.name, logging.INFO, __file__, 0, "%s", (), None))


class _Record(logging.LogRecord):
    """A line's record. What is the same in all of them is copied: to find it anew costs as much as the line."""

    def __init__(self, level: int, line: RequestLine) -> None:
        self.__dict__.update(_SAME)
        self.levelno, self.levelname, self.args = level, logging.getLevelName(level), (line,)
        self.created, self.msecs = line.at, line.at % 1 * 1000


def _level(call: ServerCall) -> int:
    waits = call.route == "/ready" and call.status == 503  # asked again and again while a model loads
    if call.status >= 500 and not waits:
        return logging.WARNING
    return logging.DEBUG if call.route in POLLED else logging.INFO


def _fields(call: ServerCall) -> dict[str, Any]:
    work, first, tok_s = call.work, call.work.first_s, call.work.tok_s
    media: dict[str, float] = {}
    if work.picture_s:
        names = ("picture_decode_s", "picture_encode_s", "prefill_s")
        media |= zip(names, (round(s, 4) for s in work.picture_s), strict=True)
    if work.sound_s:
        media |= zip(("sound_s", "speech_s"), (round(s, 3) for s in work.sound_s), strict=True)
    return {
        "request_id": call.request_id.decode(),
        "key": call.key.name if call.key else "owner" if call.owner else "",
        "protocol": protocol_of(call.path),
        "method": call.method,
        "route": call.route,
        "model": _plain(work.model),
        "prompt_tokens": work.prompt_tokens,
        "cached_tokens": work.cached_tokens,
        "answer_tokens": work.answer_tokens,
        **media,
        "ttft_s": None if first is None else round(first, 4),
        "tok_s": None if tok_s is None else round(tok_s, 2),
        "status": call.status,
        "code": call.code,
        "whole": call.complete,
        "duration_s": round(time.monotonic() - call.started, 4),
    }


def _plain(name: str) -> str:
    """Return a client's name for a model so that it can break no line and colour no terminal."""
    shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    return shown if shown.isprintable() and " " not in shown else ascii(shown)


# --- the outermost layer ---------------------------------------------------------------------------

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
