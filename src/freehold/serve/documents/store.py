"""One collection: an SQLite file with documents, chunks, an FTS5 index of words, and vectors as float16.

A document is put or removed in one transaction, so a process that is killed leaves whole documents alone. A search
multiplies by all vectors in memory: SQLite's extension for vectors cannot be loaded by the sqlite3 module of many
Pythons (ours among them), and without an index it reads the same bytes. Knows chunks and vectors; knows no file format
and no model.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from freehold.base import private
from freehold.base.errors import CapacityExceeded, StoreError, UsageError
from freehold.serve.documents.types import (
    F32,
    MAX_CHUNKS,
    MAX_DOCUMENTS,
    MAX_LABELS,
    DocumentChunk,
    TextPlace,
)

VERSION = 1  # of the tables and of `terms`
SUFFIX = ".collection"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAIT_S = 30.0  # for another process that writes
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL UNIQUE, name TEXT NOT NULL, form TEXT NOT NULL,
  digest TEXT NOT NULL, bytes INTEGER NOT NULL, modified INTEGER NOT NULL, added REAL NOT NULL,
  first INTEGER NOT NULL, chunks INTEGER NOT NULL, notes TEXT NOT NULL, attributes TEXT NOT NULL);
CREATE INDEX by_digest ON documents (digest);
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY, document INTEGER NOT NULL, text TEXT NOT NULL, context TEXT NOT NULL,
  page INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
  line INTEGER NOT NULL, last_line INTEGER NOT NULL);
CREATE INDEX by_document ON chunks (document);
CREATE TABLE vectors (document INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE uploads (
  id TEXT PRIMARY KEY, created REAL NOT NULL, filename TEXT NOT NULL, bytes INTEGER NOT NULL, status TEXT NOT NULL,
  code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', attributes TEXT NOT NULL DEFAULT '{}',
  chunking TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '');
CREATE VIRTUAL TABLE words USING fts5(text, context, content='', tokenize="porter unicode61 remove_diacritics 2");
"""  # the tokenizer is _TOKENIZER
# Scripts without spaces between words: each character is a word, and a run of them a phrase.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_EACH = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
MAX_WORDS = 64  # of a query
# Chunks that are ranked for the words of a query: each costs some 5 us, and the commonest words say the least.
MAX_RANKED = 2_000
_TOKENIZER = "porter unicode61 remove_diacritics 2"
# Words that nearly every English text has: looking them up costs time and orders nothing.
_COMMON = frozenset(
    word
    for line in (
        "a an and are as at be but by can do does for from had has have how i if in into is it its me my no not of on",
        "or our so than that the their them then there these they this to was we were what when where which who why",
        "will with would you your",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document of a collection. `digest`: SHA-256 of its bytes; `modified`: nanoseconds, of its file."""

    id: int
    source: str
    name: str
    form: str
    digest: str
    bytes: int
    modified: int
    added: float
    first: int
    chunks: int
    notes: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "source": self.source,
            "name": self.name,
            "form": self.form,
            "bytes": self.bytes,
            "digest": self.digest,
            "added": round(self.added, 3),
            "chunks": self.chunks,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class CollectionFacts:
    """What a collection says of itself. `width`: numbers of a vector, 0 before the first one."""

    id: str
    name: str
    created: float
    embedder: str
    width: int
    labels: tuple[str, ...]
    documents: int
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class UploadRow:
    """A file that a client of the HTTP API put into the collection. `status`: OpenAI's word; `code`: of its error."""

    id: str
    created: float
    filename: str
    bytes: int
    status: str
    code: str = ""
    message: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    chunking: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to be put. `vectors`: unit vectors, one a chunk."""

    source: str
    name: str
    form: str
    digest: str
    bytes: int
    modified: int
    chunks: Sequence[DocumentChunk]
    vectors: F32
    notes: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its number in the collection and the document that it is of."""

    id: int
    document: int
    chunk: DocumentChunk


def checked_name(name: str) -> str:
    """Return a collection's name. Raises UsageError for one that cannot name a file on every system."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is not a valid name of a collection",
            "use up to 64 letters, digits, dots, dashes and underscores, and begin with a letter or a digit",
        )
    return name


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels without repetitions. Raises UsageError."""
    listed = tuple(dict.fromkeys(labels))
    if wrong := next((label for label in listed if not _LABEL.fullmatch(label)), None):
        raise UsageError(f"{wrong[:80]!r} is not a valid label", "use letters, digits, dots, dashes")
    if len(listed) > MAX_LABELS:
        raise UsageError(f"a collection has {len(listed)} labels; the limit is {MAX_LABELS}", "use fewer")
    return listed


class CollectionStore:
    """One collection's file. Safe to use from many threads and processes; close it when done."""

    def __init__(
        self, path: Path, *, create: str = "", embedder: str = "", labels: Iterable[str] = ()
    ) -> None:
        """Open `path`, or create it under the name `create`. Raises UsageError, StoreError."""
        self.path = path
        if create:
            self._create(checked_name(create), embedder, checked_labels(labels))
        elif not path.is_file():
            raise UsageError(f"there is no collection {path.stem!r}", "freehold docs list lists them")
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with _named_errors(path):
            self._writes, self._reads = _connect(path), _connect(path)
            try:
                row = self._reads.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
            except BaseException:
                self.close()
                raise
        if row is None or row[0] != str(VERSION):
            self.close()
            raise StoreError(
                f"{path} is of version {row and row[0]}, and this Freehold reads {VERSION}",
                "remove it with freehold docs rm, and add the documents again",
            )
        self._matrix = _VectorMatrix()

    def _create(self, name: str, embedder: str, labels: tuple[str, ...]) -> None:
        private.folder(self.path.parent)
        part = self.path.with_name(f".{secrets.token_hex(8)}.new")
        private.file(part)
        facts = {
            "version": str(VERSION),
            "id": f"vs_{secrets.token_hex(12)}",
            "name": name,
            "created": repr(time.time()),
            "embedder": embedder,
            "width": "0",
            "labels": json.dumps(labels),
        }
        with _named_errors(self.path):
            connection = sqlite3.connect(part)
            try:
                connection.executescript(_SCHEMA)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
                connection.commit()
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
            try:
                link_once(part, self.path)
            except FileExistsError:
                raise UsageError(
                    f"there is a collection {name!r} already", "choose another name, or freehold docs rm"
                ) from None
            finally:
                for left in (part, part.with_name(f"{part.name}-wal"), part.with_name(f"{part.name}-shm")):
                    left.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._writes.close()
        self._reads.close()

    # --- facts

    def facts(self) -> CollectionFacts:
        """Return what the collection says of itself."""
        with self._reading() as db:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            row = "SELECT count(*), coalesce(sum(chunks), 0), coalesce(sum(bytes), 0) FROM documents"
            documents, chunks, size = db.execute(row).fetchone()
        return CollectionFacts(
            id=meta["id"],
            name=meta["name"],
            created=float(meta["created"]),
            embedder=meta["embedder"],
            width=int(meta["width"]),
            labels=tuple(json.loads(meta["labels"])),
            documents=documents,
            chunks=chunks,
            bytes=size,
        )

    def meta(self, key: str, default: str = "") -> str:
        """Return a value that `set_meta` kept."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def set_meta(self, **values: str) -> None:
        """Keep values beside the collection, or change its name, labels (JSON) or embedder."""
        with self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def documents(self) -> list[DocumentRecord]:
        """Return every document, by source."""
        with self._reading() as db:
            return [_record(row) for row in db.execute("SELECT * FROM documents ORDER BY source")]

    def document(self, source: str) -> DocumentRecord | None:
        """Return the document of a source, None if there is none."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM documents WHERE source = ?", (source,)).fetchone()
        return None if row is None else _record(row)

    def with_digest(self, digest: str) -> DocumentRecord | None:
        """Return a document with these bytes, under whatever source."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM documents WHERE digest = ? LIMIT 1", (digest,)).fetchone()
        return None if row is None else _record(row)

    def chunks_of(self, document: DocumentRecord) -> list[StoredChunk]:
        """Return a document's chunks in their order."""
        return self.chunks(range(document.first, document.first + document.chunks))

    # --- writing: a transaction a document

    def put(self, new: NewDocument) -> DocumentRecord:
        """Add a document, in place of the one with its source. Raises UsageError, CapacityExceeded, StoreError."""
        with self._writing() as db:
            return self._put(db, new)

    def _put(self, db: sqlite3.Connection, new: NewDocument) -> DocumentRecord:
        count, width = new.vectors.shape
        assert count == len(new.chunks)
        self._check_room(db, new, width)
        self._remove(db, new.source)
        (first,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM chunks").fetchone()
        row = (
            *(new.source, new.name, new.form, new.digest, new.bytes, new.modified, time.time(), first, count),
            *(json.dumps(list(new.notes)), json.dumps(dict(new.attributes))),
        )
        marks = ", ".join("?" * len(row))
        id = db.execute(f"INSERT INTO documents VALUES (NULL, {marks})", row).lastrowid
        assert id is not None
        rows = [_chunk_row(first + i, id, chunk) for i, chunk in enumerate(new.chunks)]
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        words = [(first + i, terms(chunk.text), terms(chunk.context)) for i, chunk in enumerate(new.chunks)]
        db.executemany("INSERT INTO words (rowid, text, context) VALUES (?, ?, ?)", words)
        db.execute("INSERT INTO vectors VALUES (?, ?)", (id, new.vectors.astype("<f2").tobytes()))
        return _record((id, *row))

    def _check_room(self, db: sqlite3.Connection, new: NewDocument, width: int) -> None:
        (known,) = db.execute("SELECT value FROM meta WHERE key = 'width'").fetchone()
        if new.chunks and known == "0":
            db.execute("UPDATE meta SET value = ? WHERE key = 'width'", (str(width),))
        elif new.chunks and int(known) != width:
            raise UsageError(
                f"the vectors have {width} numbers, and those of this collection {known}",
                "use the embedder that the collection was created with",
            )
        documents, chunks = db.execute("SELECT count(*), coalesce(sum(chunks), 0) FROM documents").fetchone()
        if documents >= MAX_DOCUMENTS or chunks + len(new.chunks) > MAX_CHUNKS:
            raise CapacityExceeded(
                f"a collection has at most {MAX_DOCUMENTS:,} documents and {MAX_CHUNKS:,} chunks",
                "put the other documents into another collection",
            )

    def remove(self, source: str) -> bool:
        """Remove a document; return whether there was one."""
        with self._writing() as db:
            return self._remove(db, source)

    def _remove(self, db: sqlite3.Connection, source: str) -> bool:
        row = db.execute("SELECT id, first, chunks FROM documents WHERE source = ?", (source,)).fetchone()
        if row is None:
            return False
        id, first, count = row
        span = (first, first + count - 1)
        old = db.execute("SELECT id, text, context FROM chunks WHERE id BETWEEN ? AND ?", span).fetchall()
        # An index without its texts forgets words only when it is given them again.
        db.executemany(
            "INSERT INTO words (words, rowid, text, context) VALUES ('delete', ?, ?, ?)",
            [(number, terms(text), terms(context)) for number, text, context in old],
        )
        db.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", span)
        db.execute("DELETE FROM vectors WHERE document = ?", (id,))
        db.execute("DELETE FROM documents WHERE id = ?", (id,))
        return True

    # --- uploads of the HTTP API: a row each, from the request on until it is removed

    def uploads(self, batch: str = "") -> list[UploadRow]:
        """Return the uploads, or those of a batch, the newest first."""
        sql = "SELECT * FROM uploads WHERE ? IN ('', batch) ORDER BY created DESC, id DESC"
        with self._reading() as db:
            return [_upload(row) for row in db.execute(sql, (batch,))]

    def upload(self, id: str) -> UploadRow | None:
        """Return one, None where there is none."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM uploads WHERE id = ?", (id,)).fetchone()
        return None if row is None else _upload(row)

    def put_upload(self, row: UploadRow, chunking: str = "", batch: str = "") -> None:
        """Note a file that is to be indexed, in place of an earlier row of its id."""
        with self._writing() as db:
            values = (row.id, row.created, row.filename, row.bytes, row.status, row.code, row.message)
            more = (json.dumps(row.attributes), chunking, batch)
            db.execute(
                "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, *more)
            )

    def end_upload(self, id: str, status: str, code: str = "", message: str = "") -> bool:
        """End an upload that is in progress; return whether it was."""
        sql = "UPDATE uploads SET status = ?, code = ?, message = ? WHERE id = ? AND status = 'in_progress'"
        with self._writing() as db:
            return db.execute(sql, (status, code, message, id)).rowcount > 0

    def put_if_wanted(self, new: NewDocument, notes: Sequence[str] = ()) -> bool:
        """Put the document of an upload that is still in progress, and end that, together; return whether it was."""
        with self._writing() as db:
            row = db.execute("SELECT status, attributes FROM uploads WHERE id = ?", (new.source,)).fetchone()
            if row is None or row[0] != "in_progress":
                return False
            self._put(db, replace(new, attributes=json.loads(row[1]), notes=(*new.notes, *notes)))
            db.execute("UPDATE uploads SET status = 'completed' WHERE id = ?", (new.source,))
            return True

    def drop_upload(self, id: str) -> bool:
        """Remove an upload and its document; return whether there was one."""
        with self._writing() as db:
            self._remove(db, id)
            return db.execute("DELETE FROM uploads WHERE id = ?", (id,)).rowcount > 0

    def set_attributes(self, id: str, attributes: Mapping[str, Any]) -> None:
        """Change the attributes of an upload and of its document."""
        with self._writing() as db:
            values = (json.dumps(dict(attributes)), id)
            db.execute("UPDATE documents SET attributes = ? WHERE source = ?", values)
            db.execute("UPDATE uploads SET attributes = ? WHERE id = ?", values)

    # --- searching

    def by_words(self, text: str, limit: int, documents: Sequence[int] | None = None) -> list[int]:
        """Return chunks that have words of `text`, the best by BM25 first. `documents`: those that count; None: all."""
        words = query_words(text)
        if not words:
            return []
        # A heading counts half of what the text below it does: it is repeated in each chunk of its section.
        matches = "SELECT rowid AS id, bm25(words, 1.0, 0.5) AS score FROM words WHERE words MATCH ?"
        values = list[str]()
        if documents is not None:
            matches += " AND rowid IN (SELECT c.id FROM chunks c JOIN json_each(?) j ON c.document = j.value)"
            values.append(json.dumps(list(documents)))
        sql = f"SELECT id FROM ({matches} LIMIT {MAX_RANKED}) ORDER BY score, id LIMIT ?"
        with self._reading() as db:
            query = _cheap_query(db, [f'"{terms(word).strip()}"' for word in words])
            return [row[0] for row in db.execute(sql, (query, *values, limit))] if query else []

    def spread(self, words: Sequence[str]) -> list[int]:
        """Return in how many chunks each word is."""
        sql = "SELECT count(*) FROM words WHERE words MATCH ?"
        with self._reading() as db:
            return [db.execute(sql, (f'"{terms(word).strip()}"',)).fetchone()[0] for word in words]

    def nearest_cosine(self, vector: F32) -> float:
        """Return the product of a unit vector with that of the nearest chunk; -1 where there is none."""
        with self._reading() as db:
            self._matrix.refresh(db)
            return self._matrix.largest(vector)

    def by_vector(self, vector: F32, limit: int, documents: Sequence[int] | None = None) -> list[int]:
        """Return the chunks nearest to a unit vector, float32 [width], the nearest first."""
        with self._reading() as db:
            self._matrix.refresh(db)
            return self._matrix.nearest(vector, limit, documents)

    def chunks(self, ids: Iterable[int]) -> list[StoredChunk]:
        """Return chunks by their numbers, in the order of `ids`; those that are gone are left out."""
        wanted = list(ids)
        sql = "SELECT c.* FROM json_each(?) j JOIN chunks c ON c.id = j.value"
        with self._reading() as db:
            by_id = {row[0]: _stored(row) for row in db.execute(sql, (json.dumps(wanted),))}
        return [by_id[id] for id in wanted if id in by_id]

    def documents_by_id(self, ids: Iterable[int]) -> dict[int, DocumentRecord]:
        """Return documents by their numbers."""
        sql = "SELECT d.* FROM json_each(?) j JOIN documents d ON d.id = j.value"
        with self._reading() as db:
            return {row[0]: _record(row) for row in db.execute(sql, (json.dumps(list(set(ids))),))}

    # --- connections

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock, _named_errors(self.path):
            yield self._reads

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection within a transaction, which is undone by whatever is raised."""
        with self._write_lock, _named_errors(self.path):
            self._writes.execute("BEGIN IMMEDIATE")
            try:
                yield self._writes
            except BaseException:
                self._writes.execute("ROLLBACK")
                raise
            self._writes.execute("COMMIT")


class _VectorMatrix:
    """The vectors of all chunks, float32 in memory: rows of removed documents stay until half of them are such."""

    def __init__(self) -> None:
        self._rows = np.empty((0, 0), np.float32)
        self._ids = np.empty(0, np.int64)  # of the chunk of each row; 0: removed
        self._documents = np.empty(0, np.int64)
        self._used = self._dead = 0
        self._spans: dict[int, slice] = {}  # by document
        self._version = -1

    def refresh(self, db: sqlite3.Connection) -> None:
        """Take in what was added and removed since the last search."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return
        known = dict(db.execute("SELECT id, first FROM documents WHERE chunks > 0"))
        for id in [id for id in self._spans if id not in known]:
            span = self._spans.pop(id)
            self._ids[span] = 0
            self._dead += span.stop - span.start
        if self._dead * 2 > self._used:
            self._compact()
        missing = sorted(id for id in known if id not in self._spans)
        sql = "SELECT v.document, v.rows FROM json_each(?) j JOIN vectors v ON v.document = j.value"
        (width,) = db.execute("SELECT value FROM meta WHERE key = 'width'").fetchone()
        for id, blob in db.execute(sql, (json.dumps(missing),)):
            self._append(id, known[id], np.frombuffer(blob, "<f2").reshape(-1, int(width)))
        self._version = version

    def nearest(self, vector: F32, limit: int, documents: Sequence[int] | None) -> list[int]:
        """Return the ids of the chunks whose vectors have the largest products with `vector`."""
        if not self._used:
            return []
        scores, ids = self._products(vector), self._ids[: self._used]
        if documents is not None:
            scores[~np.isin(self._documents[: self._used], np.asarray(documents, np.int64))] = -np.inf
        count = min(limit, self._used)
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.lexsort((ids[best], -scores[best]))]
        return [int(ids[i]) for i in best if scores[i] > -np.inf]

    def largest(self, vector: F32) -> float:
        """Return the largest of those products, at least -1."""
        return float(max(-1.0, self._products(vector).max(initial=-1.0))) if self._used else -1.0

    def _products(self, vector: F32) -> F32:
        """Return the product of each row with `vector`; of rows of removed documents, minus infinity."""
        products = self._rows[: self._used] @ vector.astype(np.float32)
        products[self._ids[: self._used] == 0] = -np.inf
        return np.asarray(products, np.float32)

    def _append(self, document: int, first: int, vectors: NDArray[np.float16]) -> None:
        count, width = vectors.shape
        if self._used + count > len(self._rows):
            room = max(1024, self._used + count, int(len(self._rows) * 1.5))
            self._rows = _grown(self._rows.reshape(-1, width), room)
            self._ids, self._documents = _grown(self._ids, room), _grown(self._documents, room)
        span = slice(self._used, self._used + count)
        self._rows[span], self._documents[span] = vectors, document
        self._ids[span] = np.arange(first, first + count)
        self._spans[document] = span
        self._used += count

    def _compact(self) -> None:
        keep = np.flatnonzero(self._ids[: self._used])
        self._rows, self._ids = self._rows[keep], self._ids[keep]
        self._documents = self._documents[keep]
        self._used, self._dead, at = len(keep), 0, 0
        for id, span in sorted(self._spans.items(), key=lambda each: each[1].start):
            size = span.stop - span.start
            self._spans[id] = slice(at, at + size)
            at += size


def link_once(part: Path, path: Path) -> None:
    """Give a whole file its name. Raises FileExistsError where another process was first."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a disk without links: the two steps leave a moment for another process
        if path.exists():
            raise FileExistsError(path) from None
        part.rename(path)


def _grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    larger = np.empty((rows, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


def terms(text: str) -> str:
    """Return a text for the index of words: characters of scripts without spaces are words of their own."""
    return _EACH.sub(r" \g<0> ", text.replace("\0", " "))


def query_words(text: str) -> list[str]:
    """Return the telling words of a question, each once. They go into a query in quotes: none is an operator."""
    words = list(dict.fromkeys(word.casefold() for word in _WORD.findall(text)))
    return ([word for word in words if word not in _COMMON] or words)[:MAX_WORDS]


def _cheap_query(db: sqlite3.Connection, words: Sequence[str]) -> str:
    """Return an FTS5 query of a question's words that at most MAX_RANKED chunks match, "" where none has any.

    Any of the words, from the rarest one on; where even that one is in more chunks, all of the rarest ones together.
    """

    def count(query: str) -> int:
        sql = f"SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT {MAX_RANKED + 1})"
        return int(db.execute(sql, (query,)).fetchone()[0])

    counts = sorted((number, i) for i, word in enumerate(words) if (number := count(word)))
    kept: list[str] = []
    total = 0
    for number, i in counts:
        total += number
        if total > MAX_RANKED:
            break
        kept.append(words[i])
    if kept or not counts:
        return " OR ".join(kept)
    query = ""
    for _, i in counts:
        narrower = f"{query} AND {words[i]}" if query else words[i]
        matches = count(narrower)
        query = narrower if matches else query
        if 0 < matches <= MAX_RANKED:
            break
    return query


def _chunk_row(id: int, document: int, chunk: DocumentChunk) -> tuple[Any, ...]:
    p = chunk.place
    return (id, document, chunk.text, chunk.context, p.page, p.start, p.end, p.line, p.last_line)


def _stored(row: Sequence[Any]) -> StoredChunk:
    id, document, text, context, page, start, end, line, last_line = row
    return StoredChunk(
        id, document, DocumentChunk(text, TextPlace(start, end, line, last_line, page), context)
    )


def _upload(row: Sequence[Any]) -> UploadRow:
    *plain, attributes, chunking, batch = row
    return UploadRow(*plain, attributes=json.loads(attributes), chunking=chunking, batch=batch)


def _record(row: Sequence[Any]) -> DocumentRecord:
    *plain, notes, attributes = row
    return DocumentRecord(*plain, notes=tuple(json.loads(notes)), attributes=json.loads(attributes))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's failures into named ones."""
    try:
        yield
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorname", "") or ""
        if code.startswith("SQLITE_FULL"):
            raise CapacityExceeded(
                f"the disk of {path} is full; the collection is whole", "free space"
            ) from e
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            message = f"{path} was locked by another process for {_WAIT_S:g} s"
            raise StoreError(message, "try again when the other process has ended") from e
        if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "no such table" in str(e):
            raise StoreError(f"{path} is not a collection, or was damaged: {e}", "remove it") from e
        raise StoreError(f"{path} cannot be read or written: {e}") from e
