"""Words an upstream's failure without what must not leave: keys, long texts, pages of HTML.

Knows headers of delay and the look of keys; each wire knows its own statuses.
Path: Wire.fault -> plain, retry_after_s -> UpstreamFault
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SHOWN = 300  # characters of a provider's own message
_KEYS = re.compile(
    r"\b(?:sk|pk|rk|key|xai|gsk|fh|hf|ghp|AKIA|AIza|ya29|eyJ|Bearer|Basic)[-_. ]?[A-Za-z0-9*][A-Za-z0-9_\-.*]{11,}"
)
_MOST_S = 86_400.0


def plain(text: str) -> str:
    """Return a provider's message on one line, cut, with three asterisks for whatever looks like a key."""
    return _KEYS.sub("***", " ".join(text.split()))[:_SHOWN]


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
