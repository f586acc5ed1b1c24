"""A collection as a whole: files added, brought up to date, removed and searched.

Knows folders, digests and the order: read, cut, embed, put. Knows no format and no model: an embedder comes with it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.regular import read_regular
from freehold.base.stopping import check_stopped
from freehold.serve.documents.chunking import cut
from freehold.serve.documents.citing import answer_evidence
from freehold.serve.documents.office import Package
from freehold.serve.documents.reading import ReaderProcesses, read_document
from freehold.serve.documents.searching import (
    DEFAULT_BUDGET,
    DEFAULT_LIMIT,
    SearchMode,
    SearchQuery,
    checked_query,
    search_store,
)
from freehold.serve.documents.store import (
    SUFFIX,
    CollectionFacts,
    CollectionStore,
    DocumentRecord,
    NewDocument,
    checked_name,
)
from freehold.serve.documents.texts import form_of
from freehold.serve.documents.types import (
    F32,
    MAX_DOCUMENTS,
    MAX_FILE,
    DocumentChunk,
    DocumentPassage,
    Embeds,
    Reranks,
    SearchResult,
)

READERS = 2  # documents that are read while others are embedded
TOGETHER = 128  # chunks that are embedded together, about: an encoder's batches take texts of like length
_LEFT_OUT = {
    "node_modules",
    "__pycache__",
    "site-packages",
}  # folders, besides those whose names begin with a dot
_IN_ARCHIVE = "!/"  # between an archive's path and a member's

OnDocument = Callable[[int, int, str], None]  # documents done, in all, and the one that is being added


@dataclass(slots=True)
class AddReport:
    """What came of an addition. `skipped`: names with the reason; `copies`: names whose bytes are there already."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    chunks: int = 0
    cut: int = 0  # chunks that the embedder had no room for to their end

    def shown(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "added": self.added,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "copies": [{"name": name, "of": of} for name, of in self.copies],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "chunks": self.chunks,
            "cut": self.cut,
        }


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A document to be added. `read`: returns its bytes; raises OSError and UsageError."""

    source: str
    name: str
    read: Callable[[], bytes]
    modified: int = 0
    form: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document that was read and cut, and waits for its vectors."""

    file: DocumentFile
    digest: str
    bytes: int
    form: str
    notes: tuple[str, ...]
    chunks: list[DocumentChunk]


def collections_folder(home: Path, tenant_folder: str = "") -> Path:
    """Return where collections are stored: the owner's, or those of a key by the name of its folder."""
    return home / "documents" / "keys" / tenant_folder if tenant_folder else home / "documents"


def collection_path(folder: Path, name: str) -> Path:
    """Return the file of a collection. Raises UsageError for a name that is not valid."""
    return folder / f"{checked_name(name)}{SUFFIX}"


def collection_names(folder: Path) -> list[str]:
    """Return the names of the collections in a folder."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


class DocumentCollection:
    """A store with the embedder that its vectors are of."""

    def __init__(self, store: CollectionStore, embedder: Embeds, reranker: Reranks | None = None) -> None:
        """Raises UsageError where the collection's vectors are of another embedder."""
        self.store, self.embedder, self.reranker = store, embedder, reranker
        known = store.facts().embedder
        if known and known != embedder.name:
            raise UsageError(
                f"the collection was made with {known}, and vectors of {embedder.name} cannot be compared with its own",
                f"leave the embedder out, or make another collection with {embedder.name}",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.store.close()

    @property
    def facts(self) -> CollectionFacts:
        """Name, embedder, labels and counts."""
        return self.store.facts()

    def documents(self) -> list[DocumentRecord]:
        """Return every document."""
        return self.store.documents()

    def add(self, *paths: str | Path, on_document: OnDocument | None = None) -> AddReport:
        """Add files, and what is in folders and zip archives; what is unchanged is passed over.

        A document that cannot be read is named in the report with the reason. Raises UsageError for a path that does
        not exist, and what the store and the embedder raise; what was added until then stays.
        """
        report = AddReport()
        files = list(_listed(paths, report))
        self._keep_roots(paths)
        self._add(files, report, on_document)
        return report

    def add_files(self, files: Sequence[DocumentFile], on_document: OnDocument | None = None) -> AddReport:
        """Add documents that are no files of a folder, such as uploads."""
        report = AddReport()
        self._add(files, report, on_document, copies=True)
        return report

    def update(self, on_document: OnDocument | None = None) -> AddReport:
        """Bring the collection up to date with the folders and files that were added: new, changed and gone ones."""
        report = AddReport()
        roots = json.loads(self.store.meta("roots", "[]"))
        # A root that is gone with the folder around it may be a disk that is not there now: its documents stay.
        away = [root for root in roots if not os.path.lexists(os.path.dirname(root))]
        roots = [root for root in roots if root not in away]
        report.skipped += [
            (root, "it is not there now; freehold docs rm removes its documents") for root in away
        ]
        files = list(_listed([root for root in roots if os.path.lexists(root)], report))
        present = {file.source for file in files} | {source for source, _ in report.skipped}
        for record in self.store.documents():
            if record.source not in present and _is_below(record.source, roots):
                self.store.remove(record.source)
                report.removed.append(record.name)
        self._add(files, report, on_document)
        return report

    def remove(self, name: str) -> list[str]:
        """Remove a document by its name, path or id, or all below a folder; return the names. Raises UsageError."""
        path = os.path.abspath(name)
        gone: list[str] = []
        for record in self.store.documents():
            below = record.source.startswith((path + os.sep, path + _IN_ARCHIVE))
            if name in (record.source, record.name) or record.source == path or below:
                self.store.remove(record.source)
                gone.append(record.name)
        if not gone:
            raise UsageError(
                f"the collection has no document {name[:200]!r}", "freehold docs show lists them"
            )
        roots = [root for root in json.loads(self.store.meta("roots", "[]")) if root != path]
        self.store.set_meta(roots=json.dumps(roots))
        return gone

    def search(
        self,
        text: str,
        limit: int = DEFAULT_LIMIT,
        *,
        budget: int = DEFAULT_BUDGET,
        mode: SearchMode = "hybrid",
    ) -> SearchResult:
        """Return passages that match `text`, the best first, of together at most `budget` tokens. Raises UsageError."""
        query = self._query(text, limit, mode)
        return search_store(self.store, query, limit=limit, budget=budget, reranker=self.reranker)

    def sources(
        self, question: str, limit: int = DEFAULT_LIMIT, *, budget: int = DEFAULT_BUDGET
    ) -> SearchResult:
        """Return what `search` does, with the evidence that an answer is there. Raises UsageError."""
        query = self._query(question, limit, "hybrid")
        result = search_store(self.store, query, limit=limit, budget=budget, reranker=self.reranker)
        return replace(result, evidence=answer_evidence(self.store, query, result.passages))

    def _query(self, text: str, limit: int, mode: SearchMode) -> SearchQuery:
        checked_query(text, limit)
        return SearchQuery(text, None if mode == "words" else self.embedder.embed([text])[0], mode)

    # --- the order of an addition

    def _add(
        self,
        files: Sequence[DocumentFile],
        report: AddReport,
        on_document: OnDocument | None,
        *,
        copies: bool = False,
    ) -> None:
        """Read ahead in threads, embed chunks of several documents together, put each in its own transaction."""
        waiting: list[CutDocument] = []
        done = 0
        for file, document in self._cut_ahead(files, report, copies):
            check_stopped()
            if on_document is not None:
                on_document(done, len(files), file.name)
            done += 1
            if document is not None:
                waiting.append(document)
            if sum(len(each.chunks) for each in waiting) >= TOGETHER:
                self._put(waiting, report)
                waiting = []
        self._put(waiting, report)
        if on_document is not None:
            on_document(done, len(files), "")

    def _put(self, documents: Sequence[CutDocument], report: AddReport) -> None:
        if not documents:
            return
        texts = [chunk.indexed for document in documents for chunk in document.chunks]
        vectors = self.embedder.embed(texts)
        at = 0
        for document in documents:
            rows = vectors[at : at + len(document.chunks)]
            at += len(document.chunks)
            known = self.store.document(document.file.source)
            self.store.put(new_document(document, rows))
            (report.added if known is None else report.changed).append(document.file.name)
            report.chunks += len(document.chunks)

    def _cut_ahead(
        self, files: Sequence[DocumentFile], report: AddReport, copies: bool
    ) -> Iterator[tuple[DocumentFile, CutDocument | None]]:
        """Yield each file with its document, None for one that is there already or cannot be read."""
        readers, rest = ReaderProcesses(), iter(files)
        ahead: deque[tuple[DocumentFile, Future[_Outcome]]] = deque()
        coming: dict[str, str] = {}  # names of what is on its way, by digest
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="freehold-documents")
        try:
            while True:
                while len(ahead) < 2 * READERS and (file := next(rest, None)) is not None:
                    ahead.append((file, pool.submit(_read_and_cut, file, self.store, readers)))
                if not ahead:
                    return
                file, future = ahead.popleft()
                outcome = future.result()
                if outcome.document is not None and not copies:
                    outcome = self._unless_copied(outcome.document, coming)
                outcome.report(file, report)
                yield file, outcome.document
        finally:
            readers.end()
            pool.shutdown(wait=True, cancel_futures=True)

    def _unless_copied(self, document: CutDocument, coming: dict[str, str]) -> _Outcome:
        """Return the outcome of a document, which is left out where its bytes are there under another name."""
        file = document.file
        other = coming.setdefault(document.digest, file.name)
        same = self.store.with_digest(document.digest)
        if same is not None and same.source != file.source and _is_there(same.source):
            other = same.name
        if other == file.name:
            return _Outcome(document)
        self.store.remove(file.source)  # what it was before
        return _Outcome(copy_of=other)

    def _keep_roots(self, paths: Iterable[str | Path]) -> None:
        roots = json.loads(self.store.meta("roots", "[]"))
        roots += [path for path in dict.fromkeys(_absolute(paths)) if path not in roots]
        self.store.set_meta(roots=json.dumps(roots[:10_000]))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What reading a file came to: a document, or why there is none."""

    document: CutDocument | None = None
    unchanged: bool = False
    copy_of: str = ""
    reason: str = ""

    def report(self, file: DocumentFile, report: AddReport) -> None:
        report.unchanged += self.unchanged
        if self.copy_of:
            report.copies.append((file.name, self.copy_of))
        if self.reason:
            report.skipped.append((file.name, self.reason))


def _read_and_cut(file: DocumentFile, store: CollectionStore, readers: ReaderProcesses) -> _Outcome:
    try:
        data = file.read()
        digest = hashlib.sha256(data).hexdigest()
        known = store.document(file.source)
        if known is not None and known.digest == digest:
            return _Outcome(unchanged=True)
        return _Outcome(cut_document(file, data, digest, readers))
    except OSError as e:
        return _Outcome(reason=_why(e))
    except FreeholdError as e:
        return _Outcome(reason=f"{e.message}: {e.hint}" if e.hint else e.message)


def cut_document(
    file: DocumentFile, data: bytes, digest: str = "", readers: ReaderProcesses | None = None, size: int = 0
) -> CutDocument:
    """Read a document and cut it into chunks; `size`: characters of one, 0 for the usual. Raises UsageError."""
    parsed = read_document(file.name, data, file.form, readers)
    chunks = cut(parsed.blocks, file.name, size) if size else cut(parsed.blocks, file.name)
    digest = digest or hashlib.sha256(data).hexdigest()
    return CutDocument(file, digest, len(data), parsed.form, parsed.notes, chunks)


def new_document(document: CutDocument, vectors: F32) -> NewDocument:
    """Return a document as the store takes it."""
    file = document.file
    return NewDocument(
        source=file.source,
        name=file.name,
        form=document.form,
        digest=document.digest,
        bytes=document.bytes,
        modified=file.modified,
        chunks=document.chunks,
        vectors=np.asarray(vectors, np.float32),
        notes=document.notes,
        attributes=file.attributes,
    )


# --- files of folders and archives ------------------------------------------------------------------


def _listed(paths: Iterable[str | Path], report: AddReport) -> Iterator[DocumentFile]:
    """Yield the files of paths, each once. Raises UsageError for a path that does not exist, and for too many."""
    known: set[str] = set()
    for path in _absolute(paths):
        if not os.path.lexists(path):
            raise UsageError(f"{path} does not exist", "give the path of a file or a folder")
        if os.path.isdir(path):
            files = _of_folder(path, report)
        elif path.lower().endswith(".zip"):
            files = _of_archive(path)
        else:
            files = iter([_file(path, os.path.basename(path))])
        for file in files:
            if file.source not in known:
                known.add(file.source)
                yield file
        if len(known) > MAX_DOCUMENTS:
            raise UsageError(f"there are more than {MAX_DOCUMENTS:,} documents", "add parts of the folder")


def _of_folder(root: str, report: AddReport) -> Iterator[DocumentFile]:
    """Yield the files below a folder that have a known form. Links that lead out of it are not followed."""
    parent, real = os.path.dirname(root), os.path.realpath(root)
    for folder, folders, names in os.walk(root, onerror=None):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LEFT_OUT)
        for name in sorted(names):
            path = os.path.join(folder, name)
            shown = os.path.relpath(path, parent)
            if name.startswith(".") or not form_of(name):
                continue
            if not _encodes(path):
                report.skipped.append((ascii(shown), "its name is not valid UTF-8"))
            elif os.path.islink(path) and not os.path.realpath(path).startswith(real + os.sep):
                report.skipped.append((shown, "it is a link that leads out of the folder"))
            else:
                yield _file(path, shown)


def _of_archive(path: str) -> Iterator[DocumentFile]:
    """Yield the members of a zip archive that have a known form. Raises UsageError for one that cannot be read."""
    try:
        package = Package(read_regular(path, MAX_FILE), "zip")
    except OSError as e:
        raise UsageError(f"{path}: {_why(e)}", "unpack it") from None
    base = os.path.basename(path)
    for name, info in sorted(package.names.items()):
        parts = name.split("/")
        if (
            info.is_dir()
            or any(part.startswith(".") for part in parts)
            or not form_of(parts[-1])
            or not _encodes(name)
        ):
            continue

        def read(name: str = name) -> bytes:
            return package.read(name)

        yield DocumentFile(f"{path}{_IN_ARCHIVE}{name}", f"{base}/{name}", read)


def _file(path: str, name: str) -> DocumentFile:
    def read() -> bytes:
        return read_regular(path, MAX_FILE)

    try:
        modified = os.stat(path).st_mtime_ns
    except OSError:
        modified = 0
    return DocumentFile(path, name, read, modified)


def _absolute(paths: Iterable[str | Path]) -> list[str]:
    return [os.path.abspath(os.path.expanduser(path)) for path in paths]


def _is_there(source: str) -> bool:
    return os.path.lexists(source.partition(_IN_ARCHIVE)[0])


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_below(source: str, roots: Iterable[str]) -> bool:
    return any(source == root or source.startswith((root + os.sep, root + _IN_ARCHIVE)) for root in roots)


def _why(e: OSError) -> str:
    if e.errno == errno.EFBIG:
        return f"it has more than {MAX_FILE:,} bytes: split it into several"
    if e.errno == errno.EINVAL:
        return "it is not a plain file"
    return (e.strerror or str(e)).lower()


def search(collection: DocumentCollection, text: str, limit: int = DEFAULT_LIMIT) -> list[DocumentPassage]:
    """Return the passages of a collection that match `text`, the best first. Raises UsageError."""
    return list(collection.search(text, limit).passages)
