"""`freehold docs add|list|show|update|rm|search`: collections of documents on this machine.

Knows options and output; serve/documents has the work. The embedder is loaded in this process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import printable
from freehold.cli.progress import StatusLine
from freehold.cli.shared import held_or_fetched, json_option, offline_option, pairs, table, with_offline
from freehold.run.store import Store
from freehold.run.store.space import human
from freehold.serve.documents.types import DEFAULT_EMBEDDER, MAX_RESULTS

if TYPE_CHECKING:
    from freehold.serve.documents.collection import AddReport, OnDocument
    from freehold.serve.documents.local import Collection

SCHEMA = 1
_KEPT = "what was added stays; the same command adds the rest"
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores."
)


@click.group("docs")
def command() -> None:
    """Keep collections of your documents, search them, and ask them with `freehold run --docs NAME`.

    A collection is one file on this machine. Text, Markdown, HTML, source code, CSV, docx, xlsx, pptx and epub are
    read; with freehold[documents] also PDF.
    """


@command.command("add", epilog="Example: freehold docs add ~/notes --to notes")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option(
    "--to", "name", required=True, metavar="NAME", help="The collection; it is created if it does not exist."
)
@click.option(
    "--embedder",
    metavar="MODEL",
    help=f"Embedding model of a new collection. Default: {DEFAULT_EMBEDDER}.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="For a new collection: a gateway's label for its texts; repeatable.",
)
@threads_option
@offline_option
@json_option
@click.pass_context
def add(
    ctx: click.Context,
    paths: tuple[str, ...],
    name: str,
    embedder: str | None,
    labels: tuple[str, ...],
    threads: int | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Add files, and the documents in folders and zip archives, to a collection.

    Unchanged documents are skipped, so the same command continues after Ctrl-C. A document that
    cannot be read is reported and skipped. Hidden files and folders are left out.
    """
    from freehold.serve.documents.collection import collection_path, collections_folder
    from freehold.serve.documents.local import Collection, LocalEmbedder

    settings: Settings = with_offline(ctx.obj, offline)
    for path in paths:
        if not Path(path).expanduser().exists():
            raise UsageError(f"{path} does not exist", "give the path of a file or a folder")
    is_new = not collection_path(collections_folder(settings.home), name).is_file()
    if labels and not is_new:
        raise UsageError(
            f"{name} exists, and --label is for a new collection", "leave it out, or rm the collection"
        )
    if is_new:  # a model that cannot be fetched leaves no empty collection
        held_or_fetched(Store(settings), embedder or DEFAULT_EMBEDDER)
    with Collection(name, embedder=embedder or "", labels=labels, home=settings.home) as collection:
        if isinstance(collection.embedder, LocalEmbedder):
            held_or_fetched(Store(settings), collection.embedder.name)
            collection.embedder = LocalEmbedder(collection.embedder.name, threads=threads)
        with _progress() as on_document:
            report = collection.add(*(Path(p).expanduser() for p in paths), on_document=on_document)
        _report(collection, report, as_json)
    nothing = not (report.added or report.changed or report.unchanged or report.copies)
    ctx.exit(1 if nothing and report.skipped else 0)


@command.command("list", epilog="Example: freehold docs list")
@json_option
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """List the collections."""
    from freehold.serve.documents.collection import collection_path, collections_folder
    from freehold.serve.documents.local import list_collections
    from freehold.serve.documents.store import CollectionStore

    rows: list[dict[str, Any]] = []
    folder = collections_folder(settings.home)
    for name in list_collections(settings.home):
        path = collection_path(folder, name)
        with CollectionStore(path) as store:
            facts = store.facts()
        rows.append(
            {
                "name": name,
                "documents": facts.documents,
                "chunks": facts.chunks,
                "bytes": path.stat().st_size,
                "embedder": facts.embedder,
                "labels": list(facts.labels),
            }
        )
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "collections": rows}))
        return
    if not rows:
        click.echo("no collections; freehold docs add PATH --to NAME makes one", err=True)
        return
    cells: list[tuple[str, ...]] = []
    for r in rows:
        counts = (f"{r['documents']:,}", f"{r['chunks']:,}", human(r["bytes"]))
        cells.append((r["name"], *counts, r["embedder"], ", ".join(r["labels"])))
    table(("NAME", "DOCUMENTS", "CHUNKS", "SIZE", "EMBEDDER", "LABELS"), cells, right=(1, 2, 3))


@command.command("show", epilog="Example: freehold docs show notes")
@click.argument("name")
@click.argument("document", required=False)
@json_option
@click.pass_obj
def show(settings: Settings, name: str, document: str | None, as_json: bool) -> None:
    """Show a collection and its documents, or the passages of DOCUMENT with their places."""
    with _opened(settings, name) as collection:
        if document is not None:
            return _show_document(collection, document, as_json)
        facts, records = collection.facts, collection.documents()
        if as_json:
            own = {
                "name": facts.name,
                "id": facts.id,
                "embedder": facts.embedder,
                "labels": list(facts.labels),
            }
            counts = {"chunks": facts.chunks, "documents": [record.shown() for record in records]}
            click.echo(json.dumps({"schema": SCHEMA, **own, **counts}))
            return None
        pairs(
            [
                ("name", facts.name),
                ("documents", f"{facts.documents:,} of {human(facts.bytes)}, {facts.chunks:,} chunks"),
                ("embedder", facts.embedder),
                ("labels", ", ".join(facts.labels) or "none"),
                ("created", time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.created))),
                ("file", str(collection.store.path)),
            ]
        )
        rows = [(r.name, r.form, f"{r.chunks:,}", human(r.bytes), "; ".join(r.notes)) for r in records]
        if rows:
            click.echo()
            table(("DOCUMENT", "FORMAT", "CHUNKS", "SIZE", "NOTES"), rows, right=(2, 3))
        return None


def _show_document(collection: Collection, name: str, as_json: bool) -> None:
    records = collection.documents()
    record = next((r for r in records if name in (r.name, r.source)), None)
    if record is None:
        raise UsageError(
            f"the collection has no document {name[:200]!r}", "freehold docs show NAME lists them"
        )
    chunks = [each.chunk for each in collection.store.chunks_of(record)]
    if as_json:
        passages = [
            {
                "page": c.place.page or None,
                "lines": [c.place.line, c.place.last_line],
                "characters": [c.place.start, c.place.end],
                "context": c.context,
                "text": c.text,
            }
            for c in chunks
        ]
        click.echo(json.dumps({"schema": SCHEMA, **record.shown(), "passages": passages}))
        return
    for chunk in chunks:
        click.echo(printable(f"--- {chunk.place}  {chunk.context.partition(chr(10))[0]}"))
        click.echo(printable(chunk.text))


@command.command("update", epilog="Example: freehold docs update notes")
@click.argument("name")
@threads_option
@json_option
@click.pass_obj
def update(settings: Settings, name: str, threads: int | None, as_json: bool) -> None:
    """Bring a collection up to date with its folders and files: new, changed and deleted ones, by their contents."""
    with _opened(settings, name, threads) as collection:
        with _progress() as on_document:
            report = collection.update(on_document)
        _report(collection, report, as_json)


@command.command("rm", epilog="Example: freehold docs rm notes")
@click.argument("name")
@click.argument("documents", nargs=-1)
@json_option
@click.pass_obj
def rm(settings: Settings, name: str, documents: tuple[str, ...], as_json: bool) -> None:
    """Delete a collection, or only DOCUMENTS of it, by name, path or folder. The files themselves stay."""
    from freehold.serve.documents.local import remove_collection

    gone: list[str] = []
    if documents:
        with _opened(settings, name) as collection:
            for document in documents:
                gone += collection.remove(document)
    else:
        remove_collection(settings.home, name)
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "name": name, "documents": gone, "collection": not documents})
        )
    elif documents:
        click.echo(f"{name}: {len(gone):,} documents removed", err=True)
    else:
        click.echo(f"{name} removed", err=True)


@command.command("search", epilog='Example: freehold docs search notes "When does the contract end?"')
@click.argument("name")
@click.argument("words", nargs=-1, required=True)
@click.option(
    "--limit", type=click.IntRange(1, MAX_RESULTS), default=8, show_default=True, help="Passages, at most."
)
@click.option(
    "--budget",
    type=click.IntRange(1),
    default=3000,
    show_default=True,
    help="Tokens of all passages, estimated.",
)
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "words", "vectors"]),
    default="hybrid",
    show_default=True,
    help="Search by words (BM25), by vectors, or by both.",
)
@click.option(
    "--rerank", metavar="MODEL", help="Let this model sort the best 20; slower, and not always better."
)
@threads_option
@json_option
@click.pass_context
def search(
    ctx: click.Context,
    name: str,
    words: tuple[str, ...],
    limit: int,
    budget: int,
    mode: Any,
    rerank: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the passages that match WORDS, or answer a question, with file, page and lines; 1 if there are none."""
    from freehold.serve.documents.citing import shown_passage

    text = " ".join(words)
    with _opened(ctx.obj, name, threads) as collection, _reranker(ctx.obj, collection, rerank):
        result = collection.search(text, limit, budget=budget, mode=mode)
    if as_json:
        passages = [shown_passage(n, passage) for n, passage in enumerate(result.passages, 1)]
        rest = {"passages": passages, "left_out": result.left_out, "notes": list(result.notes)}
        click.echo(json.dumps({"schema": SCHEMA, "collection": name, "query": text, **rest}))
    else:
        for n, passage in enumerate(result.passages, 1):
            click.echo(printable(f"[{n}] {passage.where}"))
            click.echo(printable("\n".join(f"    {line}" for line in passage.text.split("\n"))))
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
    ctx.exit(0 if result.passages else 1)


@contextmanager
def _reranker(settings: Settings, collection: Collection, model: str | None) -> Iterator[None]:
    """Give the collection a reranker while this is open."""
    if model is None:
        yield
        return
    from freehold.run.local import open_shown
    from freehold.serve.documents.citing import LikelihoodReranker

    store = Store(settings)
    with open_shown(held_or_fetched(store, model), packs=store.packs) as llm:
        collection.reranker = LikelihoodReranker(llm)
        yield


def _opened(settings: Settings, name: str, threads: int | None = None) -> Collection:
    from freehold.serve.documents.local import open_collection

    return open_collection(settings.home, name, threads=threads)


@contextmanager
def _progress() -> Iterator[OnDocument]:
    with StatusLine(_KEPT) as line:
        line.begin("looking for documents")

        def show(done: int, count: int, name: str) -> None:
            line.show(f"{done:,} of {count:,} documents{f', {name}' if name else ''}")

        yield show


def _report(collection: Collection, report: AddReport, as_json: bool) -> None:
    cut = getattr(collection.embedder, "cut", 0)
    report.cut = cut
    facts = collection.facts
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "name": facts.name, **report.shown(), "total": facts.documents})
        )
        return
    for name, reason in report.skipped:
        click.echo(printable(f"skipped: {name}: {reason}"), err=True)
    for name, other in report.copies:
        click.echo(printable(f"skipped: {name}: the same bytes as {other}"), err=True)
    counts = (
        (len(report.added), "added"),
        (len(report.changed), "changed"),
        (len(report.removed), "removed"),
        (report.unchanged, "unchanged"),
        (len(report.skipped) + len(report.copies), "skipped"),
    )
    words = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "no documents"
    click.echo(f"{facts.name}: {words}; {facts.documents:,} documents, {facts.chunks:,} chunks", err=True)
    if cut:
        click.echo(
            f"note: {cut:,} chunks were longer than the embedder's context; their vectors miss the end",
            err=True,
        )
