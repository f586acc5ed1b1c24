"""What all wires share: answers that cannot be read, a provider's words on one line, when to ask again; embeddings.

No fault has a text of the answer that failed, nor what looks like a key or quotes the prompt: it would reach logs.
Rows of numbers become unit vectors, or a fault; a sum of tokens is shared out by length. Knows no wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from freehold.base.serving import EmbedJob, Job, SpeechJob, Vectors
from freehold.route.providers.contract import Cause, Secret, UpstreamFault
from freehold.route.providers.texts import texts_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

_SHOWN = 300  # characters of a provider's own message
_KEYS = re.compile(
    r"\b(?:sk|pk|rk|key|xai|gsk|fh|hf|ghp|AKIA|AIza|ya29|eyJ|Bearer|Basic)[-_. ]?[A-Za-z0-9*][A-Za-z0-9_\-.*]{11,}"
)
_MOST_S = 86_400.0
MOST_TOKENS = 100_000_000  # of one answer: ten times any window, and sums of them fit the ledger's integers
# Statuses that mean the same on every wire.
STATUSES: Mapping[int, Cause] = {401: "auth", 403: "auth", 408: "timeout", 429: "rate", 504: "timeout"}


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


# --- takes keys, and what looks like one, out of a foreign server's error before it is shown --------

MASK = "***"
SHOWN = 8  # characters of a key in a row that are no accident
_WINDOW = 12  # characters in common with the request that count as a quote of it
# JSON Schema's own words of _WINDOW characters or more: errors name them.
_SCHEMA_WORDS = {
    *("additionalProperties", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas"),
    *("unevaluatedItems", "unevaluatedProperties", "minProperties", "maxProperties", "contentMediaType"),
    *("contentEncoding", "contentSchema", "exclusiveMinimum", "exclusiveMaximum"),
}


def cleaned(text: str, secrets: Iterable[Secret | None] = ()) -> str:
    """Return a foreign text without the secrets or a part of one, without what looks like a key, on one line."""
    for secret in secrets:
        if secret is not None and secret.value:
            text = _without(text, secret.value)
    return plain(text)


def _without(text: str, key: str) -> str:
    """Return `text` with three asterisks for every run of SHOWN characters or more that the key has too."""
    text = text.replace(key, MASK)
    for start in range(len(key) - SHOWN + 1):
        end = start + SHOWN
        while (at := text.find(key[start:end])) >= 0:
            longest = end
            while longest < len(key) and text.startswith(key[start : longest + 1], at):
                longest += 1
            text = text[:at] + MASK + text[at + longest - start :]
    return text


def quotes(text: str, sources: Iterable[str]) -> bool:
    """Return whether `text` repeats _WINDOW characters or more of what was asked."""
    windows = {text[i : i + _WINDOW] for i in range(max(len(text) - _WINDOW + 1, 0))}
    return any(window in source for source in (" ".join(s.split()) for s in sources) for window in windows)


def said_in(work: Job | EmbedJob | SpeechJob) -> Iterable[str]:
    """Return what a request says: what an error must not repeat. A schema's own words are no quote."""
    if isinstance(work, SpeechJob):
        return [work.prompt]
    return [text for text in texts_of(work) if text not in _SCHEMA_WORDS]


# --- embeddings ------------------------------------------------------------------------------------

Rows: TypeAlias = "Sequence[Sequence[float] | npt.NDArray[np.float32]]"


def unit_vectors(rows: Rows, tokens: int, job: EmbedJob) -> Vectors:
    """Return one vector a text, at unit length. Raises UpstreamFault for rows that do not fit the texts."""
    import numpy as np

    if len(rows) != len(job.texts):
        raise invalid(f"{len(rows)} embeddings for {len(job.texts)} texts")
    width = len(rows[0])
    if not width or any(len(row) != width for row in rows):
        raise invalid("embeddings of several widths")
    table = np.array(rows, dtype=np.float64)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise invalid("an embedding that is zero or not finite")
    return Vectors((table / lengths).astype("<f4").tobytes(), width, shared(tokens, job.texts))


def shared(total: int, texts: Sequence[str | tuple[int, ...]]) -> tuple[int, ...]:
    """Share the tokens of all texts out by their lengths; the parts sum to the total."""
    check_counts(total)
    bounds = [0]
    for text in texts:
        bounds.append(bounds[-1] + len(text) + 1)
    cuts = [total * bound // bounds[-1] for bound in bounds]
    return tuple(after - before for before, after in pairwise(cuts))
