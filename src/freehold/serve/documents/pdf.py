"""A PDF's pages to blocks, by pypdfium2.

Lines come in the order that the file has them, which follows columns; a larger gap, or a line further up, begins a
paragraph, and larger letters a heading. Runs in a child that is closed in (child.py). Knows PDFium; opens no path.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from freehold.base.errors import UsageError
from freehold.serve.documents.texts import BlockList
from freehold.serve.documents.types import MAX_PAGES, DocumentBlock

if TYPE_CHECKING:
    import pypdfium2

_HEADING = 1.12  # times the usual size of letters, from which on a short line is a heading
_LEVELS = ((1.7, 1), (1.35, 2))  # the others are of level 3
_LONGEST_HEADING = 160  # characters
_GAP = 1.4  # times the usual distance of lines, which separates paragraphs
_SOFT_HYPHENS = ("\ufffe", "\x02", "\xad")
_LINE_ENDS = str.maketrans({"\r": None, "\ufffe": None, "\x02": None, "\xad": None, "\0": None})


@dataclass(frozen=True, slots=True)
class PageLine:
    """A line of a page: `start`: of its first character in the page's text; `size`, `top` and `bottom` in points."""

    text: str
    start: int
    number: int
    size: float
    top: float
    bottom: float


def pdf_blocks(data: bytes) -> tuple[list[DocumentBlock], list[str]]:
    """Return a PDF's blocks, and notes on pages without text. Raises UsageError for one that cannot be read."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as e:
        if "assword" in str(e):
            raise UsageError("the PDF is encrypted with a password", "save it without one") from None
        raise UsageError("the PDF is damaged or cut short", "print it into a new PDF") from None
    count = len(document)
    if count > MAX_PAGES:
        raise UsageError(f"the PDF has {count:,} pages; the limit is {MAX_PAGES:,}", "split it into several")
    out, empty = BlockList(), 0
    for number in range(count):
        before = len(out.blocks)
        for block in _page_blocks(document, number):
            out.add(block)
        empty += len(out.blocks) == before
    if empty == count:
        raise UsageError(
            f"the PDF has no text on its {count:,} pages: it holds pictures, as a scan does",
            "run it through OCR first, or ask a vision model about its pages",
        )
    notes = [f"{empty:,} of {count:,} pages have no text"] if empty else []
    return out.blocks, notes


def _page_blocks(document: pypdfium2.PdfDocument, number: int) -> Iterator[DocumentBlock]:
    import pypdfium2

    try:
        page = document[number]
        text_page = page.get_textpage()
    except pypdfium2.PdfiumError:
        return
    try:
        lines = _lines(text_page)
    finally:
        text_page.close()
        page.close()
    if not lines:
        return
    usual = statistics.median(line.size for line in lines for _ in range(1 + len(line.text) // 20))
    paragraph: list[PageLine] = []
    distance = _usual_distance(lines)
    for line in lines:
        if paragraph and _separates(paragraph[-1], line, distance):
            yield _block(paragraph, usual, number + 1)
            paragraph = []
        paragraph.append(line)
    yield _block(paragraph, usual, number + 1)


def _lines(text_page: pypdfium2.PdfTextPage) -> list[PageLine]:
    """Return the lines that have text; a character of the page's text has the same index in PDFium."""
    import pypdfium2.raw as raw

    text = text_page.get_text_range()
    out: list[PageLine] = []
    index = chars = 0
    for number, line in enumerate(text.split("\n"), 1):
        clean = line.translate(_LINE_ENDS)
        if clean.strip():
            at = index + len(line) - len(line.lstrip())
            size = max(0.0, raw.FPDFText_GetFontSize(text_page, at))
            top, bottom = _height(text_page, at)
            out.append(PageLine(clean, chars, number, size, top, bottom))
        index += len(line) + 1
        chars += len(clean) + 1
    return out


def _height(text_page: pypdfium2.PdfTextPage, index: int) -> tuple[float, float]:
    import pypdfium2.raw as raw

    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    raw.FPDFText_GetCharBox(text_page, index, left, right, bottom, top)
    return top.value, bottom.value


def _usual_distance(lines: list[PageLine]) -> float:
    steps = [a.bottom - b.bottom for a, b in pairwise(lines) if a.bottom > b.bottom]
    return statistics.median(steps) if steps else 0.0


def _separates(above: PageLine, line: PageLine, distance: float) -> bool:
    """Return whether a line begins a paragraph: far below the last one, above it, or in letters of another size."""
    step = above.bottom - line.bottom
    return (
        step > _GAP * distance
        or step < -distance
        or abs(above.size - line.size) > 0.08 * max(above.size, 1.0)
    )


def _block(lines: list[PageLine], usual: float, page: int) -> DocumentBlock:
    first, last = lines[0], lines[-1]
    text = "\n".join(line.text.strip() for line in lines)
    larger = first.size >= _HEADING * usual and len(text) <= _LONGEST_HEADING
    level = next((level for times, level in _LEVELS if first.size >= times * usual), 3) if larger else 0
    end = last.start + len(last.text)
    kind = "heading" if larger else "text"
    if larger:
        text = " ".join(text.split())
    return DocumentBlock(kind, text, first.start, end, first.number, last.number, page=page, level=level)
