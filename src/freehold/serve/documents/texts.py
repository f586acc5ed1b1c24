"""Text formats to blocks with places: plain text, Markdown, source code, CSV and HTML.

What reads Markdown, code, plain text and CSV takes time in proportion to the text, and runs in the caller's process;
HTML is read in a child (child.py), as compressed formats are. Knows texts; opens nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

from freehold.base.errors import UsageError
from freehold.serve.documents.types import MAX_BLOCKS, MAX_TEXT, DocumentBlock

MARKDOWN = (".md", ".markdown", ".mdx", ".qmd", ".rmd")
PLAIN = (".txt", ".text", ".log", ".rst", ".adoc", ".asciidoc", ".org", ".tex", ".srt", ".vtt", ".eml")
TABLES = (".csv", ".tsv")
PAGES = (".html", ".htm", ".xhtml")
CODE = (
    *(
        ".py",
        ".pyi",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hpp",
        ".inl",
        ".rs",
        ".go",
        ".java",
        ".kt",
        ".kts",
        ".scala",
    ),
    *(
        ".js",
        ".jsx",
        ".mjs",
        ".cjs",
        ".ts",
        ".tsx",
        ".vue",
        ".svelte",
        ".css",
        ".scss",
        ".rb",
        ".php",
        ".pl",
        ".lua",
    ),
    *(
        ".sh",
        ".bash",
        ".zsh",
        ".fish",
        ".ps1",
        ".sql",
        ".r",
        ".jl",
        ".swift",
        ".m",
        ".cs",
        ".fs",
        ".vb",
        ".hs",
        ".ml",
    ),
    *(
        ".ex",
        ".exs",
        ".erl",
        ".clj",
        ".lisp",
        ".el",
        ".vim",
        ".zig",
        ".nim",
        ".d",
        ".dart",
        ".proto",
        ".graphql",
    ),
    *(
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".conf",
        ".xml",
        ".cmake",
        ".mk",
        ".tf",
        ".nix",
    ),
)
CODE_NAMES = ("makefile", "dockerfile", "cmakelists.txt", "justfile", "rakefile", "gemfile")
_WIDEST_ROW = 2_000  # characters of a table's row that are kept; a cell may hold a whole file


def decoded(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return a file's text, and a note where its encoding had to be assumed. Raises UsageError for binary data."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16"), ()
        except UnicodeDecodeError:
            raise UsageError("the file is not valid UTF-16", "save it as UTF-8") from None
    try:
        text = data.decode("utf-8-sig")
        if "\0" not in text:
            return text, ()
    except UnicodeDecodeError:
        if b"\0" not in data:
            return data.decode("cp1252", "replace"), ("it is not UTF-8, and was read as Windows-1252",)
    raise UsageError("the file is binary, not text", "give a text, a PDF, an Office file or an EPUB")


def check_text(text: str) -> None:
    """Raise UsageError for a text beyond the limit."""
    if len(text) > MAX_TEXT:
        raise UsageError(
            f"the document has {len(text):,} characters; the limit is {MAX_TEXT:,}", "split it into several"
        )


class BlockList:
    """Blocks as they are read. Raises UsageError beyond the limits of a document."""

    def __init__(self) -> None:
        self.blocks: list[DocumentBlock] = []
        self._chars = 0

    def add(self, block: DocumentBlock) -> None:
        """Keep a block that has text."""
        if not block.text.strip():
            return
        self._chars += len(block.text)
        if len(self.blocks) >= MAX_BLOCKS or self._chars > MAX_TEXT:
            raise UsageError(
                f"the document has more than {MAX_BLOCKS:,} paragraphs or {MAX_TEXT:,} characters",
                "split it into several",
            )
        self.blocks.append(block)


class TextLines:
    """A text's lines with their places: line `i` from 0 begins at character `starts[i]`."""

    def __init__(self, text: str) -> None:
        self.lines = [line.rstrip("\r") for line in text.split("\n")]
        self.starts = [0]
        for line in text.split("\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)

    def block(self, kind: str, first: int, last: int, **more: object) -> DocumentBlock:
        """Return lines `first` to `last`, from 0 and both included, as a block; `text` in `more` replaces theirs."""
        text = more.pop("text", None)
        if text is None:
            text = "\n".join(self.lines[first : last + 1])
        end = self.starts[last] + len(self.lines[last])
        return DocumentBlock(kind, text, self.starts[first], end, first + 1, last + 1, **more)  # type: ignore[arg-type]


# --- plain text and source code ---------------------------------------------------------------------

_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*")


def plain_blocks(text: str) -> list[DocumentBlock]:
    """Return paragraphs, and as headings lines underlined as in reStructuredText."""
    lines, out = TextLines(text), BlockList()
    levels: dict[str, int] = {}
    for first, last in _paragraphs(lines.lines):
        under = lines.lines[first + 1] if last > first else ""
        if _UNDERLINE.fullmatch(under) and len(under.rstrip()) >= len(lines.lines[first].strip()) > 0:
            level = levels.setdefault(under[0], len(levels) + 1)
            out.add(lines.block("heading", first, first + 1, text=lines.lines[first].strip(), level=level))
            first += 2
        if first <= last:
            out.add(lines.block("text", first, last))
    return out.blocks


def code_blocks(text: str) -> list[DocumentBlock]:
    """Return runs of lines; a new one begins where a line without indentation follows an empty one."""
    lines, out = TextLines(text), BlockList()
    first = 0
    for i in range(1, len(lines.lines)):
        line = lines.lines[i]
        if line and not line[0].isspace() and line[0] not in ")]}" and not lines.lines[i - 1].strip():
            out.add(_trimmed(lines, first, i - 1))
            first = i
    out.add(_trimmed(lines, first, len(lines.lines) - 1))
    return out.blocks


def _trimmed(lines: TextLines, first: int, last: int) -> DocumentBlock:
    while last > first and not lines.lines[last].strip():
        last -= 1
    return lines.block("code", first, last)


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the first and last line of each run of lines that are not empty."""
    first: int | None = None
    for i, line in enumerate(lines):
        if line.strip():
            first = i if first is None else first
        elif first is not None:
            yield first, i - 1
            first = None
    if first is not None:
        yield first, len(lines) - 1


# --- Markdown ---------------------------------------------------------------------------------------

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*")
_SETEXT = re.compile(r" {0,3}(=+|-+)\s*")
_DIVIDER = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")


def markdown_blocks(text: str) -> list[DocumentBlock]:
    """Return headings, paragraphs, lists, code blocks, and table rows with their header."""
    reader = _Markdown(TextLines(text))
    return reader.read()


class _Markdown:
    def __init__(self, lines: TextLines) -> None:
        self._lines, self._out = lines, BlockList()
        self._first: int | None = None  # of the paragraph that is open

    def read(self) -> list[DocumentBlock]:
        lines, i = self._lines.lines, self._front_matter()
        while i < len(lines):
            line = lines[i]
            if fence := _FENCE.match(line):
                i = self._code(i, fence[1])
            elif heading := _HEADING.fullmatch(line):
                self._heading(i, i, heading[2] or "", len(heading[1]))
                i += 1
            elif self._first is not None and _SETEXT.fullmatch(line) and i == self._first + 1:
                self._first = None
                self._heading(i - 1, i, lines[i - 1].strip(), 1 if "=" in line else 2)
                i += 1
            elif (
                "|" in line
                and i + 1 < len(lines)
                and "|" in lines[i + 1]
                and _DIVIDER.fullmatch(lines[i + 1])
            ):
                i = self._table(i)
            else:
                self._line(i)
                i += 1
        self._close(len(lines) - 1)
        return self._out.blocks

    def _front_matter(self) -> int:
        lines = self._lines.lines
        if lines[0].rstrip() != "---":
            return 0
        return next((i + 1 for i, line in enumerate(lines[1:200], 1) if line.rstrip() in ("---", "...")), 0)

    def _line(self, i: int) -> None:
        if self._lines.lines[i].strip():
            self._first = i if self._first is None else self._first
        else:
            self._close(i - 1)

    def _close(self, last: int) -> None:
        if self._first is not None:
            self._out.add(self._lines.block("text", self._first, last))
            self._first = None

    def _heading(self, first: int, last: int, text: str, level: int) -> None:
        self._close(first - 1)
        self._out.add(self._lines.block("heading", first, last, text=text, level=level))

    def _code(self, i: int, fence: str) -> int:
        """Read a fenced block from its first line; return the line after it."""
        self._close(i - 1)
        lines, last = self._lines.lines, i + 1
        while last < len(lines) and not (
            lines[last].strip().startswith(fence) and not lines[last].strip().strip(fence[0])
        ):
            last += 1
        last = min(last, len(lines) - 1)
        self._out.add(self._lines.block("code", i, last))
        return last + 1

    def _table(self, i: int) -> int:
        self._close(i - 1)
        lines, header = self._lines.lines, table_row(_cells(self._lines.lines[i]))
        last = i + 1
        while last + 1 < len(lines) and "|" in lines[last + 1]:
            last += 1
            row = table_row(_cells(lines[last]))
            self._out.add(self._lines.block("row", last, last, text=row, header=header))
        if last == i + 1:
            self._out.add(self._lines.block("text", i, i, text=header))
        return last + 1


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def table_row(cells: list[str]) -> str:
    """Return a row as text, within the width that is kept."""
    text = " | ".join(" ".join(cell.split()) for cell in cells)
    return text if len(text) <= _WIDEST_ROW else f"{text[:_WIDEST_ROW]} ..."


# --- CSV --------------------------------------------------------------------------------------------


def csv_blocks(text: str, tabs: bool = False) -> list[DocumentBlock]:
    """Return rows with the first one as their header. Raises UsageError for a field beyond csv's limit."""
    lines, out = TextLines(text), BlockList()
    sample = text[:8192]
    delimiter = "\t" if tabs else max(",;\t|", key=lambda c: (sample.count(c), c == ","))
    reader = csv.reader((f"{line}\n" for line in lines.lines), delimiter=delimiter)
    header, before = "", 0
    try:
        for cells in reader:
            first, before = before, reader.line_num
            row = table_row(cells)
            if not row.replace("|", "").strip():
                continue
            if header:
                out.add(lines.block("row", first, before - 1, text=row, header=header))
            else:
                header = row
    except csv.Error as e:
        raise UsageError(f"line {reader.line_num:,} of the table: {e}", "check its quotes") from None
    if header and not out.blocks:
        out.add(lines.block("text", 0, 0, text=header))
    return out.blocks


# --- HTML -------------------------------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED = _names("script style noscript template svg math nav iframe object canvas select button")
_INLINE = _names(
    "a abbr b bdi bdo cite code data del dfn em font i ins kbd label mark q s samp small span strike strong sub sup "
    "time tt u var wbr img input"
)
_VOID = _names("area base br col embed hr img input link meta source track wbr")
_HEADINGS = {f"h{n}": n for n in range(1, 7)}


def html_blocks(text: str, page: int = 0, offset: tuple[int, int] = (0, 0)) -> list[DocumentBlock]:
    """Return a page's headings, paragraphs, list items, preformatted text and table rows, without its navigation.

    `page`: the chapter's number, for books; `offset`: characters and lines before it.
    """
    parser = _HtmlBlocks(text, page, offset)
    parser.feed(text)
    parser.close()
    return parser.finish()


class _HtmlBlocks(HTMLParser):
    def __init__(self, text: str, page: int, offset: tuple[int, int]) -> None:
        super().__init__(convert_charrefs=True)
        self._starts, self._page, self._offset = TextLines(text).starts, page, offset
        self._out = BlockList()
        self._skip: list[str] = []  # elements that are open, from the first that is skipped on
        self._pieces: list[str] = []
        self._from: tuple[int, int] | None = None  # character and line, from 0, of the first piece
        self._to = (0, 0)
        self._pre = self._heading = 0
        self._row: list[str] | None = None
        self._row_from: tuple[int, int] | None = None
        self._header: list[str] = [""]  # of the tables that are open
        self._terms: list[str] = []  # of the definition lists that are open
        self._new_term: tuple[str, tuple[int, int]] | None = None  # one whose definition has not come yet
        self._in_term = False
        self._title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skip:
            if tag not in _VOID:
                self._skip.append(tag)
            return
        roles = dict(attrs)
        if tag in _SKIPPED or (tag not in _VOID and roles.get("role") in ("navigation", "search")):
            self._skip.append(tag)
            return
        if tag == "br":
            self._pieces.append("\n")
        elif tag not in _INLINE:
            self._boundary()
            self._opened(tag)

    def _opened(self, tag: str) -> None:
        if tag == "title":
            self._title = True
        elif tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag == "pre":
            self._pre += 1
        elif tag == "table" and len(self._header) < 20:
            self._header.append("")
        elif tag == "dl" and len(self._terms) < 20:
            self._terms.append("")
        elif tag in ("dt", "dd"):
            self._in_term = tag == "dt"
            if self._in_term and self._terms and self._new_term is None:
                self._terms[-1] = ""
        elif tag == "tr":
            self._end_row()
            self._row = []
        elif tag in ("td", "th") and self._row is not None:
            self._row.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._skip:
            if tag in self._skip:
                while self._skip.pop() != tag:
                    pass
            return
        if tag in _INLINE or tag in _VOID:
            return
        self._boundary()
        if tag == "title":
            self._title = False
        elif tag in _HEADINGS:
            self._heading = 0
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        elif tag == "dt":
            self._in_term = False
        elif tag == "dl":
            self._add_term()
            self._terms = self._terms[:-1]
        elif tag == "tr":
            self._end_row()
        elif tag == "table":
            self._end_row()
            if len(self._header) > 1:
                self._header.pop()

    def handle_data(self, data: str) -> None:
        if self._skip or self._title:
            return
        if data.strip():
            line, column = self.getpos()
            at = self._starts[min(line - 1, len(self._starts) - 1)] + column
            if self._from is None:
                lead = len(data) - len(data.lstrip())
                self._from = at + lead, line - 1 + data[:lead].count("\n")
            body = data.rstrip()
            self._to = at + len(body), line - 1 + body.count("\n")
        if self._pieces or data.strip() or self._pre:
            self._pieces.append(data)

    def finish(self) -> list[DocumentBlock]:
        self._boundary()
        self._end_row()
        self._add_term()
        return self._out.blocks

    def _boundary(self) -> None:
        """End the block that is open; within a row, the cell."""
        text, start = self._taken(), self._from
        self._from = None
        if self._row is not None:
            if text:
                self._row_from = self._row_from or start
                self._row[-1:] = [" ".join([*self._row[-1:], text]).strip()]
            return
        if not text or start is None:
            return
        if self._in_term and self._terms:
            earlier, at = self._new_term or ("", start)
            self._new_term = f"{earlier}\n{text}".strip(), at
            self._terms[-1] = self._new_term[0]
            return
        kind = "heading" if self._heading else "code" if self._pre else "text"
        if self._new_term is not None and kind == "text":  # the definition begins: both are one paragraph
            term, start = self._new_term
            text, self._new_term = f"{term}\n{text}", None
        self._add_term()
        header = "" if self._heading else self._term()
        self._add(kind, text, start, level=self._heading, header=header)

    def _term(self) -> str:
        """Return the term that is being defined, after that of the list around it, as of a class and its method."""
        return " > ".join([term for term in self._terms if term][-2:])

    def _add_term(self) -> None:
        """Add the term that waits for its definition where that does not come, or is a table or code."""
        if self._new_term is not None:
            text, start = self._new_term
            self._new_term = None
            self._add("text", text, start, header=self._term())

    def _taken(self) -> str:
        text, self._pieces = "".join(self._pieces), []
        if self._pre:
            return text.strip("\n") if text.strip() else ""
        text = " ".join(text.split())
        return text.rstrip("¶").rstrip()

    def _end_row(self) -> None:
        row, start, self._row, self._row_from = self._row, self._row_from, None, None
        if not row or start is None:
            return
        text = table_row(row)
        if not self._header[-1]:
            self._header[-1] = text
            self._add("text", text, start)
        else:
            self._add("row", text, start, header=self._header[-1])

    def _add(self, kind: str, text: str, start: tuple[int, int], **more: object) -> None:
        (chars, lines), (to, last) = self._offset, self._to
        place = (start[0] + chars, to + chars, start[1] + 1 + lines, last + 1 + lines)
        self._out.add(DocumentBlock(kind, text, *place, page=self._page, **more))  # type: ignore[arg-type]


TEXT_FORMS: dict[str, Callable[[str], list[DocumentBlock]]] = {
    "text": plain_blocks,
    "markdown": markdown_blocks,
    "code": code_blocks,
    "csv": csv_blocks,
    "tsv": lambda text: csv_blocks(text, tabs=True),
}


def form_of(name: str) -> str:
    """Return the form of a file by its name: "text", "markdown", ..., or "" for a name that says nothing."""
    lower = name.lower()
    suffix = lower[lower.rfind(".") :] if "." in lower else ""
    if lower in CODE_NAMES:
        return "code"
    for form, suffixes in (
        *(("markdown", MARKDOWN), ("text", PLAIN), ("html", PAGES), ("code", CODE)),
        *(("csv", (".csv",)), ("tsv", (".tsv",)), ("pdf", (".pdf",)), ("docx", (".docx", ".docm"))),
        *(("xlsx", (".xlsx", ".xlsm")), ("pptx", (".pptx", ".pptm")), ("epub", (".epub",))),
    ):
        if suffix in suffixes:
            return form
    return ""
