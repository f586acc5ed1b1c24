"""What all wires share of failures: answers that cannot be read, a provider's words on one line, when to ask again.

No fault has a text of the answer that failed, nor what looks like a key. Knows no wire's statuses.
Path: Wire.fault, EventReader.push -> decoded, plain, retry_after_s -> UpstreamFault
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec

from freehold.providers.contract import UpstreamFault

T = TypeVar("T")

_SHOWN = 300  # characters of a provider's own message
_KEYS = re.compile(
    r"\b(?:sk|pk|rk|key|xai|gsk|fh|hf|ghp|AKIA|AIza|ya29|eyJ|Bearer|Basic)[-_. ]?[A-Za-z0-9*][A-Za-z0-9_\-.*]{11,}"
)
_MOST_S = 86_400.0
MOST_TOKENS = (
    100_000_000  # of one answer; no window has a tenth of it, and sums of them fit the ledger's integers
)


def invalid(what: str) -> UpstreamFault:
    """Return the fault of an answer that is not of this wire."""
    return UpstreamFault("invalid", f"the provider sent {what}", status=200)


def decoded(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    """Decode JSON. Raises UpstreamFault, which quotes nothing of it."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        if "truncated" in str(e) and data.lstrip()[:1] in (b"{", b"["):
            raise UpstreamFault("broken", "the answer was cut off", status=200) from None
        raise invalid(what) from None


def check_counts(*counts: int) -> None:
    """Raise UpstreamFault for token counts that no answer has: the ledger would take them for money."""
    if min(counts) < 0:
        raise invalid("token counts below 0")
    if max(counts) > MOST_TOKENS:
        raise invalid(f"token counts above {MOST_TOKENS:,}")


def plain(text: str) -> str:
    """Return a provider's message on one line, cut, with three asterisks for whatever looks like a key.

    What does not print is left out: the message is shown in terminals, which obey some of it.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[: 16 * _SHOWN])
    return _KEYS.sub("***", " ".join(shown.split()))[:_SHOWN]


def header(headers: Mapping[str, str], name: str) -> str:
    """Return a header by its lower-case name, or ""."""
    return next((value for key, value in headers.items() if key.lower() == name), "")


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds of `retry-after-ms` or `retry-after`, a number or a date; None where there is no such one."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(header(headers, name)) / unit
        except ValueError:
            continue
        if 0 <= seconds <= _MOST_S:
            return seconds
    try:
        at = parsedate_to_datetime(header(headers, "retry-after"))
    except ValueError:
        return None
    seconds = (at.astimezone(UTC) - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), _MOST_S)
