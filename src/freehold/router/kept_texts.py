"""Prompts and answers of routes that say `keep = "text"`: a file of its own beside the ledger, by the row's id.

Of whole answers to requests without any label, and of nothing else; the ledger itself has no text. The file can be
deleted at any time, and no request waits for it or fails because of it. Knows jobs and chunks; knows no label.
Path: handle.py -> KeptTexts.keep -> LEDGER-texts.sqlite
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import msgspec

from freehold import private
from freehold.providers.contract import Piece
from freehold.serving import Job
from freehold.types import ToolCall

_log = logging.getLogger("freehold.router")
_TABLE = """CREATE TABLE IF NOT EXISTS texts (
  id TEXT PRIMARY KEY, at REAL NOT NULL, route TEXT NOT NULL, target TEXT NOT NULL, prompt BLOB NOT NULL,
  answers BLOB NOT NULL) WITHOUT ROWID"""


def texts_beside(ledger: Path) -> Path:
    """Return the file of the texts of a ledger."""
    return ledger.with_name(f"{ledger.stem}-texts.sqlite")


class KeptTexts:
    """The file; it is made with the first text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def keep(self, id: str, at: float, route: str, target: str, job: Job, pieces: list[Piece]) -> None:
        """Write one request's texts. Called in a thread; what fails is logged, without the texts."""
        prompt = {"messages": job.messages, "prompt": job.prompt, "tools": job.tools}
        row = (id, at, route, target, _json(prompt), _json(_answers(pieces)))
        try:
            with self._lock:
                private.file(self.path)
                with closing(sqlite3.connect(self.path, timeout=5.0)) as db, db:
                    db.execute(_TABLE)
                    db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?, ?)", row)
        except (sqlite3.Error, OSError) as e:
            _log.warning("the texts of request %s were not kept: %s", id, type(e).__name__)


_json = msgspec.json.Encoder().encode


def _answers(pieces: list[Piece]) -> list[dict[str, object]]:
    """Return the text, thinking, calls and reason of each answer."""
    answers: dict[int, dict[str, object]] = {}
    calls: dict[int, list[ToolCall]] = {}
    for index, chunk in pieces:
        answer = answers.setdefault(index, {"text": "", "thinking": "", "refusal": "", "finish_reason": ""})
        for name in ("text", "thinking", "refusal"):
            answer[name] = f"{answer[name]}{getattr(chunk, name)}"
        for piece in chunk.tool_calls:
            piece.join(calls.setdefault(index, []))
        answer["finish_reason"] = chunk.finish_reason or answer["finish_reason"]
    return [{**answer, "tool_calls": calls.get(index, [])} for index, answer in sorted(answers.items())]
