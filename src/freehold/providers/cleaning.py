"""Takes keys, and what looks like one, out of a foreign server's error before it is shown.

Also keeps a provider's quotes of the prompt out of errors: they would reach logs. Knows no wire.
Path: upstream.py -> cleaned, quotes
"""

from __future__ import annotations

from collections.abc import Iterable

from freehold.providers.contract import Secret
from freehold.providers.faults import plain
from freehold.providers.texts import texts_of
from freehold.serving import EmbedJob, Job

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


def said_in(work: Job | EmbedJob) -> Iterable[str]:
    """Return what a request says: what an error must not repeat. A schema's own words are no quote."""
    return [text for text in texts_of(work) if text not in _SCHEMA_WORDS]
