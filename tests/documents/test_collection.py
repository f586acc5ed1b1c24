"""Collections: added, brought up to date, removed, searched within a budget."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.base.errors import UsageError
from freehold.base.stopping import Stopped, stops_when
from freehold.serve.documents.chunking import MOST, SIZE, cut
from freehold.serve.documents.collection import DocumentCollection, DocumentFile, search
from freehold.serve.documents.searching import fuse_ranks
from freehold.serve.documents.store import CollectionStore
from freehold.serve.documents.texts import markdown_blocks, plain_blocks
from tests.documents.conftest import WordEmbedder, zipped


def test_a_question_finds_its_passage_with_file_heading_and_lines(
    collection: DocumentCollection, folder: Path
):
    report = collection.add(folder)
    assert sorted(report.added) == ["notes/backups.txt", "notes/contract.md", "notes/printer.txt"]
    best = search(collection, "When does the contract end?", 3)[0]
    assert (best.name, str(best.place)) == ("notes/contract.md", "line 5")
    assert best.context == "notes/contract.md > Contract > Term"
    assert best.source == str(folder / "contract.md")


@pytest.mark.parametrize("mode", ["words", "vectors", "hybrid"])
def test_each_way_of_searching_finds_the_toner(collection: DocumentCollection, folder: Path, mode: str):
    collection.add(folder)
    assert collection.search("which toner", 1, mode=mode).passages[0].name == "notes/printer.txt"  # type: ignore[arg-type]


def test_an_addition_again_adds_nothing(collection: DocumentCollection, folder: Path, embedder: WordEmbedder):
    collection.add(folder)
    calls = embedder.calls
    report = collection.add(folder, folder / "printer.txt")
    assert (report.unchanged, report.added, embedder.calls) == (3, [], calls)


def test_an_update_takes_what_changed_came_and_went(collection: DocumentCollection, folder: Path):
    collection.add(folder)
    (folder / "printer.txt").write_text("The printer takes toner XY-1.")
    (folder / "backups.txt").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "new.md").write_text("Bicycles stand in the yard.")
    report = collection.update()
    assert (report.added, report.changed, report.removed) == (
        ["notes/sub/new.md"],
        ["notes/printer.txt"],
        ["notes/backups.txt"],
    )
    assert "XY-1" in search(collection, "toner", 1)[0].text
    assert not collection.store.by_words("backups", 5)


def test_a_copy_is_added_once_and_again_when_the_first_is_gone(collection: DocumentCollection, folder: Path):
    (folder / "zz copy.txt").write_bytes((folder / "printer.txt").read_bytes())
    report = collection.add(folder)
    assert report.copies == [("notes/zz copy.txt", "notes/printer.txt")]
    (folder / "printer.txt").unlink()
    assert collection.update().added == ["notes/zz copy.txt"]


def test_what_cannot_be_read_is_reported_and_the_rest_is_added(collection: DocumentCollection, folder: Path):
    (folder / "empty.md").write_text("")
    (folder / "binary.txt").write_bytes(b"\0\1\2")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("secret")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "readme.md").write_text("secret")
    report = collection.add(folder)
    assert len(report.added) == 3
    assert sorted(name for name, _ in report.skipped) == ["notes/binary.txt", "notes/empty.md"]
    assert not search(collection, "secret", 5) or "secret" not in search(collection, "secret", 1)[0].text


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
def test_links_out_pipes_and_names_that_are_no_text_are_left_out(
    collection: DocumentCollection, folder: Path, tmp_path: Path
):
    outside = tmp_path / "outside.md"
    outside.write_text("private text of another folder")
    (folder / "link.md").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    (folder / "inner.md").symlink_to(folder / "contract.md")
    os.mkfifo(folder / "pipe.txt")
    report = collection.add(folder)
    reasons = dict(report.skipped)
    assert "leads out" in reasons["notes/link.md"] and "not a plain file" in reasons["notes/pipe.txt"]
    assert report.copies == [("notes/inner.md", "notes/contract.md")] or len(report.added) == 3
    assert not collection.store.by_words("private", 5)


def test_a_zip_archive_is_added_by_its_members(collection: DocumentCollection, tmp_path: Path):
    path = tmp_path / "all.zip"
    path.write_bytes(
        zipped({"a/x.md": "# Toner\n\nTN-247", "../../evil.txt": "climbs", "y.bin": b"\0", ".git/c.md": "no"})
    )
    assert collection.add(path).added == ["all.zip/a/x.md"]
    assert search(collection, "TN-247", 1)[0].source == f"{path}!/a/x.md"


def test_documents_are_removed_by_name_and_by_folder(collection: DocumentCollection, folder: Path):
    collection.add(folder)
    assert collection.remove("notes/printer.txt") == ["notes/printer.txt"]
    assert len(collection.remove(str(folder))) == 2
    with pytest.raises(UsageError, match="no document"):
        collection.remove("notes/printer.txt")
    assert not collection.documents() and not collection.update().added


def test_a_budget_leaves_passages_out_and_says_so(collection: DocumentCollection):
    texts = [
        DocumentFile(f"{n}", f"{n}.txt", lambda n=n: f"toner {n} {'x ' * 300}".encode()) for n in range(6)
    ]
    collection.add_files(texts)
    result = collection.search("toner", 6, budget=600)
    assert 0 < len(result.passages) < 6 and len(result.passages) + result.left_out == 6
    assert "left out" in result.notes[0]


def test_neighbouring_chunks_become_one_passage(collection: DocumentCollection):
    text = "\n\n".join(f"Paragraph {n} about toner. {'word ' * 80}" for n in range(4))
    collection.add_files([DocumentFile("a", "a.txt", text.encode)])
    chunks = collection.store.facts().chunks
    passages = collection.search("toner", 8, budget=10_000).passages
    assert (chunks, len(passages)) == (4, 2)
    assert passages[0].place.last_line > passages[0].place.line


def test_another_embedder_is_refused(opened: Callable[..., DocumentCollection], tmp_path: Path):
    opened()
    store = CollectionStore(tmp_path / "home" / "notes.collection")
    with store, pytest.raises(UsageError, match="cannot be compared"):
        DocumentCollection(store, WordEmbedder("others"))


def test_a_search_that_is_empty_or_too_long_is_refused(collection: DocumentCollection):
    for text in (" ", "x" * 10_000):
        with pytest.raises(UsageError):
            collection.search(text)
    with pytest.raises(UsageError, match="limit of results"):
        collection.search("x", 0)
    assert collection.search("anything").passages == ()


def test_work_that_is_stopped_keeps_what_was_added(collection: DocumentCollection):
    files = [DocumentFile(f"{n}", f"{n}.txt", lambda n=n: f"text {n}".encode()) for n in range(400)]
    done = 0

    def count(_: int, __: int, ___: str) -> None:
        nonlocal done
        done += 1

    with pytest.raises(Stopped), stops_when(lambda: done > 300):
        collection.add_files(files, on_document=count)
    kept = len(collection.documents())
    assert 0 < kept < 400
    collection.add_files(files)
    assert len(collection.documents()) == 400


def test_a_reranker_has_a_say(opened: Callable[..., DocumentCollection], folder: Path):
    class Backwards:
        def rank(self, question: str, texts: list[str]) -> list[float]:
            return [float("backups" in text) for text in texts]

    collection = opened(reranker=Backwards())
    collection.add(folder)
    plain = opened()
    before = [p.name for p in plain.search("printer backups toner", 4).passages]
    after = [p.name for p in collection.search("printer backups toner", 4).passages]
    assert after.index("notes/backups.txt") <= before.index("notes/backups.txt")


def test_ranks_are_joined_by_their_reciprocals():
    assert [id for id, _ in fuse_ranks([[1, 2, 3], [2, 4]])] == [2, 1, 4, 3]


# --- cutting


def test_chunks_follow_headings_and_keep_their_path():
    chunks = cut(markdown_blocks("# A\n\none\n\n## B\n\ntwo\n\n## C\n\n## D\n\n# E\n"), "f.md")
    assert [(c.text, c.context) for c in chunks] == [
        ("one", "f.md > A"),
        ("two", "f.md > A > B"),
        ("C", "f.md"),
        ("D", "f.md"),
        ("E", "f.md"),
    ]


def test_rows_stay_with_their_header():
    table = "| k | v |\n|---|---|\n" + "".join(f"| key {n} | {'x' * 40} |\n" for n in range(60))
    chunks = cut(markdown_blocks(f"Text before.\n\n{table}\nText after."), "f.md")
    assert chunks[0].text == "Text before." and chunks[-1].text == "Text after."
    assert len(chunks) > 3 and all(c.context == "f.md\nk | v" for c in chunks[1:-1])


def test_long_paragraphs_are_cut_at_sentences_with_their_places():
    text = " ".join(f"Sentence number {n} is here." for n in range(200))
    chunks = cut(plain_blocks(text), "f.txt")
    assert all(len(c.text) <= SIZE for c in chunks) and "".join(c.text for c in chunks) == text
    for chunk in chunks:
        assert text[chunk.place.start : chunk.place.end] == chunk.text
        assert chunk.text.rstrip().endswith(".")


@pytest.mark.parametrize("text", ["x" * 5_000, "x\n" * 3_000, "契" * 4_000, ("a" * 1_399 + "\n") * 3])
def test_no_text_is_lost_and_none_is_too_long(text: str):
    chunks = cut(plain_blocks(text), "f.txt")
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split())
    assert all(len(c.text) <= MOST for c in chunks)
