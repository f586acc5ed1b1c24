"""Zipped formats to blocks: docx, xlsx, pptx and epub, by the standard library alone.

Runs in a child that is closed in (child.py). No part is unpacked beyond its limit, and no document type or entity is
obeyed. Knows the parts of a package; starts no process.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from freehold.base.errors import UsageError
from freehold.serve.documents.texts import BlockList, decoded, html_blocks, table_row
from freehold.serve.documents.types import MAX_PAGES, DocumentBlock

MAX_PART = 128 << 20  # bytes of one part, unpacked
MAX_PARTS = 20_000  # of a package
MAX_ALL = 512 << 20  # bytes of all parts that are read, unpacked
MAX_COLUMNS = 256  # cells of a row that are kept
_HINT = "save it again in the program that made it"
_REL = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"


class Package:
    """A zip file whose parts are read within limits."""

    def __init__(self, data: bytes, form: str) -> None:
        self.form, self._left = form, MAX_ALL
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            raise UsageError(f"the {form} file is damaged or cut short", _HINT) from None
        self.names = {info.filename: info for info in self._zip.infolist()}
        if len(self.names) > MAX_PARTS:
            raise UsageError(
                f"the {form} file has {len(self.names):,} parts; the limit is {MAX_PARTS:,}", _HINT
            )
        if any(info.flag_bits & 1 for info in self.names.values()):
            raise UsageError(f"the {form} file is encrypted", "save it without a password")

    def read(self, name: str) -> bytes:
        """Return a part's bytes. Raises UsageError for one that is missing, damaged or too large."""
        info = self.names.get(name)
        if info is None:
            raise UsageError(f"the {self.form} file has no part {name[:80]}", _HINT)
        most = min(MAX_PART, self._left)
        try:
            with self._zip.open(info) as part:
                data = part.read(most + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
            ValueError,
        ):
            raise UsageError(f"the part {name[:80]} of the {self.form} file is damaged", _HINT) from None
        if len(data) > most:
            raise UsageError(
                f"the {self.form} file unpacks to more than {MAX_PART >> 20} MiB a part or {MAX_ALL >> 20} MiB in all",
                "split it into several",
            )
        self._left -= len(data)
        return data

    def xml(self, name: str) -> Element:
        """Return a part as a tree."""
        data = self.read(name)
        if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:
            raise UsageError(f"the part {name[:80]} of the {self.form} file declares a document type", _HINT)
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError):
            raise UsageError(f"the part {name[:80]} of the {self.form} file is damaged", _HINT) from None

    def relations(self, name: str) -> dict[str, tuple[str, str]]:
        """Return the parts that a part names: by id, the path and the end of the kind."""
        folder, base = posixpath.split(name)
        path = posixpath.join(folder, "_rels", f"{base}.rels")
        if path not in self.names:
            return {}
        out: dict[str, tuple[str, str]] = {}
        for each in self.xml(path):
            if each.get("TargetMode") != "External":
                target = each.get("Target", "")
                whole = target.lstrip("/") if target.startswith("/") else posixpath.join(folder, target)
                kind = each.get("Type", "").rpartition("/")[2]
                out[each.get("Id", "")] = (posixpath.normpath(whole), kind)
        return out


class _Written:
    """Blocks whose places are those of the text that was read: each is some lines, then an empty one."""

    def __init__(self) -> None:
        self.out = BlockList()
        self._chars, self._lines = 0, 1

    def add(self, kind: str, text: str, page: int = 0, level: int = 0, header: str = "") -> None:
        if not text.strip():
            return
        lines = text.count("\n")
        end, last = self._chars + len(text), self._lines + lines
        place = (self._chars, end, self._lines, last)
        self.out.add(DocumentBlock(kind, text, *place, page=page, level=level, header=header))  # type: ignore[arg-type]
        self._chars, self._lines = end + 2, last + 2


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if _local(child.tag) == name)


def _child(element: Element | None, name: str) -> Element | None:
    return None if element is None else next(_children(element, name), None)


def _listed(element: Element | None) -> list[Element]:
    return [] if element is None else list(element)


def _main_part(package: Package, usual: str) -> str:
    """Return the part that is the document itself."""
    parts = package.relations("").values()
    return next((path for path, kind in parts if kind == "officeDocument"), usual)


def _value(element: Element | None, name: str = "val") -> str:
    if element is None:
        return ""
    return next((value for key, value in element.attrib.items() if _local(key) == name), "")


# --- docx -------------------------------------------------------------------------------------------


def docx_blocks(data: bytes) -> list[DocumentBlock]:
    """Return a Word document's headings, paragraphs, table rows and notes."""
    package = Package(data, "docx")
    main = _main_part(package, "word/document.xml")
    levels = _heading_levels(package, main)
    written = _Written()
    body = _child(package.xml(main), "body")
    if body is not None:
        _docx_body(body, levels, written)
    for kind in ("footnotes", "endnotes"):
        part = next((path for path, k in package.relations(main).values() if k == kind), "")
        if part in package.names:
            for note in package.xml(part):
                _docx_body(note, {}, written)
    return written.out.blocks


def _heading_levels(package: Package, main: str) -> dict[str, int]:
    """Return the heading's level of each style that is one."""
    part = next((path for path, kind in package.relations(main).values() if kind == "styles"), "")
    levels: dict[str, int] = {}
    if part not in package.names:
        return levels
    for style in _children(package.xml(part), "style"):
        name = _value(_child(style, "name")).lower()
        outline = _value(_child(_child(style, "pPr"), "outlineLvl"))
        if match := re.fullmatch(r"heading ([1-9])", name):
            levels[_value(style, "styleId")] = int(match[1])
        elif name == "title":
            levels[_value(style, "styleId")] = 1
        elif outline.isdigit() and len(outline) == 1 and int(outline) < 9:
            levels[_value(style, "styleId")] = int(outline) + 1
    return levels


def _docx_body(body: Element, levels: dict[str, int], written: _Written) -> None:
    waiting = [*reversed(list(body))]
    while waiting:
        element = waiting.pop()
        kind = _local(element.tag)
        if kind == "p":
            style = _child(element, "pPr")
            outline = _value(_child(style, "outlineLvl"))
            level = levels.get(_value(_child(style, "pStyle")), 0)
            if not level and outline.isdigit() and len(outline) == 1 and int(outline) < 9:
                level = int(outline) + 1
            text = _docx_text(element)
            written.add("heading" if level and len(text) < 300 else "text", text, level=level)
        elif kind == "tbl":
            _docx_table(element, written)
        elif kind in ("sdt", "sdtContent", "ins", "customXml", "smartTag"):
            waiting += reversed(list(element))


def _docx_text(element: Element) -> str:
    """Return a paragraph's text; what a fallback repeats and what was deleted is left out."""
    pieces: list[str] = []
    waiting = [element]
    while waiting:
        each = waiting.pop()
        kind = _local(each.tag)
        if kind == "t":
            pieces.append(each.text or "")
        elif kind == "tab":
            pieces.append("\t")
        elif kind in ("br", "cr") or (kind == "p" and pieces):
            pieces.append("\n")
        if kind not in ("Fallback", "del", "moveFrom", "pPr", "rPr"):
            waiting += reversed(list(each))
    return "".join(pieces).strip()


def _docx_table(table: Element, written: _Written) -> None:
    header = ""
    for row in _children(table, "tr"):
        cells = [
            " ".join(_docx_text(p) for p in cell.iter() if _local(p.tag) == "p")
            for cell in _children(row, "tc")
        ]
        text = table_row(cells[:MAX_COLUMNS])
        written.add("row" if header else "text", text, header=header)
        header = header or text


# --- xlsx -------------------------------------------------------------------------------------------

_DATES = {*range(14, 23), *range(45, 48)}  # built-in number formats that are dates and times
_QUOTED = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.')
_CELL = re.compile(r"([A-Z]{1,3})[0-9]+")


def xlsx_blocks(data: bytes) -> list[DocumentBlock]:
    """Return a workbook's rows, each with its sheet's first row as header; `page` is the sheet's number."""
    package = Package(data, "xlsx")
    main = _main_part(package, "xl/workbook.xml")
    relations = package.relations(main)
    parts = {kind: path for path, kind in relations.values()}
    shared = _shared_strings(package, parts.get("sharedStrings", ""))
    dates = _date_styles(package, parts.get("styles", ""))
    book, written = package.xml(main), _Written()
    from_1904 = _value(_child(book, "workbookPr"), "date1904") in ("1", "true")
    epoch = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30)
    sheets = [each for each in _listed(_child(book, "sheets")) if _local(each.tag) == "sheet"]
    if len(sheets) > MAX_PAGES:
        raise UsageError(f"the workbook has {len(sheets):,} sheets; the limit is {MAX_PAGES:,}", "split it")
    for number, sheet in enumerate(sheets, 1):
        path, kind = relations.get(sheet.get(f"{_REL}id", ""), ("", ""))
        if kind != "worksheet" or path not in package.names:
            continue
        written.add("heading", sheet.get("name", f"Sheet {number}"), page=number, level=1)
        header = ""
        for row in package.xml(path).iter():
            if _local(row.tag) == "row":
                text = table_row(_xlsx_cells(row, shared, dates, epoch))
                if text.replace("|", "").strip():
                    written.add("row" if header else "text", text, page=number, header=header)
                    header = header or text
    return written.out.blocks


def _shared_strings(package: Package, part: str) -> list[str]:
    if part not in package.names:
        return []
    return [
        "".join(t.text or "" for t in item.iter() if _local(t.tag) == "t")
        for item in _children(package.xml(part), "si")
    ]


def _date_styles(package: Package, part: str) -> set[int]:
    """Return the numbers of the cell styles that show a number as a date."""
    if part not in package.names:
        return set()
    root = package.xml(part)
    custom = {
        _value(f, "numFmtId"): re.search(r"[dyh]", _QUOTED.sub("", _value(f, "formatCode").lower()))
        is not None
        for f in _listed(_child(root, "numFmts"))
    }
    styles = enumerate(_value(xf, "numFmtId") for xf in _listed(_child(root, "cellXfs")))
    return {i for i, id in styles if custom.get(id, id.isdigit() and len(id) < 4 and int(id) in _DATES)}


def _xlsx_cells(row: Element, shared: list[str], dates: set[int], epoch: datetime) -> list[str]:
    cells: list[str] = []
    for cell in _children(row, "c"):
        if match := _CELL.fullmatch(cell.get("r", "")):
            column = 0
            for letter in match[1]:
                column = column * 26 + ord(letter) - 64
            cells += [""] * (min(column - 1, MAX_COLUMNS) - len(cells))
        if len(cells) < MAX_COLUMNS:
            cells.append(_xlsx_value(cell, shared, dates, epoch))
    return cells


def _xlsx_value(cell: Element, shared: list[str], dates: set[int], epoch: datetime) -> str:
    kind, value = cell.get("t", "n"), _child(cell, "v")
    text = "" if value is None else value.text or ""
    if kind == "inlineStr":
        return "".join(t.text or "" for t in cell.iter() if _local(t.tag) == "t")
    if kind == "s":
        return shared[int(text)] if text.isdigit() and len(text) < 9 and int(text) < len(shared) else ""
    if kind == "b":
        return "TRUE" if text == "1" else "FALSE"
    style = cell.get("s", "")
    if kind == "n" and text and style.isdigit() and len(style) < 9 and int(style) in dates:
        return _date(text, epoch)
    return text


def _date(text: str, epoch: datetime) -> str:
    try:
        days = float(text)
        moment = epoch + timedelta(days=days)
    except (ValueError, OverflowError):
        return text
    if 0 <= days < 1:
        return moment.strftime("%H:%M:%S")
    return moment.strftime("%Y-%m-%d" if days == int(days) else "%Y-%m-%d %H:%M")


# --- pptx -------------------------------------------------------------------------------------------


def pptx_blocks(data: bytes) -> list[DocumentBlock]:
    """Return a presentation's titles, paragraphs, table rows and notes; `page` is the slide's number."""
    package = Package(data, "pptx")
    main = _main_part(package, "ppt/presentation.xml")
    relations, written = package.relations(main), _Written()
    slides = [each for each in package.xml(main).iter() if _local(each.tag) == "sldId"]
    if len(slides) > MAX_PAGES:
        raise UsageError(
            f"the presentation has {len(slides):,} slides; the limit is {MAX_PAGES:,}", "split it"
        )
    for number, slide in enumerate(slides, 1):
        path, _ = relations.get(slide.get(f"{_REL}id", ""), ("", ""))
        if path not in package.names:
            continue
        _pptx_shapes(package.xml(path), number, written)
        for notes, kind in package.relations(path).values():
            if kind == "notesSlide" and notes in package.names:
                for text in _pptx_paragraphs(package.xml(notes)):
                    if not text.isdigit():  # the slide's number, which each note repeats
                        written.add("text", text, page=number)
    return written.out.blocks


def _pptx_shapes(slide: Element, number: int, written: _Written) -> None:
    for shape in slide.iter():
        kind = _local(shape.tag)
        if kind == "sp":
            place = next((each for each in shape.iter() if _local(each.tag) == "ph"), None)
            title = place is not None and place.get("type") in ("title", "ctrTitle")
            for text in _pptx_paragraphs(shape):
                written.add("heading" if title else "text", text, page=number, level=2 if title else 0)
        elif kind == "tbl":
            header = ""
            for row in _children(shape, "tr"):
                cells = [" ".join(_pptx_paragraphs(cell)) for cell in _children(row, "tc")]
                text = table_row(cells[:MAX_COLUMNS])
                written.add("row" if header else "text", text, page=number, header=header)
                header = header or text


def _pptx_paragraphs(element: Element) -> Iterator[str]:
    for paragraph in (each for each in element.iter() if _local(each.tag) == "p"):
        pieces = (
            (each.text or "") if _local(each.tag) == "t" else "\n" if _local(each.tag) == "br" else ""
            for each in paragraph.iter()
        )
        if text := "".join(pieces).strip():
            yield text


# --- epub -------------------------------------------------------------------------------------------


def epub_blocks(data: bytes) -> list[DocumentBlock]:
    """Return a book's blocks in reading order; `page` is the chapter's number, and lines are of its file."""
    package = Package(data, "epub")
    if "META-INF/encryption.xml" in package.names and b"EncryptedData" in package.read(
        "META-INF/encryption.xml"
    ):
        raise UsageError("the epub file is encrypted", "give a copy without copy protection")
    roots = (each.get("full-path", "") for each in package.xml("META-INF/container.xml").iter())
    opf = next((path for path in roots if path), "")
    book, folder = package.xml(opf), posixpath.dirname(opf)
    hrefs = {
        item.get("id", ""): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in _listed(_child(book, "manifest"))
    }
    chapters = [hrefs.get(each.get("idref", ""), "") for each in _listed(_child(book, "spine"))]
    if len(chapters) > MAX_PAGES:
        raise UsageError(f"the book has {len(chapters):,} chapters; the limit is {MAX_PAGES:,}", "split it")
    out = BlockList()
    for number, path in enumerate(chapters, 1):
        if path in package.names:
            for block in html_blocks(decoded(package.read(path))[0], page=number):
                out.add(block)
    return out.blocks
