"""Takes keys, and what looks like one, out of a foreign server's error before anybody sees it.

Also keeps a provider's quotes of the prompt out of errors: they would reach logs. Knows no wire.
Path: upstream.py -> cleaned, unquoted
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from freehold.providers.contract import Secret
from freehold.serving import EmbedJob, Job

MAX_CHARS = 500  # of a foreign error that are passed on
MASK = "***"
# Prefixes of providers' keys, also where the provider itself shows a part only (sk-ab***yz), a bearer's value, and
# runs of 32 characters or more with letters and digits: ids of requests have hyphens every 12 or fewer.
_LOOKS = re.compile(
    r"(?i:bearer|basic)\s+[^\s\"',;]{6,}"
    r"|\b(?:sk|pk|rk|gsk|xai|key|fh|hf|ghp|AIza|AKIA)[-_]?(?=[\w*-]*[\d*])[\w*-]{6,}"
    r"|\beyJ[\w-]+\.[\w-]+\.?[\w-]*"
    r"|\b(?=[A-Za-z_]*\d)(?=[\d_]*[A-Za-z])\w{32,}\b"
)
_WINDOW = 12  # characters in common with the request that count as a quote of it


def cleaned(text: str, secrets: Iterable[Secret | None] = ()) -> str:
    """Return a foreign text without the secrets, without what looks like a key, and not longer than MAX_CHARS."""
    for secret in secrets:
        if secret is not None and secret.value:
            text = text.replace(secret.value, MASK)
    text = _LOOKS.sub(MASK, " ".join(text.split()))
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "..."


def unquoted(text: str, asked: Iterable[str]) -> str:
    """Return `text`, or a remark in its place where it repeats `_WINDOW` characters or more of what was asked."""
    windows = {text[i : i + _WINDOW] for i in range(max(len(text) - _WINDOW + 1, 0))}
    for source in asked:
        flat = " ".join(source.split())
        if any(window in flat for window in windows):
            return "its message is left out, as it quotes the request"
    return text


def texts_of(work: Job | EmbedJob) -> Iterable[str]:
    """Return what a request says: what an error must not repeat."""
    if isinstance(work, EmbedJob):
        return [text for text in work.texts if isinstance(text, str)]
    texts = [work.prompt] if isinstance(work.prompt, str) else []
    for message in work.messages or ():
        texts += [message.content, message.thinking, *(call.arguments for call in message.tool_calls)]
    return texts
