"""Record what commands print, as pictures for the guides: `python docs/record.py qwen2.5-coder:0.5b`.

Each runs in a terminal of its own with a server of its own that holds MODEL; what it wrote, colours included, becomes
an SVG that fetches nothing. Knows pseudo-terminals and rich's SVG; the commands are the program's.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from freehold.base.config import load_settings

PICTURES = Path(__file__).parent / "guides" / "clients" / "pictures"
WIDTH = 100  # columns
FREEHOLD = [sys.executable, "-m", "freehold.cli.main"]
_FONTS = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)  # that a page would fetch


def record(arguments: list[str], home: Path, name: str) -> Path:
    """Run a command in a terminal of its own, and draw what it showed."""
    shown = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    shown.print(Text.assemble(("$ ", "bold green"), " ".join(["freehold", *arguments])))
    shown.print(Text.from_ansi(_terminal([*FREEHOLD, *arguments], home).replace(str(home), "~")))
    path = PICTURES / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_FONTS.sub("\n", shown.export_svg(title="freehold")), encoding="utf-8")
    return path


def _terminal(command: list[str], home: Path) -> str:
    """Return what a command writes to a terminal, last states of its lines alone."""
    ours, theirs = pty.openpty()
    size = {"COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color"}
    run = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**_environment(home), **size}
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 1 << 16)
        except OSError:  # the terminal's other end is closed
            break
    os.close(ours)
    if status := run.wait():
        raise SystemExit(f"{' '.join(command)} ended with {status}:\n{said.decode()}")
    lines = said.decode().replace("\r\n", "\n").rstrip().split("\n")
    return "\n".join(re.split(r"\r|\x1b\[2?K", line.rstrip("\r"))[-1] for line in lines)


@contextmanager
def serving(home: Path, model: str) -> Iterator[None]:
    """Serve a model where clients look for it, on 11435."""
    command = [*FREEHOLD, "serve", model, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment(home), text=True
    ) as server:
        assert server.stdout is not None
        print(json.loads(server.stdout.readline())["url"], file=sys.stderr)
        try:
            yield
        finally:
            server.terminate()


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "FREEHOLD_HOME": str(home), "HOME": str(home)}


def main() -> None:
    """Record every picture, in a home that has the models and nothing else of this user's."""
    held = load_settings().home
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for part in ("models", "packs"):
            (home / part).symlink_to(held / part)
        with serving(home, sys.argv[1]):
            print(record(["doctor", "compat"], home, "compat"))
            print(record(["launch", "claude"], home, "launch"))


if __name__ == "__main__":
    main()
