"""The pictures of a chat: stored once, gone with it and back with it, carried along by exports and new chats."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from freehold.base.errors import CapacityExceeded, StoreError, UsageError
from freehold.base.types import MAX_PICTURE_BYTES
from freehold.serve.chats import pictures as stored
from freehold.serve.chats.exported import branched, exported, markdown, pictures_of, taken
from freehold.serve.chats.folder import UNDO_S, ChatFolder
from freehold.serve.chats.pictures import ChatPictures, is_reference, reference_of
from freehold.serve.chats.types import ChatLine, encoded

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
JPEG = b"\xff\xd8\xff" + bytes(300)


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder.of(tmp_path / "home")


def seen(folder: ChatFolder, *images: str, text: str = "what is it?") -> str:
    """Make a chat with one message that has these pictures."""
    id = folder.create(model="m").id
    with folder.writer(id) as writer:
        writer.message("user", text, parent=None, images=images)
    return id


def files(folder: ChatFolder) -> list[Path]:
    return sorted(p for p in folder.path.rglob("*") if p.is_file() and ".pictures" in str(p))


def named(folder: ChatFolder, id: str) -> tuple[str, ...]:
    return next(iter(folder.read(id).messages.values())).images


def test_ten_turns_with_one_picture_have_its_bytes_once_and_none_in_a_line(folder):
    id = folder.create(model="m").id
    with folder.writer(id) as writer:
        parent = None
        for n in range(10):
            parent = writer.message("user", f"turn {n}", parent=parent, images=[url(PNG)]).id
    (file,) = files(folder)
    assert file.read_bytes() == PNG and file.name == reference_of(PNG).removeprefix("sha256:")
    assert folder.file(id).stat().st_size < 3000
    message = folder.read(id).branch()[-1]
    assert message.images == (reference_of(PNG),)
    assert folder.pictures(id).url(message.images[0]) == url(PNG)


def test_a_chat_of_an_earlier_version_is_read_with_its_data_urls(folder):
    id = folder.create(model="m").id
    line = ChatLine(id="a", parent=None, role="user", content="x", images=(url(PNG), url(JPEG, "jpeg")))
    with folder.file(id).open("ab") as file:
        file.write(encoded(line))
    images = named(folder, id)
    assert images == (url(PNG), url(JPEG, "jpeg")) and not files(folder)
    assert [folder.pictures(id).url(each) for each in images] == list(images)


@pytest.mark.parametrize(
    "image, said",
    [
        ("https://evil.example/a.png", "is not a data: URL"),
        ("sha256:../../../etc/passwd", "is not a data: URL"),
        ("data:text/html;base64,PGI+", "media type 'text/html'"),
        ("data:image/png;base64,PGI+PGI+", "begins as no picture"),
        ("data:image/png;base64,!!", "is not base64"),
        (url(b"\x89PNG\r\n\x1a\n" + bytes(MAX_PICTURE_BYTES)), "expected at most 10,485,760"),
    ],
)
def test_what_is_no_picture_is_refused_and_leaves_nothing(folder, image, said):
    id = folder.create(model="m").id
    with folder.writer(id) as writer, pytest.raises(UsageError, match=said):
        writer.message("user", "x", parent=None, images=[image])
    assert not folder.read(id).messages and not files(folder)


def test_a_deleted_chat_takes_its_pictures_along_and_brings_them_back(folder, monkeypatch):
    id, other = seen(folder, url(PNG)), seen(folder, url(PNG))
    folder.delete(id)
    assert len(files(folder)) == 2 and not (folder.path / ".pictures" / id).exists()
    folder.restore(id)
    assert folder.pictures(id).read(reference_of(PNG)) == PNG
    folder.delete(id)
    monkeypatch.setattr("freehold.serve.chats.folder.UNDO_S", -1)
    folder.purge()
    assert [p.parent.name for p in files(folder)] == [other] and not list(
        (folder.path / ".deleted").iterdir()
    )
    assert UNDO_S == 600


def test_pictures_whose_chat_is_gone_are_removed_after_a_while(folder):
    kept, lost = seen(folder, url(PNG)), seen(folder, url(JPEG, "jpeg"))
    folder.file(lost).unlink()  # by another program, or a crash between the two
    folder.purge()
    assert len(files(folder)) == 2, "a chat may be on its way"
    os.utime(folder.path / ".pictures" / lost, (0, 0))
    folder.purge()
    assert [p.parent.name for p in files(folder)] == [kept]


def test_a_picture_that_no_message_came_to_name_is_removed_with_a_later_one(folder, monkeypatch):
    id = seen(folder, url(PNG))
    unsent = folder.add_picture(id, url(JPEG, "jpeg"))
    assert folder.add_picture(id, url(PNG)) == reference_of(PNG) and len(files(folder)) == 2
    monkeypatch.setattr(stored, "UNSENT_S", -1.0)
    folder.add_picture(id, url(PNG + b"x"))
    assert {p.name for p in files(folder)} == {reference_of(d)[7:] for d in (PNG, PNG + b"x")}
    with pytest.raises(StoreError, match="has lost the picture sha256:"):
        folder.pictures(id).read(unsent)


def test_a_picture_of_a_message_that_was_taken_out_is_kept_for_its_return(folder, monkeypatch):
    id = seen(folder, url(PNG))
    (message,) = folder.read(id).messages
    with folder.writer(id) as writer:
        writer.take_out([message])
    monkeypatch.setattr(stored, "UNSENT_S", -1.0)
    folder.add_picture(id, url(JPEG, "jpeg"))
    assert folder.pictures(id).read(reference_of(PNG)) == PNG


def test_pictures_count_against_a_key_s_limit_those_of_deleted_chats_too(tmp_path):
    mine = ChatFolder.of(tmp_path / "home", "ann", most=400_000)
    big = PNG + bytes(300_000)
    id = seen(mine, url(big))
    mine.check_room()
    mine.add_picture(id, url(big + b"1"))
    with pytest.raises(CapacityExceeded, match=r"console\.chats_per_key allows 400,000"):
        mine.add_picture(id, url(big + b"2"))
    mine.delete(id)
    with pytest.raises(CapacityExceeded):
        mine.check_room()


def test_an_export_has_each_picture_once_and_an_import_stores_it(folder):
    id = folder.create(model="m").id
    with folder.writer(id) as writer:
        first = writer.message("user", "one", parent=None, images=[url(PNG), url(JPEG, "jpeg")])
        writer.message("user", "two", parent=first.id, images=[reference_of(PNG)])
    data = exported(folder.read(id), folder.pictures(id))
    assert data.count(base64.b64encode(PNG)) == 1
    chat = taken(json.loads(data), system=True)
    copy = folder.write("", chat.model, chat.lines, chat.pictures).id
    assert [m.images for m in folder.read(copy).branch()] == [m.images for m in folder.read(id).branch()]
    assert folder.pictures(copy).read(reference_of(JPEG)) == JPEG
    again = json.loads(exported(folder.read(copy), folder.pictures(copy)))
    assert {**again, "created": ""} == {**json.loads(data), "created": ""}
    assert "[2 pictures]" in markdown(folder.read(id))


def test_an_export_of_an_earlier_version_is_stored_by_digest(folder):
    raw = {"messages": [{"id": "a", "parent": None, "role": "user", "images": [url(PNG)] * 3}]}
    chat = taken(raw, system=True)
    id = folder.write("", chat.model, chat.lines, chat.pictures).id
    assert named(folder, id) == (reference_of(PNG),) * 3 and len(files(folder)) == 1


@pytest.mark.parametrize(
    "images, pictures, said",
    [
        ([reference_of(PNG)], {}, "is not in the file"),
        ([reference_of(PNG)], {reference_of(PNG): url(JPEG, "jpeg")}, "has other bytes than its name says"),
        ([reference_of(PNG)], {reference_of(PNG): "https://evil.example"}, "is not a data: URL"),
        (["../x"], {}, "is not a data: URL"),
        (["data:image/png;base64,PHN2Zz4="], {}, "begins as no picture"),
    ],
)
def test_an_import_whose_pictures_are_none_is_refused_by_the_message(images, pictures, said):
    raw = {"messages": [{"id": "a", "parent": None, "role": "user", "images": images}], "pictures": pictures}
    with pytest.raises(UsageError, match=rf"message 1: .*{said}"):
        taken(raw, system=True)


def test_a_chat_too_large_to_export_says_so_before_its_pictures_are_read(folder, monkeypatch):
    id = seen(folder, url(PNG), url(JPEG, "jpeg"))
    monkeypatch.setattr("freehold.serve.chats.exported.MAX_EXPORT_BYTES", 400)
    monkeypatch.setattr(ChatPictures, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UsageError, match="with its pictures"):
        exported(folder.read(id), folder.pictures(id))


def test_an_export_leaves_out_a_picture_that_was_lost(folder):
    id = seen(folder, url(PNG), url(JPEG, "jpeg"))
    folder.pictures(id).file(reference_of(PNG)).unlink()
    chat = taken(json.loads(exported(folder.read(id), folder.pictures(id))), system=True)
    assert list(chat.pictures) == [reference_of(JPEG)]


def test_a_new_chat_from_a_message_has_the_branch_s_pictures_without_a_second_copy(folder):
    id = seen(folder, url(PNG))
    (message,) = folder.read(id).messages
    with folder.writer(id) as writer:
        writer.message("user", "beside", parent=None, images=[url(JPEG, "jpeg")])
    chat = folder.read(id)
    pictures = pictures_of(chat, message, folder.pictures(id))
    copy = folder.write("", "m", branched(chat, message), pictures).id
    (one,) = (folder.path / ".pictures" / copy).iterdir()
    assert one.read_bytes() == PNG and one.stat().st_nlink == 2
    folder.delete(id)
    assert folder.pictures(copy).url(reference_of(PNG)) == url(PNG)


def test_a_chat_with_pictures_is_there_whole_or_not_at_all(folder, monkeypatch):
    def fail(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freehold.serve.chats.folder._linked", fail)
    with pytest.raises(CapacityExceeded):
        folder.write("", "m", [], {reference_of(PNG): PNG})
    assert not files(folder) and not folder.cards()
    monkeypatch.undo()
    id = folder.write("", "m", [], {reference_of(PNG): PNG}).id
    assert folder.pictures(id).read(reference_of(PNG)) == PNG


def test_pictures_are_their_user_s_alone(folder):
    before = os.umask(0)
    try:
        id = seen(folder, url(PNG))
        folder.delete(seen(folder, url(PNG)))
        chat = taken(json.loads(exported(folder.read(id), folder.pictures(id))), system=True)
        folder.write("", chat.model, chat.lines, chat.pictures)
        modes = {p: stat.S_IMODE(p.stat().st_mode) for p in folder.path.rglob("*")}
    finally:
        os.umask(before)
    assert len(files(folder)) == 3 and not {p: oct(m) for p, m in modes.items() if m & 0o077}


@pytest.mark.parametrize(
    "text, is_one",
    [
        (reference_of(PNG), True),
        (reference_of(PNG).upper(), False),
        (reference_of(PNG) + "0", False),
        (reference_of(PNG) + "\n", False),
        ("sha256:../../x", False),
        ("", False),
    ],
)
def test_a_reference_is_a_digest_and_no_path(folder, text, is_one):
    assert is_reference(text) is is_one
    if not is_one:
        with pytest.raises(UsageError):
            folder.pictures("a").file(text)
