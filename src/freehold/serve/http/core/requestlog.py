"""One log line per answered request: key, route, model, tokens, speed, status.

Prompts, answers and secrets are never logged. Polled routes (health, metrics, the page) are logged at level debug,
failures of the server at warning. Knows a Call that is over; knows no stream and no format of the log.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freehold.serve.http.core.call import protocol_of

if TYPE_CHECKING:  # `freehold serve` imports this file for its log, before it knows whether it will serve
    from freehold.serve.http.core.call import ServerCall

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
