"""Render Markdown while it streams, forward only: nothing written is ever moved over or erased.

So output is the same over ssh, in tmux and in a log; a word appears once it is complete, a table once it
ends. Supports what models write: headings, lists, quotes, fences, tables, rules, **bold**, *italic*,
`code`. Control characters from the model never reach the terminal. Knows no model and no chat.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from wcwidth import wcswidth

_RESET, _BOLD, _DIM, _ITALIC, _UNDERLINE, _CODE = (
    "\x1b[0m",
    "\x1b[1m",
    "\x1b[2m",
    "\x1b[3m",
    "\x1b[4m",
    "\x1b[36m",
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HEADING = re.compile(r"(#{1,6}) ")
_BULLET = re.compile(r"( *)([-*+]|\d{1,3}[.)]) ")
_QUOTE = re.compile(r" *> ?")
_FENCE = re.compile(r" *(`{3,}|~{3,})(.*)")
_RULE = re.compile(r" *([-*_])( *\1){2,} *")
_MARKS = ("**", "__", "*", "_", "`")
_UNDECIDED = re.compile(r" *([-*+_`~#>|]*|\d{0,3}[.)]?)")  # a line that may still become any block


def clean(text: str) -> str:
    """Drop control characters except tab and newline: a model must not control the terminal."""
    return _CONTROL.sub("", text)


class PlainRenderer:
    """Write text as it comes, without control characters; thinking dimmed when `colour` is on."""

    def __init__(self, write: Callable[[str], None], *, colour: bool = False) -> None:
        self._write, self._colour = write, colour
        self._thought, self._last = False, "\n"

    def think(self, text: str) -> None:
        """Show a piece of reasoning."""
        self._thought = self._thought or bool(text)
        self._put(f"{_DIM}{clean(text)}{_RESET}" if self._colour else clean(text), clean(text))

    def feed(self, text: str) -> None:
        """Show a piece of the answer."""
        if self._thought and text:
            self._thought = False
            self._put("\n\n" if self._last != "\n" else "\n", "\n")
        self._put(clean(text), clean(text))

    def finish(self) -> None:
        """End the last line."""
        if self._last != "\n":
            self._put("\n", "\n")

    def _put(self, shown: str, text: str) -> None:
        if text:
            self._last = text[-1]  # first: Ctrl-C may come between the two
            self._write(shown)


class DataRenderer:
    """Write the answer alone, byte for byte, for a pipe or a file; a last newline is added if missing."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._last = write, "\n"

    def think(self, text: str) -> None:
        """Leave reasoning out: stdout is data."""

    def feed(self, text: str) -> None:
        """Write a piece of the answer."""
        if text:
            self._last = text[-1]  # first: Ctrl-C may come between the two
            self._write(text)

    def finish(self) -> None:
        """End the last line."""
        if self._last != "\n":
            self._write("\n")


class StreamRenderer:
    """Turn pieces of Markdown into styled terminal text, `width` cells wide."""

    def __init__(self, write: Callable[[str], None], width: int) -> None:
        self._write, self._width = write, max(width, 20)
        self._line = ""  # what came of the current line and is not shown yet
        self._started = False  # the current line's block is known and its beginning shown
        self._fence, self._language = "", ""
        self._table: list[str] = []
        self._inline = _Inline(write, self._width)
        self._thinking = False

    def think(self, text: str) -> None:
        """Show a piece of reasoning, dimmed and as it is."""
        if text:
            self._thinking = True
            self._write(f"{_DIM}{clean(text)}{_RESET}")

    def feed(self, text: str) -> None:
        """Add a piece of the answer and show what is certain."""
        if self._thinking and text:
            self._thinking = False
            self._write("\n\n")
        *lines, rest = (self._line + clean(text).expandtabs(4)).split("\n")
        for line in lines:
            self._line = ""
            self._end_line(line)
        self._line = self._grow(rest)

    def finish(self) -> None:
        """Show what is left and reset every style."""
        if self._thinking or self._line or self._started:
            self._thinking = False
            self._end_line(self._line)
        self._line = ""
        self._flush_table()

    def _grow(self, rest: str) -> str:
        """Show the complete words of an unfinished line; return what has to wait."""
        if self._fence or rest.lstrip().startswith("|") or not rest:
            return rest
        if not self._started:
            if _UNDECIDED.fullmatch(rest) or _FENCE.match(rest):
                return rest
            rest = self._start(rest)
        cut = rest.rfind(" ") + 1
        self._inline.show(rest[:cut])
        return rest[cut:]

    def _start(self, line: str) -> str:
        """Show the marker that opens a block and return the text after it."""
        self._flush_table()
        self._started = True
        if heading := _HEADING.match(line):
            self._inline.begin(_BOLD + (_UNDERLINE if len(heading[1]) == 1 else ""))
            return line[heading.end() :]
        if bullet := _BULLET.match(line):
            mark = "•" if bullet[2] in "-*+" else bullet[2]
            lead = f"{bullet[1]}{mark} "
            self._inline.begin("", lead=lead, indent=len(lead))
            return line[bullet.end() :]
        if quote := _QUOTE.match(line):
            self._inline.begin(_DIM, lead="│ ", indent=2)
            return line[quote.end() :]
        self._inline.begin("")
        return line

    def _end_line(self, line: str) -> None:
        if self._started:
            self._inline.show(line)
            self._inline.end()
            self._started = False
        elif self._fence:
            self._code_line(line)
        elif fence := _FENCE.fullmatch(line):
            self._flush_table()
            self._fence, self._language = fence[1], fence[2].strip()
        elif line.lstrip().startswith("|"):
            self._table.append(line)
        elif _RULE.fullmatch(line):
            self._flush_table()
            self._write(_DIM + "─" * min(self._width, 40) + _RESET + "\n")
        else:
            self._inline.show(self._start(line))
            self._inline.end()
            self._started = False

    def _code_line(self, line: str) -> None:
        if line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0]):
            self._fence = ""
            return
        self._write("  " + _highlight(line, self._language) + "\n")

    def _flush_table(self) -> None:
        if not self._table:
            return
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in self._table]
        self._table = []
        ruled = [i for i, row in enumerate(rows) if all(re.fullmatch(r":?-+:?", c) for c in row)]
        rows = [row for i, row in enumerate(rows) if i not in ruled]
        columns = max(map(len, rows), default=0)
        rows = [[*map(_unmarked, row), *[""] * (columns - len(row))] for row in rows]
        widths = [max(_cells(row[i]) for row in rows) for i in range(columns)]
        for n, row in enumerate(rows):
            text = "  ".join(c + " " * (w - _cells(c)) for c, w in zip(row, widths, strict=True)).rstrip()
            self._write((f"{_BOLD}{text}{_RESET}" if n == 0 and ruled else text) + "\n")


Renderer = StreamRenderer | PlainRenderer | DataRenderer


class _Inline:
    """One line of running text: styles that open and close, words that wrap."""

    def __init__(self, write: Callable[[str], None], width: int) -> None:
        self._write, self._width = write, width
        self.begin("")

    def begin(self, base: str, *, lead: str = "", indent: int = 0) -> None:
        """Start a line in style `base`; wrapped rows are indented by `indent` cells."""
        self._base, self._indent = base, indent
        self._open: list[str] = []
        self._column, self._before = _cells(lead), " "
        if base or lead:
            self._write(base + lead)

    def show(self, text: str) -> None:
        """Show whole words."""
        for word in re.findall(r" +|[^ ]+", text):
            self._word(word)

    def end(self) -> None:
        """End the line and every style in it."""
        self._write((_RESET if self._open or self._base else "") + "\n")
        self.begin("")

    def _word(self, word: str) -> None:
        styled, visible = self._styled(word)
        cells = _cells(visible)
        if word[0] != " " and self._column + cells > self._width and self._column > self._indent:
            self._write("\n" + " " * self._indent)
            self._column = self._indent
        elif word[0] == " " and self._column + cells > self._width:
            return
        self._write(styled)
        self._column += cells

    def _styled(self, word: str) -> tuple[str, str]:
        """Return the word with styles in place of its marks, and what a reader sees of it."""
        out, seen, i = "", "", 0
        while i < len(word):
            mark = next((m for m in _MARKS if word.startswith(m, i)), "")
            after = word[i + len(mark) : i + len(mark) + 1] or " "
            if mark and self._toggles(mark, after):
                out += self._toggle(mark)
                i += len(mark)
                continue
            if word[i] == "\\" and after and i + 1 < len(word) and not word[i + 1].isalnum():
                i += 1
            out, seen, self._before = out + word[i], seen + word[i], word[i]
            i += 1
        return out, seen

    def _toggles(self, mark: str, after: str) -> bool:
        if "`" in self._open:
            return mark == "`"
        if mark == "`":
            return True
        if "_" in mark and self._before.isalnum() and after.isalnum():
            return False
        if mark in self._open:
            return self._before != " "
        return after != " " and not (self._before.isalnum() and after.isalnum())

    def _toggle(self, mark: str) -> str:
        if mark in self._open:
            self._open.remove(mark)
        else:
            self._open.append(mark)
        styles = {"`": _CODE, "**": _BOLD, "__": _BOLD, "*": _ITALIC, "_": _ITALIC}
        return _RESET + self._base + "".join(styles[m] for m in self._open)


def _cells(text: str) -> int:
    return max(wcswidth(text), 0)


def _unmarked(cell: str) -> str:
    return re.sub(r"\*\*|__|`", "", cell)


def _highlight(line: str, language: str) -> str:
    """Colour one line of code. Line by line: a string over several lines may lose its colour."""
    if not language:
        return f"{_CODE}{line}{_RESET}"
    from pygments import highlight
    from pygments.formatters.terminal import TerminalFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language.split()[0].split(",")[0], stripnl=False, ensurenl=False)
    except ClassNotFound:
        return f"{_CODE}{line}{_RESET}"
    return highlight(line, lexer, TerminalFormatter()).rstrip("\n")
