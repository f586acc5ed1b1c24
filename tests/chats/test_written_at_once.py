"""A chat's file under several writers, kills at any byte, full disks and damage: what was written is read."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from freehold.base.errors import CapacityExceeded, ChatNotFound, StoreError
from freehold.serve.chats import writer
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatChange, SavedChat, replay

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder.of(tmp_path / "home")


def said(chat: SavedChat) -> list[tuple[str, str, str]]:
    return [(m.id, m.content, m.thinking) for m in chat.messages.values()]


def is_prefix(part: SavedChat, whole: SavedChat) -> bool:
    """Return whether each message of `part` is one of `whole`, in its order, as far as it had grown."""
    a, b = said(part), said(whole)
    return len(a) <= len(b) and all(
        x[0] == y[0] and y[1].startswith(x[1]) and y[2].startswith(x[2]) for x, y in zip(a, b, strict=False)
    )


WRITERS = 3
STEPS = st.lists(
    st.tuples(st.integers(0, WRITERS - 1), st.sampled_from(["ask", "more", "end"]), st.text(max_size=12)),
    max_size=25,
)


def written(folder: ChatFolder, steps: list[tuple[int, str, str]]) -> str:
    """Write with several writers in this order, each on its own branch; return the chat's id."""
    id = folder.create(model="m").id
    writers = [folder.writer(id) for _ in range(WRITERS)]
    ends: list[str | None] = [None] * WRITERS
    answers: list[str | None] = [None] * WRITERS
    for who, step, text in steps:
        w, answer = writers[who], answers[who]
        if step == "ask" and answer is None:
            question = w.message("user", text, parent=ends[who])
            answers[who] = ends[who] = w.open_answer(parent=question.id, model="m").id
        elif step == "more" and answer is not None:
            w.more(answer, text=text, thinking=text[:3])
        elif step == "end" and answer is not None:
            w.end(answer, "stop", text=text)
            answers[who] = None
    for w in writers:
        w.close()
    return id


@given(STEPS, st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
def test_any_order_of_writers_and_a_kill_at_any_byte_reads_as_a_prefix_of_what_was_written(
    tmp_path_factory, steps, place
):
    folder = ChatFolder.of(tmp_path_factory.mktemp("home"))
    id = written(folder, steps)
    path, whole = folder.file(id), folder.read(id)
    raw = path.read_bytes()
    head = raw.index(b"\n") + 1  # a chat is made whole or not at all
    cut = head + round(place * (len(raw) - head))
    path.write_bytes(raw[:cut])
    part = folder.read(id)
    assert is_prefix(part, whole) and part.skipped == 0
    with folder.writer(id) as w:
        added = w.message("user", "after the kill", parent=part.leaf)
    again = folder.read(id)
    assert said(again) == [*said(part), (added.id, "after the kill", "")]
    assert again.branch() == [*part.branch(), added] and again.skipped <= 1


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 60), st.binary(max_size=20)), min_size=1, max_size=4
)


@given(STEPS, DAMAGE)
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@example([(0, "ask", "x")], [(0.0, 4, b"\n")])
def test_a_file_damaged_in_any_way_is_a_chat_or_a_named_error(tmp_path_factory, steps, damage):
    folder = ChatFolder.of(tmp_path_factory.mktemp("home"))
    id = written(folder, steps)
    raw = bytearray(folder.file(id).read_bytes())
    for place, length, instead in damage:
        at = round(place * len(raw))
        raw[at : at + length] = instead
    folder.file(id).write_bytes(bytes(raw))
    try:
        chat = folder.read(id)
    except StoreError as e:
        assert "is damaged" in e.message
        assert folder.cards() == []
    else:
        assert len(chat.branch()) <= len(chat.messages)
        assert [card.id for card in folder.cards()] == [id]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b'{"role": "king", "id": "x"}',
        b'{"id": "a", "parent": "a", "role": "user", "content": 7}',
        b'{"receipt": ' + b"[" * 100_000 + b"]" * 100_000 + b', "end": "a"}',
        b'{"more": "nobody", "text": "x"}',
        b'{"end": "nobody"}',
        b'{"id": "%s", "parent": null, "role": "user", "content": "twice"}',
    ],
)
def test_a_line_of_another_program_is_skipped_and_counted(folder, line):
    id = folder.create().id
    with folder.writer(id) as w:
        first = w.message("user", "before", parent=None)
        with folder.file(id).open("ab") as file:
            file.write(line.replace(b"%s", first.id.encode()) + b"\n")
        w.message("assistant", "after", parent=first.id)
    chat = folder.read(id)
    assert [m.content for m in chat.branch()] == ["before", "after"] and chat.skipped == 1


def test_what_hung_on_a_damaged_line_hangs_on_the_message_before_it(folder):
    id = folder.create().id
    with folder.writer(id) as w:
        a = w.message("user", "one", parent=None)
        b = w.message("assistant", "spoiled", parent=a.id)
        w.message("user", "three", parent=b.id)
    path = folder.file(id)
    path.write_bytes(path.read_bytes().replace(b'"spoiled"', b'"spoi'))
    chat = folder.read(id)
    assert [m.content for m in chat.branch()] == ["one", "three"] and chat.skipped == 1


def test_an_end_of_line_alone_may_be_missing():
    whole = b'{"chat":"x","created":"c"}\n{"id":"a","parent":null,"role":"user","content":"hi"}'
    assert [m.content for m in replay(whole, "x").branch()] == ["hi"]
    assert replay(whole[:-1], "x").branch() == [] and replay(whole[:-1], "x").skipped == 0


FILLS = """
import sys
from pathlib import Path
from freehold.serve.chats.folder import ChatFolder
folder = ChatFolder(Path(sys.argv[1]), Path(sys.argv[1]))
with folder.writer(sys.argv[2]) as w:
    parent = None
    for n in range(int(sys.argv[4])):
        parent = w.message("user", f"{sys.argv[3]}-{n}", parent=parent).id
        print(f"{sys.argv[3]}-{n}", flush=True)
    answer = w.open_answer(parent=parent, model="m")
    w.more(answer.id, text="begun")
    print("open", flush=True)
    sys.stdin.read()
"""


def started(folder: ChatFolder, id: str, name: str, count: int) -> subprocess.Popen[str]:
    args = [sys.executable, "-c", FILLS, str(folder.path), id, name, str(count)]
    return subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
def test_processes_that_are_killed_in_mid_write_lose_nothing_that_they_had_saved(folder):
    id = folder.create().id
    running = [started(folder, id, name, 4000) for name in ("page", "tab", "terminal")]
    saved: list[str] = []
    for n, process in enumerate(running):  # killed one after the other, the others writing
        assert process.stdout is not None
        saved += [process.stdout.readline().strip() for _ in range(30 + 20 * n)]
        process.send_signal(signal.SIGKILL)
        saved += [
            line.strip() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n"
        ]
        process.wait()
    chat = folder.read(id)
    found = [m.content for m in chat.messages.values()]
    assert len(found) == len(set(found)) and set(saved) <= set(found) and len(found) <= len(saved) + 3
    for name in ("page", "tab", "terminal"):
        mine = [c for c in found if c.startswith(name)]
        assert mine == [f"{name}-{n}" for n in range(len(mine))], "each writer's own are in order"
        last = next(m.id for m in reversed(chat.messages.values()) if m.content == mine[-1])
        assert [m.content for m in chat.branch(last)] == mine, "and are a branch"
    assert chat.skipped <= 3
    with folder.writer(id) as w:  # no lock was left
        w.message("user", "after", parent=None)


def test_an_answer_is_open_while_its_writer_lives_and_lost_with_its_text_after(folder):
    id = folder.create().id
    process = started(folder, id, "x", 1)
    assert process.stdout is not None and [process.stdout.readline() for _ in range(2)][-1] == "open\n"
    assert folder.read(id).branch()[-1].state == "open" and folder.cards()[0].running
    process.kill()
    process.wait()
    process.communicate()
    answer = folder.read(id).branch()[-1]
    assert (answer.state, answer.content) == ("lost", "begun") and not folder.cards()[0].running


def test_two_writers_that_answer_at_once_make_branches(folder):
    id = folder.create().id
    with folder.writer(id) as page, folder.writer(id) as terminal:
        root = page.message("user", "root", parent=None).id
        a, b = (w.message("user", t, parent=root).id for w, t in ((page, "p"), (terminal, "t")))
        one, two = page.open_answer(parent=a, model="m"), terminal.open_answer(parent=b, model="m")
        for w, answer in ((page, one), (terminal, two), (page, one), (terminal, two)):
            w.more(answer.id, text=f"{answer.id} ")
        page.end(one.id, "stop")
        terminal.end(two.id, "stop")
    chat = folder.read(id)
    assert [m.content for m in chat.branch(one.id)] == ["root", "p", f"{one.id} {one.id} "]
    assert [m.content for m in chat.branch(two.id)] == ["root", "t", f"{two.id} {two.id} "]


@pytest.mark.parametrize("taken", [0, 1, 17])
def test_a_full_disk_tears_nothing_and_the_same_call_succeeds_later(folder, monkeypatch, taken):
    id = folder.create().id
    with folder.writer(id) as w:
        answer = w.open_answer(parent=None, model="m")
        before, write = folder.file(id).read_bytes(), os.write

        def full(fd: int, data: bytes) -> int:
            if len(data) > taken and taken and folder.file(id).stat().st_size == len(before):
                return write(fd, bytes(data)[:taken])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(writer.os, "write", full)
        with pytest.raises(CapacityExceeded, match="the disk is full"):
            w.end(answer.id, "stop", text="all of it")
        assert folder.file(id).read_bytes() == before
        assert folder.read(id).branch()[-1].state == "open"
        monkeypatch.undo()
        w.end(answer.id, "stop", text="all of it")
    assert [(m.content, m.state) for m in folder.read(id).branch()] == [("all of it", "whole")]


def test_a_flush_that_fails_leaves_nothing_so_that_a_second_try_writes_no_message_twice(folder, monkeypatch):
    id = folder.create().id

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with folder.writer(id) as w:
        monkeypatch.setattr(writer.os, "fsync", failing)
        with pytest.raises(StoreError, match="Input/output error"):
            w.message("user", "once", parent=None)
        monkeypatch.undo()
        w.message("user", "once", parent=None)
    assert [m.content for m in folder.read(id).messages.values()] == ["once"]


def test_messages_ends_and_changes_are_flushed_and_growth_is_not(folder, monkeypatch):
    id, flushed = folder.create().id, []
    monkeypatch.setattr(writer.os, "fsync", flushed.append)
    with folder.writer(id) as w:
        w.message("user", "x", parent=None)
        answer = w.open_answer(parent=None, model="m")
        for _ in range(9):
            w.more(answer.id, text="x")
        assert len(flushed) == 2
        w.end(answer.id, "stop")
        w.set(ChatChange(pinned=True))
    assert len(flushed) == 4


def test_a_program_that_is_stopped_inside_an_append_is_named_after_a_while(folder, monkeypatch):
    monkeypatch.setattr(writer, "WAIT_S", 0.02)
    id = folder.create().id
    with folder.writer(id) as w, folder.file(id).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="locked by another program"):
            w.message("user", "x", parent=None)
        assert folder.read(id).messages == {}, "a reader needs no lock"
        fcntl.flock(other, fcntl.LOCK_UN)
        w.message("user", "x", parent=None)


def test_a_chat_that_is_full_is_still_read_and_its_answer_still_ends(folder, monkeypatch):
    monkeypatch.setattr(writer, "MAX_CHAT_BYTES", 4000)
    monkeypatch.setattr(writer, "FOR_ENDS", 1000)
    id = folder.create().id
    with folder.writer(id) as w:
        answer = w.open_answer(parent=None, model="m")
        w.more(answer.id, text="x" * 3000)
        with pytest.raises(CapacityExceeded, match="a chat holds 3,000"):
            w.message("user", "x", parent=None)
        w.end(answer.id, "stop", text="end")
    assert folder.read(id).branch()[-1].content == "x" * 3000 + "end"


def test_a_message_to_a_deleted_chat_is_refused_and_an_answer_in_progress_goes_into_what_is_restored(folder):
    id = folder.create().id
    with folder.writer(id) as w:
        answer = w.open_answer(parent=None, model="m")
        folder.delete(id)
        with pytest.raises(ChatNotFound, match="was deleted"):
            w.message("user", "x", parent=None)
        w.end(answer.id, "stop", text="all of it")
    folder.restore(id)
    assert [m.content for m in folder.read(id).branch()] == ["all of it"]


def test_half_a_surrogate_pair_is_saved_as_a_replacement(folder):
    id = folder.create().id
    with folder.writer(id) as w:
        w.message("user", "a\ud800b", parent=None)
    assert folder.read(id).branch()[0].content == "a\ufffdb"
