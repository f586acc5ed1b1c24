"""Files in folders that another account may write: one that is swapped between two looks holds no reader."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from freehold.chats.folder import ChatFolder
from freehold.errors import FreeholdError
from freehold.regular import open_regular, read_regular
from freehold.store import foreign
from freehold.tokenizer.directory import read_json
from freehold.tokenizer.template_files import templates_from_dir

READERS: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": read_json,
    "chat_template.jinja": lambda path: templates_from_dir(path.parent),
    "manifest": foreign._small,
    "chat.jsonl": lambda path: ChatFolder(path.parent, path.parent).read("chat"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_becomes_a_pipe_after_a_look_holds_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """The reader of a tokenizer's files looked first, and then waited for a writer."""
    path, looked = tmp_path / name, Path.is_file
    path.write_text("{}")

    def swapping(self: Path) -> bool:
        found = looked(self)
        if self == path:
            self.unlink(missing_ok=True)
            os.mkfifo(self)
        return found

    def read() -> None:
        with suppress(FreeholdError):
            READERS[name](path)

    monkeypatch.setattr(Path, "is_file", swapping)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    if reader.is_alive():  # let it go
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        pytest.fail("it waits for a pipe")


def test_devices_and_pipes_are_refused_by_what_is_opened(tmp_path: Path):
    os.mkfifo(pipe := tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "link", tmp_path):
        with pytest.raises(OSError, match="not a plain file"):
            read_regular(path, 10)
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "other").symlink_to("file")
    assert read_regular(tmp_path / "other", 10) == b"0123456789"
    with pytest.raises(OSError, match="more than 9 bytes"):
        read_regular(tmp_path / "file", 9)


def test_links_swapped_while_they_are_read_give_a_file_or_an_error(tmp_path: Path):
    """A thread swaps a link between a file, a device and a pipe for as long as 2,000 reads take."""
    (tmp_path / "file").write_bytes(b"whole")
    os.mkfifo(tmp_path / "pipe")
    link, ended, seen = tmp_path / "link", threading.Event(), {b"whole": 0, b"": 0}
    link.symlink_to("file")

    def swap() -> None:
        while not ended.is_set():
            for target in ("file", "/dev/zero", "pipe"):
                (tmp_path / "next").symlink_to(target)
                os.replace(tmp_path / "next", link)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(2000):
            data = b""
            with suppress(OSError), open_regular(link) as file:
                data = file.read(100)
            seen[data] += 1
    finally:
        ended.set()
        thread.join()
    assert sum(seen.values()) == 2000
