"""Files by their paths: one swapped between two looks holds no reader, and one without an end fills no memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from freehold.adapt.evals import results, verifier
from freehold.adapt.quantize import texts
from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.base.regular import bounded_lines, open_regular, read_bounded, read_regular
from freehold.choose.advisor import breakeven
from freehold.outgrow.capacity import trace
from freehold.outgrow.capacity.engine import EngineModel
from freehold.run.formats import lora
from freehold.run.store import home_files, overlays
from freehold.run.tokenizer.directory import read_json
from freehold.run.tokenizer.template import templates_from_dir
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.http.core import sockets
from freehold.serve.http.core.keys import KeyFile
from tests.http.test_files import files_of_at_most
from tests.vectors.adapters import Case, write_gguf, write_peft

READERS: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": read_json,
    "chat_template.jinja": lambda path: templates_from_dir(path.parent),
    "manifest": home_files._small,
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


# --- paths that the user names -------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Path], object]] = {
    "eval --compare": results._text,
    "reinforce --verifier": verifier._file_job,
    "cost --csv": lambda path: breakeven.from_csv(path, ()),
    "deploy capacity --trace": trace.from_file,
    "deploy capacity --steps": EngineModel.load,
    "quantize --text": lambda path: texts.plain_text(path, "replace"),
    "serve --tls-cert": lambda path: sockets.checked(path, path),
}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
@pytest.mark.parametrize("verb", VERBS)
def test_a_device_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch, verb: str):
    """Each of these took memory until there was none."""
    for module in (results, texts):
        monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="/dev/zero"):
        VERBS[verb](Path("/dev/zero"))


def test_a_pipe_is_read_as_the_shell_gives_one(tmp_path: Path):
    """`<(command)` is a pipe: what a verb reads once may be one."""
    read, write = os.pipe()
    os.write(write, b"0123456789")
    os.close(write)
    try:
        assert read_bounded(f"/dev/fd/{read}", 10) == b"0123456789"
    finally:
        os.close(read)
    (tmp_path / "file").write_text("one\ntwo two\n")
    with (tmp_path / "file").open() as file, pytest.raises(OSError, match="more than 4 characters"):
        assert [*bounded_lines(file, 4)]
    with pytest.raises(OSError, match="more than 11 bytes"):
        read_bounded(tmp_path / "file", 11)


def test_a_key_file_that_is_a_pipe_holds_no_server(tmp_path: Path):
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(UsageError, match="not a plain file"):
        KeyFile(tmp_path / "keys").read()


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "gone"])
@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_an_adapter_whose_file_is_swapped_after_its_check_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, target: str
):
    """The copy of a device filled the disk, and that of a pipe waited for ever."""
    os.mkfifo(tmp_path / "pipe")
    case, checked = Case("llama", targets=("q_proj",)), lora.open_lora
    source = (
        write_peft(case, tmp_path / "lora") if form == "peft" else write_gguf(case, tmp_path / "lora.gguf")
    )
    file = source / lora.WEIGHTS if form == "peft" else source

    def swapping(path: Path) -> object:
        opened = checked(path)
        if path == source:
            file.unlink()
            file.symlink_to(target if target.startswith("/") else tmp_path / target)
        return opened

    monkeypatch.setattr(lora, "open_lora", swapping)
    with pytest.raises(FreeholdError, match="cannot be read"):
        overlays.keep_adapter(tmp_path / "home", source)
    assert not list((tmp_path / "home" / "adapters").iterdir())


def test_an_adapter_longer_than_a_file_may_be_leaves_nothing(tmp_path: Path):
    source = write_peft(Case("llama", targets=("q_proj",)), tmp_path / "lora")
    with files_of_at_most(1000), pytest.raises(CapacityExceeded, match="may not become that long"):
        overlays.keep_adapter(tmp_path / "home", source)
    assert not list((tmp_path / "home" / "adapters").iterdir())
