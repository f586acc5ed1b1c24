"""Nothing of escapes.txt leaves the folder: neither a model's code, nor its commands, nor the paths that it names."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from freehold.base.errors import FreeholdError
from freehold.base.platforms import can_confine
from freehold.base.types import ToolCall
from freehold.serve.tools.folder import ToolFolder
from freehold.serve.tools.own import OwnTools

SECRET = "SECRET-4711"
TEXT = (Path(__file__).parent / "escapes.txt").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(not can_confine(), reason="this kernel confines no process")


class Attempt(NamedTuple):
    tool: str
    name: str
    body: str


def attempts(tool: str) -> list[Attempt]:
    blocks = TEXT.split("\n== ")[1:]
    split = []
    for head, _, body in (block.partition("\n") for block in blocks):
        owner, _, name = head.partition(": ")
        split.append(Attempt(owner, name, body.strip("\n")))
    return [each for each in split if each.tool == tool]


class Outside:
    """A folder with a secret and a victim, a server, a process: what an escape would reach."""

    def __init__(self, above: Path) -> None:
        self.path, self.folder = above / "outside", above / "folder"
        self.path.mkdir(mode=0o755)
        self.folder.mkdir()
        (self.path / "secret").write_text(SECRET)
        (self.path / "victim").write_text("untouched")
        (above / "folder-beside").mkdir()
        (above / "folder-beside" / "secret").write_text(SECRET)
        self._links()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        with suppress(OSError):  # a path that is too long for a socket: then none is there
            self.unix.bind(str(self.path / "socket"))
            self.unix.listen()
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        read, write = os.pipe()
        os.write(write, SECRET.encode())
        os.close(write)
        self.open_fd = read
        os.set_inheritable(read, True)
        self.before = self.look()

    def _links(self) -> None:
        for name, target in (("secret", "secret"), ("victim", "victim"), ("folder", "")):
            os.symlink(self.path / target, self.folder / f"link-to-{name}")
        os.symlink("/dev/zero", self.folder / "link-to-device")
        os.link(self.path / "secret", self.folder / "hard")
        os.link(self.path / "victim", self.folder / "hard-victim")
        os.mkfifo(self.folder / "pipe")
        (self.folder / "sub").mkdir()
        (self.folder / "own.txt").write_text("its own\n")

    def look(self) -> dict[str, tuple[int, float, bytes]]:
        """What is outside: by path, modes, times and bytes."""
        seen = {}
        for path in [self.path, *sorted(self.path.rglob("*"))]:
            status = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            seen[str(path)] = (status.st_mode, status.st_mtime, data)
        return seen

    def filled(self, body: str) -> str:
        places = {"OUTSIDE": self.path, "FOLDER": self.folder, "PORT": self.server.getsockname()[1]}
        places |= {"PID": self.process.pid, "FD": self.open_fd}
        for word, value in places.items():
            body = body.replace(word, str(value))
        return body

    def damage(self) -> str:
        """What an attempt reached; "" for nothing."""
        self.server.settimeout(0.0)
        with suppress(OSError):
            self.server.accept()[0].close()
            return "the server was reached"
        self.unix.settimeout(0.0)
        with suppress(OSError):
            self.unix.accept()[0].close()
            return "the socket was reached"
        if self.process.poll() is not None:
            return "the process was ended"
        return "" if self.look() == self.before else f"outside is another: {self.look()}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.server.close()
        self.unix.close()
        os.close(self.open_fd)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    world = Outside(tmp_path)
    yield world
    world.close()


def call(tools: OwnTools, name: str, arguments: str) -> str:
    """Return what a call gives the model."""
    try:
        return tools.plan(ToolCall("c", name, arguments)).run().content
    except FreeholdError as e:
        return f"refused: {e.message}"


def tools_in(outside: Outside, tmp_path: Path, tool: str) -> OwnTools:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = outside.folder
    return OwnTools(
        scratch=scratch,
        folder=folder if tool == "files" else None,
        python=folder if tool == "python" else None,
        shell=folder if tool == "shell" else None,
    )


def check(outside: Outside, attempt: Attempt, output: str) -> str:
    if SECRET in output or "WON" in output.replace("WON\\n", ""):
        return f"{attempt.name}: {output[:300]}"
    damage = outside.damage()
    return f"{attempt.name}: {damage}" if damage else ""


def test_there_are_sixty_attempts_and_more():
    assert TEXT.count("\n== ") >= 60
    names = [block.partition("\n")[0] for block in TEXT.split("\n== ")[1:]]
    assert len(set(names)) == len(names)


def test_no_path_leads_out_of_the_folder(outside: Outside, tmp_path: Path):
    tools = tools_in(outside, tmp_path, "files")
    for attempt in attempts("files"):
        name, _, arguments = outside.filled(attempt.body).partition(" ")
        output = call(tools, name, arguments)
        assert not check(outside, attempt, output)
    assert "its own" in call(tools, "read_file", '{"path": "own.txt"}')
    tools.close()


@pytest.mark.heavy
def test_no_code_leaves_the_interpreter(outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import json

    monkeypatch.setenv("FREEHOLD_SECRET", SECRET)
    monkeypatch.setenv("LD_SECRET", SECRET)
    tools = tools_in(outside, tmp_path, "python")
    for attempt in attempts("python"):
        code = outside.filled(attempt.body)
        output = call(tools, "python", json.dumps({"code": code, "seconds": 20}))
        assert not check(outside, attempt, output)
        sound = call(tools, "python", json.dumps({"code": "print(open('own.txt').read(), 6 * 7)"}))
        assert "its own" in sound and "42" in sound
    tools.close()


@pytest.mark.heavy
def test_no_command_leaves_its_namespaces(outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import json

    monkeypatch.setenv("FREEHOLD_SECRET", SECRET)
    tools = tools_in(outside, tmp_path, "shell")
    try:
        tools.check()
    except FreeholdError as e:
        pytest.skip(e.message)
    for attempt in attempts("shell"):
        command = outside.filled(attempt.body)
        output = call(tools, "shell", json.dumps({"command": command, "seconds": 20}))
        assert not output.startswith("refused"), output
        assert not check(outside, attempt, output)
    assert "its own" in call(tools, "shell", json.dumps({"command": "cat own.txt"}))
    left = [p for p in psutil.process_iter(["cmdline"]) if "54321" in (p.info["cmdline"] or [])]
    assert not left
    tools.close()


def test_a_folder_that_becomes_a_link_while_it_is_written_leads_nowhere(outside: Outside):
    folder, other = ToolFolder(outside.folder), outside.folder / "other"
    target, until = outside.folder / "race", time.monotonic() + 1.0
    target.mkdir()
    os.symlink(outside.path, other)
    stop = threading.Event()

    def swap() -> None:
        spare = outside.folder / "spare"
        while not stop.is_set():
            with suppress(OSError):
                os.rename(target, spare)
                os.rename(other, target)
                os.rename(target, other)
                os.rename(spare, target)

    swapping = threading.Thread(target=swap)
    swapping.start()
    written = refused = 0
    try:
        while time.monotonic() < until and written + refused < 3000:
            try:
                folder.carry_out(folder.written("race/new", "x"))
                written += 1
            except FreeholdError:
                refused += 1
    finally:
        stop.set()
        swapping.join()
        folder.close()
    assert outside.look() == outside.before
    assert written or refused


def test_a_call_that_never_ends_is_ended(outside: Outside, tmp_path: Path):
    tools = tools_in(outside, tmp_path, "python")
    assert "ran longer than 1 s" in call(tools, "python", '{"code": "while True: pass", "seconds": 1}')
    assert call(tools, "python", '{"code": "1 + 1"}') == "2"
    tools.close()
