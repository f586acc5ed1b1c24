"""A Python process that keeps its names from call to call, for code that a model writes; and the parent's side of it.

Started as `python -P -m freehold.base.sandbox.notebook FOLDER SCRATCH FD PARENT`. It closes itself in (closing_in.py)
before it reads the first code: it then reads Python's own files and both folders, writes in these two alone, connects
nowhere and starts no process. What a call printed, the value of its last line and pictures of matplotlib go back as
JSON. What the process says of itself is believed no further than text for a model: its code may write that pipe too.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.platforms import can_confine
from freehold.base.sandbox.children import (
    LENGTH,
    ChildEnded,
    TimedTalk,
    follow_parent,
    spawn_on_socket,
    write_all,
)

CALL_S = 60.0  # on the clock, of one call
PROCESSOR_S = 1200  # of one process, over all its calls
MEMORY = 2 << 30  # bytes
MAX_CODE = 200_000  # characters of one call
MAX_TEXT = 20_000  # characters that one call may print
MAX_PICTURES, MAX_PICTURE = 4, 2 << 20  # of one call; bytes of a PNG
_MOST = 16 << 20  # bytes of a message
_START_S = 60.0
_NAME = "<call>"
_COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.notebook")
_SHOWN_FRAMES = 8


@dataclass(frozen=True, slots=True)
class NotebookResult:
    """What one call did. `pictures`: bytes of PNG files, as the process says; `failed`: an exception ended it."""

    text: str
    failed: bool = False
    pictures: tuple[bytes, ...] = ()
    ended: bool = False  # the process is gone, and its names with it


# --- the parent's side ------------------------------------------------------------------------------


class Notebook:
    """One process. `folder`: where its code runs and may write; `scratch`: a private folder for its temporary files.

    Raises UsageError where this system cannot confine a process. Not safe from several threads.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        if not can_confine():
            raise UsageError(
                "the tool python needs Linux with a kernel that confines processes (Landlock, Linux 5.13)",
                "leave --tool python out here",
            )
        self._folder, self._scratch = folder, scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a process, with names of earlier calls."""
        return self._process is not None

    def run(self, code: str, seconds: float = CALL_S) -> NotebookResult:
        """Run code; after `seconds` on the clock the process is ended. Raises UsageError, CapacityExceeded."""
        if len(code) > MAX_CODE:
            raise UsageError(f"the code has {len(code):,} characters; the limit is {MAX_CODE:,}")
        self._start()
        assert self._sock is not None
        talk = TimedTalk(self._sock, seconds)
        try:
            talk.send(json.dumps({"code": code}).encode())
            reply = self._reply(talk)
        except ChildEnded as e:
            self.close()
            why = f"the code ran longer than {seconds:g} s" if e.late else "it took too much time or memory"
            return NotebookResult(
                f"The interpreter was ended: {why}. Its variables are gone.", True, ended=True
            )
        except ValueError:
            self.close()
            return NotebookResult(
                "The interpreter broke its own output. Its variables are gone.", True, ended=True
            )
        return reply

    def kill(self) -> None:
        """End the process from another thread: a call that runs there returns."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process and forget its names; the next call starts another."""
        if self._process is not None and self._sock is not None:
            self._sock.close()
            self._process.kill()
            self._process.wait()
        self._process = self._sock = None

    def _start(self) -> None:
        if self._process is not None:
            return
        self._sock, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = spawn_on_socket(
                    (*_COMMAND, str(self._folder), str(self._scratch)),
                    self._sock,
                    theirs,
                    env={"PYTHONHASHSEED": "0"},
                    stderr=subprocess.DEVNULL,
                    cwd=str(self._folder),
                )
            talk = TimedTalk(self._sock, _START_S)
            confined = talk.read(1)
        except (OSError, ChildEnded) as e:
            self.close()
            raise CapacityExceeded(f"no process can be started for the tool python: {e}") from e
        if confined != b"+":
            self.close()
            raise UsageError("this kernel lets no process confine itself", "leave --tool python out here")

    def _reply(self, talk: TimedTalk) -> NotebookResult:
        size = int.from_bytes(talk.read(LENGTH), "little")
        if size > _MOST:
            raise ValueError
        plain = json.loads(talk.read(size))
        text, failed, pictures = plain["text"], plain["failed"], plain["pictures"]
        if not isinstance(text, str) or not isinstance(failed, bool) or not isinstance(pictures, list):
            raise ValueError
        kept = [base64.b64decode(each, validate=True) for each in pictures[:MAX_PICTURES]]
        kept = [each for each in kept if len(each) <= MAX_PICTURE]
        return NotebookResult(text[:MAX_TEXT], failed, tuple(kept))


# --- the process ------------------------------------------------------------------------------------


def main() -> None:
    """Close in, then run each code that comes."""
    from freehold.base.sandbox.closing_in import close_in, runtime_files

    folder, scratch, number, parent = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    follow_parent(parent)
    for name in ("math", "re", "json", "csv", "collections", "itertools", "datetime", "random", "statistics"):
        __import__(name)  # before the folder's own files may have their names
    confined = close_in(
        (number,),
        seconds=PROCESSOR_S,
        memory=MEMORY,
        readable=(*runtime_files(), folder, scratch),
        writable=(folder, scratch),
    )
    os.write(number, b"+" if confined else b"-")
    if not confined:
        return
    os.environ.update(HOME=scratch, TMPDIR=scratch, MPLCONFIGDIR=scratch, MPLBACKEND="Agg", LANG="C.UTF-8")
    sys.dont_write_bytecode = True
    sys.argv = [""]
    sys.path.insert(0, folder)
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    while message := _received(number):
        write_all(number, _sent(_ran(json.loads(message)["code"], names)))


def _ran(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run code in `names`; return what the parent reads."""
    printed = _Printed()
    sys.stdout = sys.stderr = printed
    failed = False
    try:
        _execute(code, names)
    except SystemExit as e:
        failed = e.code not in (None, 0)
        if failed:
            printed.write(f"exited with {e.code!r}\n")
    except BaseException as e:
        failed = True
        printed.write(_shown(e))
    pictures: list[str] = []
    try:
        pictures = _pictures()
    except Exception as e:  # the code may have put anything in matplotlib's place
        printed.write(_shown(e))
    return {"text": printed.getvalue(), "failed": failed, "pictures": pictures}


def _execute(code: str, names: dict[str, Any]) -> None:
    """Run the statements; print the value of the last one where it is an expression, as a console does."""
    parsed = ast.parse(code, _NAME)
    last = parsed.body.pop() if parsed.body and isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, _NAME, "exec", dont_inherit=True), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), _NAME, "eval", dont_inherit=True), names)
        if value is not None:
            sys.stdout.write(f"{value!r}\n")


def _shown(error: BaseException) -> str:
    """Return an exception with the frames of the code alone."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, each in enumerate(frames) if each.filename == _NAME), len(frames))
    lines = traceback.format_list(frames[first:][-_SHOWN_FRAMES:])
    head = ["Traceback (most recent call last):\n"] if lines else []
    return "".join([*head, *lines, *traceback.format_exception_only(type(error), error)])


def _pictures() -> list[str]:
    """Return the open figures of matplotlib as PNG in base64, and close them."""
    plot = sys.modules.get("matplotlib.pyplot")
    if plot is None:
        return []
    pictures = []
    for number in plot.get_fignums()[:MAX_PICTURES]:
        file = io.BytesIO()
        plot.figure(number).savefig(file, format="png")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    plot.close("all")
    return pictures


class _Printed(io.StringIO):
    """What a call prints, up to a limit; what is beyond is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = self._beyond = 0

    def write(self, text: str, /) -> int:
        """Keep what fits."""
        room = MAX_TEXT - 200 - self._kept
        super().write(text[: max(room, 0)])
        self._kept += min(len(text), max(room, 0))
        self._beyond += max(len(text) - max(room, 0), 0)
        return len(text)

    def getvalue(self) -> str:
        """Return what was kept, and how much was left out."""
        beyond = f"\n[{self._beyond:,} more characters were printed]" if self._beyond else ""
        return super().getvalue() + beyond


def _received(number: int) -> bytes:
    size = int.from_bytes(_exactly(number, LENGTH), "little")
    return _exactly(number, size)


def _exactly(number: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(number, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(0)
        data += piece
    return bytes(data)


def _sent(plain: dict[str, Any]) -> bytes:
    message = json.dumps(plain).encode("utf-8", "replace")
    return len(message).to_bytes(LENGTH, "little") + message


def scratch_folder(home: Path, parts: Sequence[str]) -> Path:
    """Make and return a private folder below a home."""
    from freehold.base import private

    return private.folder(home.joinpath(*parts), home)


if __name__ == "__main__":
    main()
