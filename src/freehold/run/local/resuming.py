"""What was heard of a recording so far, in a private file: a process that died is continued after it.

A line a chunk, appended when the chunk has its text:

    DIGEST {"language": "en", "segments": [[start, end, text, tokens, ...], ...]}

DIGEST is of the journal's key, the line's number and the rest of the line. So a line that was cut short, or that is of
another recording, model or setting, ends what is taken over, and what follows it is heard again. The file goes when the
recording is done, or after KEPT_S. It has what was said, so it is its user's alone. Knows segments; knows no model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from freehold.base import private
from freehold.base.types import Segment, Word

KEPT_S = 7 * 86_400.0  # since the last line
MAX_BYTES = 64 << 20  # of a file: some hundred hours of speech
_DIGITS = 32  # of a line's digest, and of a file's name


class TranscriptJournal:
    """The journal of one recording at a time, in a folder of the data home. Use it as a context."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        """`fresh`: what was heard before is dropped."""
        self._folder, self._fresh = folder, fresh
        self._file: IO[bytes] | None = None
        self._path, self._key, self._lines = folder, "", 0
        self.taken = 0  # chunks that an earlier process heard of the recording

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def open(self, key: str, chunks: int) -> list[tuple[str, tuple[Segment, ...]]]:
        """Open the journal of a recording of `chunks` chunks; return the language and segments of those it has.

        `key` tells apart recordings, models and settings. Without a place to write, or where another process hears the
        same recording, nothing is kept.
        """
        self._close()
        self._key, self._lines, self.taken = key, 0, 0
        self._path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:_DIGITS]}.jsonl"
        try:
            private.folder(self._folder)
            self._drop_old()
            self._file = open(self._path, "a+b", opener=private.opener)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._fresh:
                self._file.truncate(0)
            heard = self._read(self._file, chunks)
        except OSError:
            self._close()
            return []
        self.taken = len(heard)
        return heard

    def add(self, language: str, segments: Sequence[Segment]) -> None:
        """Append a chunk's segments. Where they cannot be written, that and later chunks are not kept."""
        if self._file is None:
            return
        text = json.dumps({"language": language, "segments": [astuple(each) for each in segments]})
        try:
            self._file.write(f"{self._digest(text)} {text}\n".encode())
            self._file.flush()
            self._lines += 1
        except OSError:
            self._close()

    def remove(self) -> None:
        """Delete the file: the recording's text is where it belongs."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink()
        self._close()

    @property
    def kept(self) -> int:
        """How many chunks the file has."""
        return self._lines if self._file is not None else 0

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _read(self, file: IO[bytes], chunks: int) -> list[tuple[str, tuple[Segment, ...]]]:
        """Return what whole lines hold, and cut off what follows them."""
        file.seek(0)
        heard: list[tuple[str, tuple[Segment, ...]]] = []
        whole = 0
        for line in file.read(MAX_BYTES).splitlines(keepends=True):
            if len(heard) == chunks or (chunk := self._chunk(line)) is None:
                break
            heard.append(chunk)
            self._lines += 1
            whole += len(line)
        file.truncate(whole)
        return heard

    def _chunk(self, line: bytes) -> tuple[str, tuple[Segment, ...]] | None:
        """Return a chunk's language and segments; None for a line that is not what was written."""
        digest, _, text = line[:-1].decode("utf-8", "replace").partition(" ")
        if not line.endswith(b"\n") or digest != self._digest(text):
            return None
        chunk: dict[str, Any] = json.loads(text)
        return chunk["language"], tuple(map(_segment, chunk["segments"]))

    def _digest(self, text: str) -> str:
        return hashlib.sha256(f"{self._key}\n{self._lines}\n{text}".encode()).hexdigest()[:_DIGITS]

    def _drop_old(self) -> None:
        """Delete journals of recordings that were not continued for KEPT_S."""
        for path in self._folder.glob("*.jsonl"):
            with suppress(OSError):
                if time.time() - os.stat(path).st_mtime > KEPT_S:
                    path.unlink()


def _segment(fields: list[Any]) -> Segment:
    start, end, text, tokens, temperature, mean, ratio, no_speech, words = fields
    timed = tuple(Word(*word) for word in words)
    return Segment(start, end, text, tuple(tokens), temperature, mean, ratio, no_speech, timed)
