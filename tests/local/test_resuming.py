"""A journal has what was heard, whatever was cut off or changed in its file, and is its user's alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from freehold.base.types import Segment, Word
from freehold.run.local.speech import KEPT_S, TranscriptJournal

CHUNKS = [
    (
        "en",
        (Segment(0.1, 2.54, "Grüße", (1, 2, 300), 0.2, -0.123456789, 1.5, 1e-9, (Word("Grüße", 0.1, 2.5),)),),
    ),
    ("en", ()),
    ("en", (Segment(31.0, 32.0, "two\nlines"), Segment(33.0, 34.0, "3"))),
]


def write(folder: Path, chunks: int = 3, key: str = "k") -> Path:
    with TranscriptJournal(folder) as journal:
        assert journal.open(key, 5) == []
        for language, segments in CHUNKS[:chunks]:
            journal.add(language, segments)
        assert journal.kept == chunks
    (path,) = folder.iterdir()
    return path


def read(folder: Path, key: str = "k", chunks: int = 5) -> list:
    with TranscriptJournal(folder) as journal:
        return journal.open(key, chunks)


def test_what_was_written_is_read(tmp_path: Path):
    path = write(tmp_path)
    assert read(tmp_path) == CHUNKS and read(tmp_path) == CHUNKS
    assert path.stat().st_mode & 0o077 == 0 and tmp_path.stat().st_mode & 0o077 == 0


def test_every_cut_leaves_whole_lines_and_room_for_more(tmp_path: Path):
    data = write(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(0, len(data), 7):
        path = write(tmp_path / "cut", 0)
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        with TranscriptJournal(tmp_path / "cut") as journal:
            assert journal.open("k", 5) == CHUNKS[:whole] and journal.taken == whole
            for language, segments in CHUNKS[whole:]:
                journal.add(language, segments)
        assert path.read_bytes() == data
        path.unlink()


@pytest.mark.parametrize("at", [0, 20, 40, 80])
def test_a_changed_byte_ends_what_is_taken_over(tmp_path: Path, at: int):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert read(tmp_path) == []


def test_lines_of_another_recording_or_in_another_order_are_not_taken(tmp_path: Path):
    lines = write(tmp_path / "a").read_bytes().splitlines(keepends=True)
    path = write(tmp_path / "b", 0, "other")
    path.write_bytes(b"".join(lines))
    assert read(tmp_path / "b", "other") == []
    (path,) = (tmp_path / "a").iterdir()
    path.write_bytes(lines[1] + lines[0])
    assert read(tmp_path / "a") == []


def test_more_lines_than_chunks_are_cut_off(tmp_path: Path):
    write(tmp_path)
    assert read(tmp_path, chunks=2) == CHUNKS[:2] and read(tmp_path) == CHUNKS[:2]


def test_two_processes_do_not_write_one_journal(tmp_path: Path):
    with TranscriptJournal(tmp_path) as first, TranscriptJournal(tmp_path) as second:
        first.open("k", 5)
        first.add(*CHUNKS[0])
        assert second.open("k", 5) == []
        second.add(*CHUNKS[2])
        second.remove()
        assert second.kept == 0
    assert read(tmp_path) == CHUNKS[:1]


def test_fresh_drops_what_was_heard_and_done_removes_the_file(tmp_path: Path):
    write(tmp_path)
    with TranscriptJournal(tmp_path, fresh=True) as journal:
        assert journal.open("k", 5) == []
        journal.add(*CHUNKS[0])
    assert read(tmp_path) == CHUNKS[:1]
    with TranscriptJournal(tmp_path) as journal:
        journal.open("k", 5)
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_old_journals_go(tmp_path: Path):
    path = write(tmp_path)
    os.utime(path, (0, time.time() - KEPT_S - 60))
    assert read(tmp_path, "other") == []
    assert not path.exists()


def test_without_a_place_to_write_nothing_is_kept(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with TranscriptJournal(tmp_path / "file") as journal:
        assert journal.open("k", 5) == []
        journal.add(*CHUNKS[0])
        assert journal.kept == 0
