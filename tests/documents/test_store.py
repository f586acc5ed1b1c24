"""The file of a collection: whole after a kill, correct after changes, and two writers at once."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import StoreError, UsageError
from freehold.serve.documents.store import (
    CollectionStore,
    NewDocument,
    checked_labels,
    checked_name,
    query_words,
    terms,
)
from freehold.serve.documents.types import DocumentChunk, TextPlace
from tests.documents.conftest import WIDTH, WordEmbedder


def document(source: str, *texts: str, width: int = WIDTH) -> NewDocument:
    chunks = [DocumentChunk(text, TextPlace(0, len(text), 1, 1), source) for text in texts]
    vectors = WordEmbedder().embed(texts)[:, :width]
    return NewDocument(source, source, "text", f"digest of {texts}", 1, 0, chunks, vectors)


@pytest.fixture
def store(tmp_path: Path):
    with CollectionStore(tmp_path / "a.collection", create="a", embedder="words") as store:
        yield store


def texts_of(store: CollectionStore, ids: list[int]) -> list[str]:
    return [each.chunk.text for each in store.chunks(ids)]


def test_a_document_is_replaced_as_a_whole(store: CollectionStore):
    store.put(document("a", "the toner of the printer", "second chunk"))
    store.put(document("b", "other words"))
    store.put(document("a", "ink alone"))
    assert store.by_words("toner", 9) == []
    assert texts_of(store, store.by_words("ink other", 9)) == ["other words", "ink alone"]
    nearest = store.by_vector(WordEmbedder().embed(["a\nink alone"])[0], 9)
    assert texts_of(store, nearest)[0] == "ink alone" and len(nearest) == 2
    assert store.facts().chunks == 2 and [d.chunks for d in store.documents()] == [1, 1]


def test_a_search_sees_what_another_connection_adds_and_removes(store: CollectionStore, tmp_path: Path):
    query = WordEmbedder().embed(["toner"])[0]
    assert store.by_vector(query, 5) == []
    with CollectionStore(tmp_path / "a.collection") as other:
        other.put(document("a", "toner"))
        assert len(store.by_vector(query, 5)) == 1
        for n in range(20):
            other.put(document(f"more {n}", f"word {n}", "toner again"))
        assert len(store.by_vector(query, 100)) == 41
        for n in range(19):
            other.remove(f"more {n}")
        assert len(store.by_vector(query, 100)) == 3
        assert texts_of(store, store.by_vector(query, 1)) == ["toner"]


def test_the_order_of_vectors_is_that_of_their_products(store: CollectionStore):
    texts = [f"word{n} word{n + 1} word{n + 2}" for n in range(300)]
    store.put(document("a", *texts))
    vectors = WordEmbedder().embed(texts)
    for query in vectors[:5]:
        products = vectors.astype(np.float16).astype(np.float32) @ query
        wanted = [texts[i] for i in np.argsort(-products, kind="stable")[:10]]
        assert texts_of(store, store.by_vector(query, 10)) == wanted


def test_a_search_may_be_limited_to_documents(store: CollectionStore):
    ids = [store.put(document(name, "toner here")).id for name in "abc"]
    query = WordEmbedder().embed(["toner"])[0]
    for only in (store.by_words("toner", 9, ids[1:2]), store.by_vector(query, 9, ids[1:2])):
        assert [each.document for each in store.chunks(only)] == ids[1:2]


@pytest.mark.parametrize(
    "text",
    ['"', "NEAR(a b)", "a OR", "col:x", "-", "*", "(", "\0", "toner\0x", "'; DROP TABLE words", "☃", " "],
)
def test_no_question_is_a_syntax_of_the_index(store: CollectionStore, text: str):
    store.put(document("a", "toner x"))
    store.by_words(text, 9)


def test_scripts_without_spaces_are_found_within_their_runs(store: CollectionStore):
    store.put(document("a", "契約は通知の三か月後に終了します。"))
    store.put(document("b", "印刷機のトナー"))
    assert texts_of(store, store.by_words("契約", 9)) == ["契約は通知の三か月後に終了します。"]
    assert terms("a契約") == "a 契  約 " and query_words("契約 of the") == ["契約"]


def test_questions_are_searched_by_their_telling_words():
    assert query_words("When does the contract end?") == ["contract", "end"]
    assert query_words("the who") == ["the", "who"] and query_words("?!") == []


def test_the_commonest_words_of_a_question_are_left_out_of_large_collections(
    store: CollectionStore, monkeypatch: pytest.MonkeyPatch
):
    store.put(document("a", *(f"common word{n}" for n in range(50)), "common rarely"))
    assert len(store.by_words("common rare", 99)) == 51
    monkeypatch.setattr("freehold.serve.documents.store.MAX_RANKED", 20)
    assert texts_of(store, store.by_words("common rarely", 99)) == ["common rarely"]
    assert len(store.by_words("common", 99)) == 20  # of a word that is everywhere, no more are ranked
    store.put(document("b", *["common second"] * 25, *["common third"] * 25, "common second third"))
    assert texts_of(store, store.by_words("common second third", 99)) == ["common second third"]


def test_vectors_of_another_width_are_refused(store: CollectionStore):
    store.put(document("a", "x"))
    with pytest.raises(UsageError, match="have 8 numbers"):
        store.put(document("b", "x", width=8))
    assert store.document("b") is None


def test_names_and_labels_are_checked():
    for name in ("", ".hidden", "a/b", "../x", "a" * 65, "a\n"):
        with pytest.raises(UsageError):
            checked_name(name)
    assert checked_name("notes-2.de") and checked_labels(["a", "a", "b"]) == ("a", "b")
    with pytest.raises(UsageError):
        checked_labels(["a, b"])


def test_a_file_that_is_no_collection_is_named(tmp_path: Path):
    path = tmp_path / "x.collection"
    path.write_bytes(b"something else, and long enough to be looked at" * 40)
    with pytest.raises(StoreError, match="not a collection"):
        CollectionStore(path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="not a collection"):
        CollectionStore(path)


def test_a_collection_of_a_later_version_is_refused(tmp_path: Path):
    path = tmp_path / "x.collection"
    CollectionStore(path, create="x").close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    db.close()
    with pytest.raises(StoreError, match="of version 99"):
        CollectionStore(path)


def test_a_collection_is_made_once_by_whoever_is_first(tmp_path: Path):
    outcomes: list[object] = []

    def make() -> None:
        try:
            CollectionStore(tmp_path / "x.collection", create="x").close()
            outcomes.append(True)
        except UsageError as e:
            outcomes.append(e)

    threads = [threading.Thread(target=make) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert outcomes.count(True) == 1 and len(outcomes) == 8
    assert [p.name for p in tmp_path.iterdir()] == ["x.collection"]
    assert (tmp_path / "x.collection").stat().st_mode & 0o077 == 0


def test_writers_of_two_threads_wait_for_each_other(store: CollectionStore):
    def add(name: str) -> None:
        for n in range(10):
            store.put(document(f"{name} {n}", f"{name} {n}"))

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert store.facts().documents == 20


ADDING = """
import sys
from pathlib import Path
from freehold.serve.documents.store import CollectionStore
from tests.documents.test_store import document
with CollectionStore(Path(sys.argv[1])) as store:
    for n in range(100_000):
        store.put(document(f"source {n % 40}", *(f"text {n} {i}" for i in range(20))))
        print(n, flush=True)
"""


@pytest.mark.heavy
def test_a_process_killed_while_it_adds_leaves_whole_documents(tmp_path: Path):
    path = tmp_path / "x.collection"
    CollectionStore(path, create="x", embedder="words").close()
    for round_ in range(5):
        adding = subprocess.Popen([sys.executable, "-c", ADDING, str(path)], stdout=subprocess.PIPE)
        assert adding.stdout is not None
        adding.stdout.readline()
        time.sleep(0.05 + 0.03 * round_)
        adding.kill()
        adding.wait()
        adding.stdout.close()
        check_whole(path)


ADD_FOLDER = """
import sys
from pathlib import Path
from freehold.serve.documents.collection import DocumentCollection
from freehold.serve.documents.store import CollectionStore
from tests.documents.conftest import WordEmbedder
with DocumentCollection(CollectionStore(Path(sys.argv[1])), WordEmbedder()) as collection:
    collection.add(sys.argv[2], on_document=lambda *_: print(flush=True))
"""


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.heavy), pytest.param(30, marks=pytest.mark.big)]
)
def test_kills_while_a_folder_is_added_leave_nothing_twice_and_nothing_lost(tmp_path: Path, kills: int):
    path, notes, draw = tmp_path / "x.collection", tmp_path / "notes", random.Random(5)
    notes.mkdir()
    CollectionStore(path, create="x", embedder="words").close()
    texts = {f"{n:02}.txt": f"first text of {n}" for n in range(40)}
    command = [sys.executable, "-c", ADD_FOLDER, str(path), str(notes)]
    for round_ in range(kills):
        for name in draw.sample(sorted(texts), 20):  # so that there is always something to add
            texts[name] = "\n\n".join(
                f"text {name} of round {round_}, {i}" * 20 for i in range(draw.randrange(1, 6))
            )
        for name, text in texts.items():
            (notes / name).write_text(text)
        adding = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert adding.stdout is not None
        for _ in range(draw.randrange(1, 20)):
            adding.stdout.readline()
        time.sleep(draw.random() / 50)  # anywhere in the work on a document, and in its transaction
        adding.kill()
        adding.wait()
        adding.stdout.close()
        check_whole(path)
    subprocess.run(command, check=True, capture_output=True)
    check_whole(path)
    with CollectionStore(path) as store:
        records = {record.source: record for record in store.documents()}
        assert sorted(records) == sorted(str(notes / name) for name in texts)
        for name, text in texts.items():
            chunks = store.chunks_of(records[str(notes / name)])
            assert " ".join(each.chunk.text for each in chunks).split() == text.split()


def check_whole(path: Path) -> None:
    """Assert that documents, chunks, words and vectors agree."""
    with CollectionStore(path) as store:
        records = store.documents()
        assert len({record.source for record in records}) == len(records)
        for record in records:
            chunks = store.chunks_of(record)
            assert len(chunks) == record.chunks and {each.document for each in chunks} == {record.id}
            assert texts_of(store, store.by_words(f'"{chunks[0].chunk.text}"', 1))
        assert len(store.by_vector(WordEmbedder().embed(["text"])[0], 10**6)) == store.facts().chunks
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    assert (
        db.execute("SELECT count(*) FROM chunks").fetchone()
        == db.execute("SELECT coalesce(sum(chunks), 0) FROM documents").fetchone()
    )
    db.close()
