"""Formats that are read in a child: their structure, and files that attack it."""

from __future__ import annotations

import importlib.util
import threading
import time
import zipfile
from io import BytesIO

import pytest

from freehold.base.errors import FreeholdError, UsageError
from freehold.serve.documents import reading
from freehold.serve.documents.office import MAX_PART
from freehold.serve.documents.reading import ReaderProcesses, read_document
from tests.documents.conftest import HEADING, docx, epub, paragraph, pdf, pptx, xlsx, zipped

needs_pdfium = pytest.mark.skipif(importlib.util.find_spec("pypdfium2") is None, reason="needs pypdfium2")


def rows(name: str, data: bytes) -> list[tuple[str, str, int]]:
    return [(b.kind, b.text, b.page) for b in read_document(name, data).blocks]


def test_word_documents_have_headings_paragraphs_and_tables():
    cell = "<w:tc>{}</w:tc>"
    table = "".join(
        f"<w:tr>{''.join(cell.format(paragraph(text)) for text in row)}</w:tr>"
        for row in (("k", "v"), ("a", "1"))
    )
    body = paragraph("Title", "H1") + paragraph("Some text.") + f"<w:tbl>{table}</w:tbl>"
    assert rows("a.docx", docx(body, HEADING)) == [
        ("heading", "Title", 0),
        ("text", "Some text.", 0),
        ("text", "k | v", 0),
        ("row", "a | 1", 0),
    ]


def test_deleted_text_and_fallbacks_of_word_are_left_out():
    body = (
        "<w:p><w:del><w:r><w:t>gone</w:t></w:r></w:del><w:ins><w:r><w:t>kept</w:t></w:r></w:ins></w:p>"
        "<w:p><w:r><Fallback><w:t>twice</w:t></Fallback><w:t>once</w:t></w:r></w:p>"
    )
    assert [text for _, text, _ in rows("a.docx", docx(body))] == ["kept", "once"]


def test_workbooks_have_rows_with_their_header_dates_and_gaps():
    styles = (
        '<numFmts><numFmt numFmtId="164" formatCode="[$-407]dd/mm/yyyy"/></numFmts>'
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="164"/></cellXfs>'
    )
    sheet = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>Due</t></is></c></row>'
        '<row r="2"><c r="A2" t="s"><v>1</v></c><c r="B2"><v>2.5</v></c><c r="C2" s="1"><v>45658</v></c></row>'
    )
    blocks = read_document("a.xlsx", xlsx(sheet, ("Item", "Toner"), styles)).blocks
    assert [(b.kind, b.text, b.page) for b in blocks] == [
        ("heading", "Stock", 1),
        ("text", "Item |  | Due", 1),
        ("row", "Toner | 2.5 | 2025-01-01", 1),
    ]
    assert blocks[2].header == "Item |  | Due"


def test_slides_have_titles_and_pages():
    title = (
        '<p:sp><p:nvSpPr><p:nvPr><p:ph type="title"/></p:nvPr></p:nvSpPr>'
        "<p:txBody><a:p><a:r><a:t>Plan</a:t></a:r></a:p></p:txBody></p:sp>"
    )
    text = (
        "<p:sp><p:txBody><a:p><a:r><a:t>Buy </a:t></a:r><a:r><a:t>toner</a:t></a:r></a:p></p:txBody></p:sp>"
    )
    assert rows("a.pptx", pptx([title, text])) == [("heading", "Plan", 1), ("text", "Buy toner", 2)]


def test_books_are_read_in_the_order_of_their_spine():
    assert rows("a.epub", epub(["<h1>One</h1><p>a</p>", "<p>b</p>"])) == [
        ("heading", "One", 1),
        ("text", "a", 1),
        ("text", "b", 2),
    ]


@needs_pdfium
def test_pages_of_a_pdf_have_headings_paragraphs_and_columns():
    first = [
        (72, 780, 20, "Contract"),
        (72, 740, 11, "It ends three months"),
        (72, 726, 11, "after notice is given."),
        (72, 680, 11, "Another paragraph."),
        (72, 666, 11, "It has two lines."),
        (320, 740, 11, "The right column."),
    ]
    blocks = read_document("a.pdf", pdf(first, [(72, 700, 11, "Second page.")])).blocks
    assert [(b.kind, b.text, b.page) for b in blocks] == [
        ("heading", "Contract", 1),
        ("text", "It ends three months\nafter notice is given.", 1),
        ("text", "Another paragraph.\nIt has two lines.", 1),
        ("text", "The right column.", 1),
        ("text", "Second page.", 2),
    ]
    assert (blocks[1].line, blocks[1].last_line) == (2, 3)


@needs_pdfium
def test_a_pdf_without_text_says_that_it_is_a_scan():
    with pytest.raises(UsageError, match="no text on its 1 pages"):
        read_document("a.pdf", pdf([]))


@needs_pdfium
def test_a_pdf_that_is_cut_short_is_refused():
    with pytest.raises(UsageError, match="damaged"):
        read_document("a.pdf", b"%PDF-1.4\n1 0 obj\n")


def test_without_pdfium_a_pdf_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pypdfium2") as refusal:
        read_document("a.pdf", b"%PDF-1.4")
    assert "freehold[documents]" in refusal.value.hint


def encrypted() -> bytes:
    data = bytearray(zipped({"word/document.xml": "x" * 100}))
    info = zipfile.ZipFile(BytesIO(bytes(data))).infolist()[0]
    central = data.rfind(b"PK\x01\x02")
    data[central + 8] |= 1
    data[info.header_offset + 6] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    "data, why",
    [
        (b"PK\x03\x04" + b"x" * 50, "damaged"),
        (encrypted(), "encrypted"),
        (zipped({"a": "b"}), "no part"),
        (docx("<w:p>"), "damaged"),
        (
            zipped(
                {
                    "_rels/.rels": '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
                    "word/document.xml": "<x/>",
                }
            ),
            "document type",
        ),
    ],
)
def test_damaged_and_hostile_packages_are_refused_in_a_line(data: bytes, why: str):
    with pytest.raises(UsageError, match=why) as refusal:
        read_document("a.docx", data)
    assert "\n" not in refusal.value.message and len(refusal.value.message) < 200


@pytest.mark.heavy
def test_a_zip_bomb_is_refused_by_its_unpacked_size():
    with pytest.raises(UsageError, match=r"unpacks to more than|memory|processor"):
        read_document("a.docx", docx("<w:p/>" + " " * (MAX_PART + 1)))


@pytest.mark.heavy
def test_a_document_that_nests_without_end_does_not_end_the_caller():
    body = "<w:sdt>" * 200_000 + "</w:sdt>" * 200_000
    with pytest.raises(FreeholdError):
        read_document("a.docx", docx(body))


def test_a_page_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "seconds_for", lambda size: 0.2)
    slow = b"<p>" + b"<!" * 300_000
    with pytest.raises(UsageError, match=r"takes more than 0\.2 s of processor|no text"):
        read_document("a.html", slow)


def test_a_reader_is_ended_from_another_thread(monkeypatch: pytest.MonkeyPatch):
    readers = ReaderProcesses()
    readers.end()
    begun = time.monotonic()
    with pytest.raises(FreeholdError):
        read_document("a.html", b"<p>" + b"x" * 1000, readers=readers)
    assert time.monotonic() - begun < 30 and threading.active_count() < 50
