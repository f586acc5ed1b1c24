"""Finds fenced code blocks in answers, in time linear in the answer: no pattern here can backtrack over it.

Knows text alone.
Path: judges, tasks.instructions -> only_fenced, first_fenced
"""

from __future__ import annotations

import re

_MARK = "```"
_OPENS = re.compile(r"```(?:python|py)?[ \t]*\n")
_CLOSES = re.compile(r"\n[ \t]*```")


def only_fenced(text: str) -> str | None:
    """Return the content of a text that is one fenced block, plain or of JSON; None if it is something else."""
    text = text.strip()
    if len(text) < 2 * len(_MARK) or not (text.startswith(_MARK) and text.endswith(_MARK)):
        return None
    first, newline, rest = text[len(_MARK) : -len(_MARK)].partition("\n")
    body, _, last = rest.rpartition("\n")
    if not newline or first.strip() not in ("", "json") or last.strip():
        return None
    return body


def first_fenced(text: str) -> str | None:
    """Return the code of a text's first block, plain or of Python; None if there is none, or it has no end."""
    opening = _OPENS.search(text)
    closing = _CLOSES.search(text, opening.end()) if opening else None
    return text[opening.end() : closing.start()] if opening and closing else None
