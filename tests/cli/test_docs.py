"""`freehold docs` and `freehold run --docs`: from files to passages, and to a cited answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import freehold
from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.base.types import Message
from freehold.cli.chat.documents import Documented, TerminalDocuments, source_lines
from freehold.cli.main import cli
from freehold.serve.documents.citing import NOT_HERE
from freehold.serve.fake import FakeModel, Reply
from tests.vectors.encoders import write_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder("bert", tmp_path_factory.mktemp("embed") / "tiny"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "cat.md").write_text("# Cat\n\nThe cat is on the mat.\n")
    (notes / "dog.txt").write_text("A dog runs in the yard.\n")
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["docs", *words])


def refusal(done: Any) -> str:
    """Return the error that a command ended with, and its hint."""
    assert isinstance(done.exception, UsageError), done
    return f"{done.exception.message} {done.exception.hint}"


def added(home: Path, encoder: str, *more: str) -> Any:
    done = run("add", str(home / "notes"), "--to", "notes", "--embedder", encoder, "--threads", "1", *more)
    assert done.exit_code == 0, done.output
    return done


def test_a_folder_is_added_listed_shown_and_searched(home: Path, encoder: str):
    assert "notes: 2 added; 2 documents, 2 chunks" in added(home, encoder).stderr
    assert "2 unchanged" in run("add", str(home / "notes"), "--to", "notes").stderr
    (row,) = json.loads(run("list", "--json").stdout)["collections"]
    assert (row["name"], row["documents"], row["embedder"]) == ("notes", 2, encoder)
    assert "notes/cat.md" in run("show", "notes").stdout
    assert (
        "--- line 3  notes/cat.md > Cat\nThe cat is on the mat."
        in run("show", "notes", "notes/cat.md").stdout
    )
    done = run("search", "notes", "the", "cat", "--limit", "1")
    assert done.exit_code == 0 and done.stdout.startswith(
        "[1] notes/cat.md, line 3\n    The cat is on the mat."
    )
    (hit,) = json.loads(run("search", "notes", "dog", "--limit", "1", "--mode", "words", "--json").stdout)[
        "passages"
    ]
    assert hit["name"] == "notes/dog.txt" and hit["lines"] == [1, 1]


def test_an_update_and_a_removal(home: Path, encoder: str):
    added(home, encoder)
    (home / "notes" / "new.md").write_text("A bird sings.")
    (home / "notes" / "dog.txt").unlink()
    report = json.loads(run("update", "notes", "--json").stdout)
    assert (report["added"], report["removed"], report["total"]) == (["notes/new.md"], ["notes/dog.txt"], 2)
    assert "1 documents removed" in run("rm", "notes", "notes/new.md").stderr
    assert run("rm", "notes").exit_code == 0 and json.loads(run("list", "--json").stdout)["collections"] == []
    assert run("search", "notes", "x").exit_code != 0


def test_what_cannot_be_added_is_said(home: Path, encoder: str):
    assert "does not exist" in refusal(run("add", str(home / "nothing"), "--to", "notes"))
    assert "not a valid name" in refusal(
        run("add", str(home / "notes"), "--to", "../x", "--embedder", encoder)
    )
    (home / "bad.docx").write_bytes(b"PK\x03\x04")
    done = run("add", str(home / "bad.docx"), "--to", "bad", "--embedder", encoder)
    assert done.exit_code == 1 and "skipped: bad.docx: the docx file is damaged" in done.stderr
    added(home, encoder)
    again = run("add", str(home), "--to", "notes", "--label", "x")
    assert "--label is for a new collection" in refusal(again)
    assert "collections here: bad, notes" in refusal(run("show", "none"))


def test_labels_are_kept(home: Path, encoder: str):
    added(home, encoder, "--label", "private", "--label", "hr")
    assert json.loads(run("show", "notes", "--json").stdout)["labels"] == ["private", "hr"]


def test_the_python_collection_does_the_same(home: Path, encoder: str):
    with freehold.Collection("mine", embedder=encoder) as mine:
        assert mine.add(home / "notes").added
        assert mine.search("cat", 1).passages[0].name == "notes/cat.md"
        assert mine.search("cat", 1).passages[0].where == "notes/cat.md, line 3"
        answer = mine.ask("Where is the cat?", FakeModel(["The cat is on the mat [1]."]))
    assert answer.cited == (1,) and answer.sources[0].source == str(home / "notes" / "cat.md")
    with pytest.raises(UsageError, match="no collection"):
        freehold.Collection("other", create=False)


# --- run --docs


class Scripted(FakeModel):
    class info:
        context = 4096

    labelled: Sequence[str] = ()

    def label(self, names: Sequence[str]) -> None:
        self.labelled = names


@pytest.fixture
def documents(home: Path, encoder: str) -> Iterator[TerminalDocuments]:
    added(home, encoder, "--label", "private")
    opened = TerminalDocuments(load_settings(), ["notes"])
    yield opened
    opened.close()


def test_an_answer_of_documents_is_cited_and_its_doubts_are_said(
    documents: TerminalDocuments, capsys: pytest.CaptureFixture[str]
):
    model = Scripted([Reply("The cat is on the mat [1]. Elephants fly.")])
    text = "".join(
        chunk.text for chunk in Documented(model, documents).stream([Message("user", "Where is the cat?")])
    )
    assert text == "The cat is on the mat [1]. Elephants fly." and model.labelled == ("private",)
    assert "The cat is on the mat." in model.calls[0].messages[-1].content
    assert documents.last is not None
    err = capsys.readouterr().err
    assert "[1] notes/cat.md, line 3" in err and "not supported by the documents: Elephants fly." in err
    assert [each["support"] for each in documents.last.shown()["sentences"]] == ["supported", "unsupported"]


def test_a_refusal_shows_no_sources(documents: TerminalDocuments):
    list(Documented(Scripted([Reply(NOT_HERE)]), documents).stream([Message("user", "Who won?")]))
    assert documents.last is not None and documents.last.refused and not list(source_lines(documents.last))


def test_docs_and_tools_are_not_used_together(home: Path):
    done = CliRunner().invoke(cli, ["run", "x", "y", "--docs", "a", "--mcp", "b"])
    assert "--docs and --mcp" in refusal(done)


def test_a_collection_that_does_not_exist_is_named_before_a_model_is_loaded(home: Path):
    done = CliRunner().invoke(cli, ["run", "smollm2:135m", "y", "--docs", "none"])
    assert "no collection 'none'" in refusal(done)
