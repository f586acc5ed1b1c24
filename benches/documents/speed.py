"""A search in many chunks, alone and beside an addition: milliseconds, bytes, and the first search of a process.

    python benches/documents/speed.py --chunks 100000

Chunks are sentences of random words of a Zipf vocabulary, their vectors random units of 384 numbers: neither changes
what a search costs. With --embed also how fast texts become chunks, with the real embedder, in chunks a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil

from freehold.serve.documents.chunking import SIZE
from freehold.serve.documents.collection import DocumentFile
from freehold.serve.documents.local import Collection
from freehold.serve.documents.searching import SearchQuery, search_store
from freehold.serve.documents.store import CollectionStore, NewDocument
from freehold.serve.documents.types import DEFAULT_EMBEDDER, DocumentChunk, TextPlace

WIDTH, PER_DOCUMENT, WORDS = 384, 200, 130


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--searches", type=int, default=40)
    parser.add_argument("--embed", type=int, default=0, metavar="N", help="also embed N chunks of this size")
    parser.add_argument("--write-texts", type=Path, help="write what was embedded, for pipelines.py")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    result: dict[str, object] = {"bench": "documents/speed", "chunks": options.chunks}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.collection"
        with CollectionStore(path, create="x", embedder="random") as store:
            began = time.perf_counter()
            for n in range(options.chunks // PER_DOCUMENT):
                store.put(document(rng, f"document {n}"))
            result["put_s"] = time.perf_counter() - began
        result["file_mb"] = path.stat().st_size / 1e6
        with CollectionStore(path) as store:
            before = psutil.Process().memory_info().rss
            result["first_ms"] = searched(rng, store)
            result["memory_mb"] = (psutil.Process().memory_info().rss - before) / 1e6
            alone = [searched(rng, store) for _ in range(options.searches)]
            result["ms"], result["ms_most"] = statistics.median(alone), max(alone)
            before_cpu = time.process_time()
            for _ in range(options.searches):
                searched(rng, store)
            result["cpu_ms"] = 1000 * (time.process_time() - before_cpu) / options.searches
            for part, mode in (("words_ms", "words"), ("vectors_ms", "vectors")):
                result[part] = statistics.median(searched(rng, store, mode) for _ in range(options.searches))
            result["while_adding_ms"] = while_adding(rng, path, store, options.searches)
    if options.embed:
        result |= embedded(rng, options.embed, options.write_texts)
    for name, value in result.items():
        print(f"{name:<18} {value:,.1f}" if isinstance(value, float) else f"{name:<18} {value}")
    print(json.dumps(result))


def text_of(rng: np.random.Generator, words: int = WORDS) -> str:
    return " ".join(f"w{n}" for n in rng.zipf(1.3, words) % 50_000)


def document(rng: np.random.Generator, name: str, count: int = PER_DOCUMENT) -> NewDocument:
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chunks = [DocumentChunk(text_of(rng), TextPlace(0, 1, 1, 1), name) for _ in range(count)]
    return NewDocument(name, name, "text", name, 1, 0, chunks, vectors)


def searched(rng: np.random.Generator, store: CollectionStore, mode: str = "hybrid") -> float:
    vector = rng.normal(size=WIDTH).astype(np.float32)
    query = SearchQuery(text_of(rng, 8), vector / np.linalg.norm(vector), mode)  # type: ignore[arg-type]
    began = time.perf_counter()
    search_store(store, query)
    return 1000 * (time.perf_counter() - began)


def while_adding(rng: np.random.Generator, path: Path, store: CollectionStore, searches: int) -> float:
    """Return the median search while another connection puts documents without a pause."""
    ended = threading.Event()

    def add() -> None:
        own = np.random.default_rng(2)
        ready = [document(own, f"more {n}", 20) for n in range(20)]
        with CollectionStore(path) as other:
            for n in range(10_000):
                if ended.is_set():
                    return
                other.put(ready[n % len(ready)])

    thread = threading.Thread(target=add)
    thread.start()
    try:
        return statistics.median(searched(rng, store) for _ in range(searches))
    finally:
        ended.set()
        thread.join()


def embedded(rng: np.random.Generator, count: int, written: Path | None) -> dict[str, object]:
    """Return chunks a second from bytes to the file, with the default embedder."""
    words = [
        "the",
        "printer",
        "takes",
        "toner",
        "contract",
        "ends",
        "month",
        "notice",
        "backup",
        "runs",
        "at",
        "night",
    ]
    per = 50
    texts = [" ".join(rng.choice(words, SIZE // 6)) for _ in range(count)]
    files = []
    for at in range(0, count, per):
        text = "\n\n".join(
            f"# Part {n}\n\n{text[: SIZE - 50]}" for n, text in enumerate(texts[at : at + per])
        )
        files.append(DocumentFile(f"{at}", f"{at}.md", text.encode))
    with tempfile.TemporaryDirectory() as home, Collection("x", embedder=DEFAULT_EMBEDDER, home=home) as docs:
        docs.embedder.embed(["warm up"])
        began = time.perf_counter()
        report = docs.add_files(files)
        passed = time.perf_counter() - began
        if written is not None:
            chunks = [
                each.chunk.indexed for record in docs.documents() for each in docs.store.chunks_of(record)
            ]
            written.write_text("".join(f"{json.dumps(text)}\n" for text in chunks), encoding="utf-8")
    return {"embedded_chunks": report.chunks, "chunks_a_s": report.chunks / passed}


if __name__ == "__main__":
    main()
