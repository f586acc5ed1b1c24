"""The clipboard and the editor, through the desktop's programs.

Knows text; knows no chat. Without a clipboard program the terminal sets it (OSC 52), which works through ssh.
Path: chat.Chat.copy -> copy; chat.Chat.edit -> edited
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

import click

from freehold.errors import UsageError

# A program, and what must be set for it to work.
PROGRAMS = (
    (["pbcopy"], ""),
    (["wl-copy"], "WAYLAND_DISPLAY"),
    (["xclip", "-selection", "clipboard"], "DISPLAY"),
    (["xsel", "--clipboard", "--input"], "DISPLAY"),
    (["clip.exe"], "WSL_DISTRO_NAME"),
)
OSC52_BYTES = 74_000  # the least that terminals with this sequence take: xterm's limit
PATIENCE_S = 5.0


def copy(text: str) -> str:
    """Put text on the clipboard; return how. Raises UsageError if neither a program nor the terminal accepts it."""
    for command, needs in PROGRAMS:
        if shutil.which(command[0]) and (not needs or os.environ.get(needs)) and _fed(command, text):
            return f"by {command[0]}"
    raw = text.encode("utf-8")
    if len(raw) > OSC52_BYTES or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError(
            f"no clipboard accepts {len(raw):,} bytes here",
            "install wl-copy or xclip, or copy from the screen",
        )
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(raw).decode()}\x07")
    sys.stdout.flush()
    return "through the terminal (OSC 52)"


def _fed(command: list[str], text: str) -> bool:
    try:
        done = subprocess.run(command, input=text.encode("utf-8"), timeout=PATIENCE_S, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def edited(text: str) -> str | None:
    """Return text as edited in $VISUAL or $EDITOR; None if it was not saved."""
    try:
        changed = click.edit(text, extension=".md")
    except click.ClickException as e:
        raise UsageError(
            f"the editor failed: {e.format_message()}", "set EDITOR to one that is installed"
        ) from e
    return None if changed is None else changed.rstrip("\n")
