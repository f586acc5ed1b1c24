"""Reads the user's lines in a chat: history, several lines, a status line. The only file with prompt-toolkit.

Enter sends; Alt-Enter and Ctrl-J start a new line; a text that opens with three double quotes is sent by
the Enter after the closing three; pasted lines stay together. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from freehold.base import private

QUOTES = '"""'


def is_open_block(text: str) -> bool:
    """Return whether `text` opens a block of three quotes and does not close it yet."""
    body = text.lstrip()
    return body.startswith(QUOTES) and not body[len(QUOTES) :].rstrip().endswith(QUOTES)


def unquoted(text: str) -> str:
    """Return the text of a block without its quotes; other text as it is."""
    body = text.strip()
    if body.startswith(QUOTES) and body.endswith(QUOTES) and len(body) >= 2 * len(QUOTES):
        return body[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


class LineReader:
    """Prompt for one message at a time. `status` gives the text of the line at the bottom.

    Further keywords go to PromptSession (tests pass a pipe as `input`).
    """

    def __init__(
        self, history: Path | None, status: Callable[[], str], words: list[str], **session: Any
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            multiline=True,
            key_bindings=_keys(),
            bottom_toolbar=lambda: FormattedText([("noreverse", status())]),
            completer=WordCompleter(words, sentence=True),
            complete_while_typing=False,
            prompt_continuation=lambda width, line, wrapped: "... ".rjust(width),
            **session,
        )

    def read(self) -> str:
        """Return the next message; raise EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C."""
        return unquoted(self._session.prompt(">>> "))


class PlainReader:
    """Read messages line by line on a terminal without control sequences; three quotes open and close a block."""

    def read(self) -> str:
        """Return the next message; raise EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C."""
        text = input(">>> ")
        while is_open_block(text):
            text += "\n" + input("... ")
        return unquoted(text)


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        private.folder(path.parent)
        os.close(private.opener(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    except OSError:  # a read-only home costs the history, not the chat
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
