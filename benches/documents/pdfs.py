"""Makes PDFs of documents with questions: pages of one or two columns, tables with rules, code in Courier.

    python benches/documents/pdfs.py HTML_FOLDER OUT --questions benches/documents/data/python_docs.jsonl

HTML is the folder `html` of Debian's package python3.13-doc. Takes the documents that have the most questions. Writes
OUT/NAME.pdf, alternately with one column and with two, and OUT/questions.jsonl with the questions on them. A phrase
that Windows-1252 cannot write is left out with its question.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.serve.documents.reading import read_document
from freehold.serve.documents.types import DocumentBlock

WIDTH, HEIGHT, MARGIN, GUTTER = 595.0, 842.0, 54.0, 20.0  # points; A4
SIZE, LEADING = 9.0, 11.5
TEXT, BOLD, CODE = "F1", "F2", "F3"
FONTS = {TEXT: "Helvetica", BOLD: "Helvetica-Bold", CODE: "Courier"}
HEADINGS = {1: 18.0, 2: 14.0}  # the others: 11
NARROW, WIDE = frozenset("ijlftI.,:;'|!()[]/ "), frozenset("mwMWGOQ@%—")
MOST_PAGES = 60  # of a document: a few reference pages are books of their own


@dataclass(frozen=True)
class Column:
    """A column of a page: where it begins, and how wide it is."""

    left: float
    width: float


class Layout:
    """Fills pages column by column."""

    def __init__(self, columns: int) -> None:
        width = (WIDTH - 2 * MARGIN - (columns - 1) * GUTTER) / columns
        self.columns = [Column(MARGIN + i * (width + GUTTER), width) for i in range(columns)]
        self.pages: list[list[str]] = [[]]
        self.column, self.y = 0, HEIGHT - MARGIN

    @property
    def width(self) -> float:
        return self.columns[0].width

    def room(self, height: float) -> None:
        """Go to the next column or page where `height` does not fit."""
        if self.y - height >= MARGIN:
            return
        self.column, self.y = self.column + 1, HEIGHT - MARGIN
        if self.column == len(self.columns):
            self.column = 0
            self.pages.append([])

    def line(self, text: str, font: str = TEXT, size: float = SIZE, indent: float = 0.0) -> None:
        self.room(size * LEADING / SIZE)
        self.y -= size * LEADING / SIZE
        self.text(text, font, size, self.columns[self.column].left + indent, self.y)

    def text(self, text: str, font: str, size: float, x: float, y: float) -> None:
        plain = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        self.pages[-1].append(f"BT /{font} {size:g} Tf {x:.1f} {y:.1f} Td ({plain}) Tj ET")

    def rule(self, y: float) -> None:
        column = self.columns[self.column]
        self.pages[-1].append(
            f"0.4 w {column.left:.1f} {y:.1f} m {column.left + column.width:.1f} {y:.1f} l S"
        )

    def gap(self, height: float) -> None:
        self.y -= height


def width_of(text: str, font: str, size: float) -> float:
    """Return about how wide a text is: a little more than Helvetica, so that no line leaves its column."""
    if font == CODE:
        return 0.6 * size * len(text)
    parts = (0.3 if c in NARROW else 0.85 if c in WIDE else 0.57 for c in text)
    return size * sum(parts)


def wrapped(text: str, width: float, font: str = TEXT, size: float = SIZE) -> Iterator[str]:
    """Yield a text's lines; a word that is too long is cut."""
    line = ""
    for word in text.split():
        while width_of(word, font, size) > width:
            fits = max(1, int(len(word) * width / width_of(word, font, size)) - 1)
            if line:
                yield line
                line = ""
            yield word[:fits]
            word = word[fits:]
        longer = f"{line} {word}" if line else word
        if line and width_of(longer, font, size) > width:
            yield line
            longer = word
        line = longer
    if line:
        yield line


def laid_out(blocks: Iterable[DocumentBlock], columns: int) -> Layout:
    """Return the pages of a document."""
    layout = Layout(columns)
    in_table = False
    for block in blocks:
        if len(layout.pages) > MOST_PAGES:
            break
        if in_table and block.kind != "row":
            layout.rule(layout.y - 3)
        if not (in_table and block.kind == "row"):
            layout.gap(LEADING / 2)
        in_table = block.kind == "row"
        if block.kind == "heading":
            size = HEADINGS.get(block.level, 11.0)
            layout.gap(LEADING / 2)
            layout.room(4 * size)
            for line in wrapped(block.text, layout.width, BOLD, size):
                layout.line(line, BOLD, size)
        elif block.kind == "row":
            table_row(layout, block.text.split(" | "))
        elif block.kind == "code":
            for line in block.text.split("\n"):
                fits = int(layout.width / (0.6 * 7.5))
                for at in range(0, max(1, len(line)), fits):
                    layout.line(line[at : at + fits], CODE, 7.5)
        else:
            for line in wrapped(block.text, layout.width):
                layout.line(line)
    return layout


def table_row(layout: Layout, cells: list[str]) -> None:
    """Draw a row: cells side by side, their lines below each other, with a rule above."""
    width = layout.width / len(cells)
    columns = [list(wrapped(cell, width - 6)) for cell in cells]
    height = LEADING * max(1, *(len(lines) for lines in columns), 1)
    layout.room(min(height + 4, HEIGHT / 2))
    layout.rule(layout.y - 3)
    top, left = layout.y - 4, layout.columns[layout.column].left
    for i, lines in enumerate(columns):
        for n, line in enumerate(lines):
            layout.text(line, TEXT, SIZE, left + i * width + 2, top - (n + 1) * LEADING)
    layout.y -= height + 4


def pdf(pages: Iterable[Iterable[str]]) -> bytes:
    """Return a PDF file of pages, each a list of drawing operators."""
    fonts = " ".join(f"/{key} {3 + i} 0 R" for i, key in enumerate(FONTS))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    objects += [
        f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} /Encoding /WinAnsiEncoding >>".encode()
        for name in FONTS.values()
    ]
    kids: list[int] = []
    for page in pages:
        drawn = zlib.compress("\n".join(page).encode("cp1252", "replace"))
        objects.append(b"<< /Filter /FlateDecode /Length %d >>\nstream\n%b\nendstream" % (len(drawn), drawn))
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH:g} {HEIGHT:g}] /Resources << /Font << {fonts} >> >> "
            f"/Contents {len(objects)} 0 R >>".encode()
        )
        kids.append(len(objects))
    objects[1] = (
        f"<< /Type /Pages /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] /Count {len(kids)} >>".encode()
    )
    out, offsets = bytearray(b"%PDF-1.4\n"), list[int]()
    for n, each in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (n, each)
    start, count = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % count
    out += b"".join(b"%010d 00000 n \n" % at for at in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, start)
    return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the files of the questions are")
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args()
    lines = options.questions.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    files = [file for file, _ in Counter(each["file"] for each in questions).most_common(options.count)]
    options.out.mkdir(parents=True, exist_ok=True)
    pages = rows = 0
    for n, file in enumerate(files):
        parsed = read_document(file, (options.folder / file).read_bytes())
        layout = laid_out(parsed.blocks, 1 + n % 2)
        (options.out / pdf_name(file)).write_bytes(pdf(layout.pages))
        pages, rows = pages + len(layout.pages), rows + sum(block.kind == "row" for block in parsed.blocks)
    with (options.out / "questions.jsonl").open("w", encoding="utf-8") as out:
        for each in questions:
            if (
                each["file"] in files
                and each["phrase"].encode("cp1252", "ignore").decode("cp1252") == each["phrase"]
            ):
                out.write(json.dumps({**each, "file": pdf_name(each["file"])}, ensure_ascii=False) + "\n")
    print(f"{len(files)} PDFs, {pages:,} pages, {rows:,} rows of tables")


def pdf_name(file: str) -> str:
    return Path(file).with_suffix(".pdf").as_posix().replace("/", "-")


if __name__ == "__main__":
    main()
