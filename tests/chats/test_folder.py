"""A folder of chats: whose it is, what its list and search say, and an index that may be lost at any time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.base.errors import ChatNotFound, UsageError
from freehold.serve.chats.folder import NAME, TABLE_VERSION, ChatFolder


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder.of(tmp_path / "home")


def talked(folder: ChatFolder, text: str, id: str = "") -> str:
    id = folder.create(id=id).id
    with folder.writer(id) as writer:
        writer.message("user", text, parent=None)
    return id


def found(folder: ChatFolder, text: str) -> list[str]:
    return [match.chat.id for match in folder.search(text)]


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_key_s_name_leaves_the_folder_or_shares_one(one, other):
    home = Path("/home")
    keys = home / "sessions" / "keys"
    for name in (one, other):
        path = ChatFolder.of(home, name).path
        assert path == home / "sessions" if not name else path.parent == keys and len(path.name) < 64
        assert path.name.isascii() and not path.name.startswith(".")
    if one != other:
        paths = {str(ChatFolder.of(home, name).path).casefold() for name in (one, other)}
        assert len(paths) == 2, "nor where a disk takes A and a for one letter"


@pytest.mark.parametrize("id", ["", "..", "../x", "a/b", ".x", "a\0", "x" * 81, "a~b"])
def test_an_id_leads_to_no_other_file(folder, id):
    with pytest.raises(UsageError, match="not a valid session name"):
        folder.read(id)


def test_a_name_in_use_is_refused_whatever_raced_for_it(folder):
    talked(folder, "x", id="mine")
    with pytest.raises(UsageError, match="exists already"):
        folder.create(id="mine")
    assert len({folder.create().id for _ in range(20)}) == 20
    assert not [p for p in folder.path.iterdir() if p.name.startswith(".new")]


def test_a_deleted_chat_keeps_its_name_until_it_is_gone_for_good(folder):
    first = talked(folder, "first")
    folder.delete(first)
    assert talked(folder, "second") != first
    folder.restore(first)
    assert sorted(c.title for c in folder.cards()) == ["first", "second"]
    with pytest.raises(ChatNotFound):
        folder.restore(first)


def test_everything_is_its_user_s_alone(folder):
    before = os.umask(0)
    try:
        id = talked(folder, "x")
        with folder.writer(id) as writer:
            writer.open_answer(parent=None, model="m")
            folder.cards()
            gone = talked(folder, "y")
            folder.delete(gone)
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in folder.path.rglob("*")}
    finally:
        os.umask(before)
    assert len(modes) >= 5 and not {p: oct(m) for p, m in modes.items() if m & 0o077}


@pytest.mark.parametrize("trouble", ["removed", "damaged", "another version", "a folder in its place"])
def test_an_index_that_is_lost_or_damaged_is_made_again(folder, monkeypatch, trouble):
    ids = [talked(folder, f"the word number{n}") for n in range(5)]
    assert found(folder, "NUMBER3") == [ids[3]]
    path = folder.path / NAME
    for each in folder.path.glob(f"{NAME}*"):
        if trouble in ("removed", "a folder in its place"):
            each.unlink()
        elif trouble == "damaged":
            each.write_bytes(b"not a database" * 1000)
    if trouble == "a folder in its place":
        path.mkdir()
    elif trouble == "another version":
        monkeypatch.setattr("freehold.serve.chats.folder.TABLE_VERSION", TABLE_VERSION + 1)
    again = ChatFolder(folder.path, folder.path)
    assert sorted(c.id for c in again.cards()) == sorted(ids) and found(again, "number3") == [ids[3]]
    assert sorted(c.id for c in folder.cards()) == sorted(ids) and found(folder, "number4") == [ids[4]]


def test_an_index_sees_what_another_program_wrote_deleted_and_damaged(folder):
    other = ChatFolder(folder.path, folder.path)
    id = talked(folder, "first")
    assert found(other, "first") == found(folder, "first") == [id]
    with other.writer(id) as writer:
        writer.message("assistant", "quokka", parent=None)
    assert found(folder, "Quokka") == found(other, "quokka") == [id]
    folder.file(id).write_bytes(b"damaged")
    assert folder.cards() == other.cards() == [] and found(folder, "first") == []
    other.file(id).unlink()
    assert folder.cards() == [] and found(folder, "quokka") == []


def test_an_index_with_an_older_text_than_the_file_s_hides_nothing(folder):
    """Two programs read a chat, and the one that read it earlier writes to the index later."""
    id = talked(folder, "first")
    slow = ChatFolder(folder.path, folder.path)
    slow.cards()
    with folder.writer(id) as writer:
        writer.message("user", "second", parent=None)
    assert found(folder, "second") == [id]
    db = slow._index._db
    assert db is not None
    with db:
        db.execute("UPDATE chats SET said = X'66697273', size = 1")
    assert found(folder, "second") == [id]
