"""A collection with an embedder of words, and small files of every format, written by the standard library."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from freehold.serve.documents.collection import DocumentCollection
from freehold.serve.documents.store import CollectionStore

WIDTH = 64


class WordEmbedder:
    """Implements Embeds: a text's vector is the sum of fixed random vectors of its words."""

    def __init__(self, name: str = "words") -> None:
        self.name = name
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        rows = np.stack([self._row(text) for text in texts]) if texts else np.empty((0, WIDTH))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _row(self, text: str) -> np.ndarray:
        row = np.full(WIDTH, 1e-6)
        for word in re.findall(r"\w+", text.casefold()):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            row += np.random.default_rng(seed).normal(size=WIDTH)
        return row


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def opened(tmp_path: Path, embedder: WordEmbedder) -> Iterator[Callable[..., DocumentCollection]]:
    """Open the test's collection, as often as it wants."""
    path, collections = tmp_path / "home" / "notes.collection", list[DocumentCollection]()

    def open_(**more: object) -> DocumentCollection:
        if not path.exists():
            CollectionStore(path, create="notes", embedder="words").close()
        collections.append(DocumentCollection(CollectionStore(path), embedder, **more))  # type: ignore[arg-type]
        return collections[-1]

    yield open_
    for each in collections:
        each.close()


@pytest.fixture
def collection(opened: Callable[..., DocumentCollection]) -> DocumentCollection:
    return opened()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "contract.md").write_text(
        "# Contract\n\n## Term\n\nThe contract ends three months after notice is given.\n\n"
        "## Price\n\nIt costs 20 euros.\n"
    )
    (notes / "printer.txt").write_text("The printer on the second floor takes toner TN-247.\n")
    (notes / "backups.txt").write_text(
        "Backups run at two in the morning.\n\nThey are kept for thirty days.\n"
    )
    return notes


def zipped(parts: dict[str, str | bytes]) -> bytes:
    """Return a zip file with these parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def relations(*rows: tuple[str, str, str]) -> str:
    """Return a part of relations: id, kind and target of each."""
    inner = "".join(f'<Relationship Id="{i}" Type="{_RELATIONS}/{k}" Target="{t}"/>' for i, k, t in rows)
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{inner}</Relationships>'


def docx(body: str, styles: str = "") -> bytes:
    """Return a Word document with this XML in its body."""
    return zipped(
        {
            "_rels/.rels": relations(("r1", "officeDocument", "word/document.xml")),
            "word/_rels/document.xml.rels": relations(("r1", "styles", "styles.xml")),
            "word/styles.xml": f"<w:styles {_W}>{styles}</w:styles>",
            "word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>",
        }
    )


def paragraph(text: str, style: str = "") -> str:
    """Return a paragraph of a Word document."""
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


HEADING = '<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'


def xlsx(rows: str, shared: Sequence[str] = (), styles: str = "") -> bytes:
    """Return a workbook of one sheet with these rows in XML."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    strings = "".join(f"<si><t>{text}</t></si>" for text in shared)
    return zipped(
        {
            "_rels/.rels": relations(("r1", "officeDocument", "xl/workbook.xml")),
            "xl/_rels/workbook.xml.rels": relations(
                ("r1", "worksheet", "worksheets/sheet1.xml"),
                ("r2", "sharedStrings", "sharedStrings.xml"),
                ("r3", "styles", "styles.xml"),
            ),
            "xl/workbook.xml": f'<workbook {main} xmlns:r="{_RELATIONS}"><sheets>'
            '<sheet name="Stock" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/sharedStrings.xml": f"<sst {main}>{strings}</sst>",
            "xl/styles.xml": f"<styleSheet {main}>{styles}</styleSheet>",
            "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData>{rows}</sheetData></worksheet>",
        }
    )


def pptx(slides: Sequence[str]) -> bytes:
    """Return a presentation of slides with this XML in their shape trees."""
    spaces = (
        'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{_RELATIONS}"'
    )
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="s{n}"/>' for n in range(len(slides)))
    parts: dict[str, str | bytes] = {
        "_rels/.rels": relations(("r1", "officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"s{n}", "slide", f"slides/slide{n}.xml") for n in range(len(slides)))
        ),
    }
    for n, slide in enumerate(slides):
        parts[f"ppt/slides/slide{n}.xml"] = (
            f"<p:sld {spaces}><p:cSld><p:spTree>{slide}</p:spTree></p:cSld></p:sld>"
        )
    return zipped(parts)


def epub(chapters: Sequence[str]) -> bytes:
    """Return a book of chapters in XHTML."""
    items = "".join(f'<item id="c{n}" href="text/c%20{n}.xhtml"/>' for n in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    parts: dict[str, str | bytes] = {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
        "OPS/book.opf": f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    for n, chapter in enumerate(chapters):
        parts[f"OPS/text/c {n}.xhtml"] = f"<html><body>{chapter}</body></html>"
    return zipped(parts)


def pdf(*pages: Sequence[tuple[float, float, int, str]]) -> bytes:
    """Return a PDF of pages, each with texts at x, y, of a size."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    kids: list[int] = []
    for texts in pages:
        escaped = ((x, y, size, re.sub(r"([()\\])", r"\\\1", text)) for x, y, size, text in texts)
        drawn = "\n".join(
            f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET" for x, y, size, text in escaped
        ).encode()
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(drawn), drawn))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(objects)
        )
        kids.append(len(objects))
    listed = " ".join(f"{kid} 0 R" for kid in kids).encode()
    objects[1] = b"<< /Type /Pages /Kids [%b] /Count %d >>" % (listed, len(kids))
    out, offsets = b"%PDF-1.4\n", list[int]()
    for n, each in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (n, each)
    table = b"".join(b"%010d 00000 n \n" % at for at in offsets)
    size = len(objects) + 1
    return (
        out
        + b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            size,
            table,
            size,
            len(out),
        )
    )
