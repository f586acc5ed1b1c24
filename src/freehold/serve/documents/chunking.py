"""Blocks to chunks: cut where the document itself is, at headings, paragraphs, code blocks and rows.

Knows blocks and sizes; knows no format, no model and no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from freehold.serve.documents.types import BlockKind, DocumentBlock, DocumentChunk, TextPlace

# Characters. Of 79 questions on the guides, the right chunk was among the first five for 0.911 at 450, 0.886 at 600 and
# 0.873 at 900 (docs/log/documents.md): a vector of less text says more of each sentence. Neighbours are joined again.
SIZE = 450
MOST = 900  # of a paragraph or code block that is left whole
_HEADER = 300  # of the header of rows, or of a definition's term, in a chunk's context
_DEEPEST = 4  # headings in a context, the nearest ones


def cut(blocks: Iterable[DocumentBlock], name: str, size: int = SIZE) -> list[DocumentChunk]:
    """Return the chunks of a document. `name`: what people call it, which begins each context."""
    return list(_Cutter(name, size).chunks(blocks))


@dataclass(slots=True)
class _Cutter:
    name: str
    size: int
    headings: list[DocumentBlock] = field(default_factory=list)
    waiting: list[DocumentBlock] = field(default_factory=list)
    chars: int = 0
    bare: DocumentBlock | None = None  # the last heading, while nothing stands below it

    def chunks(self, blocks: Iterable[DocumentBlock]) -> Iterator[DocumentChunk]:
        for block in blocks:
            if block.kind == "heading":
                yield from self._flush()
                yield from self._heading(block)
                continue
            self.bare = None
            for piece in _pieces(block, self.size):
                if self.waiting and self._ends(piece):
                    yield from self._flush()
                self.waiting.append(piece)
                self.chars += len(piece.text)
        yield from self._flush()
        if self.bare is not None:
            yield self._alone(self.bare)

    def _heading(self, block: DocumentBlock) -> Iterator[DocumentChunk]:
        if self.bare is not None and self.bare.level >= block.level:
            yield self._alone(self.bare)
        while self.headings and self.headings[-1].level >= block.level:
            self.headings.pop()
        self.headings.append(block)
        self.bare = block

    def _ends(self, piece: DocumentBlock) -> bool:
        """Return whether a chunk ends before `piece`."""
        last = self.waiting[-1]
        parts = (last.kind == "row", last.header) != (piece.kind == "row", piece.header)
        return parts or last.page != piece.page or self.chars + len(piece.text) > self.size

    def _flush(self) -> Iterator[DocumentChunk]:
        if not self.waiting:
            return
        first, last = self.waiting[0], self.waiting[-1]
        between = "\n" if first.kind == "row" else "\n\n"
        text = between.join(piece.text for piece in self.waiting)
        context = self._context()
        if first.header:
            context = f"{context}\n{first.header[:_HEADER]}"
        yield DocumentChunk(text, place_of(first).through(place_of(last)), context)
        self.waiting, self.chars = [], 0

    def _alone(self, heading: DocumentBlock) -> DocumentChunk:
        return DocumentChunk(heading.text, place_of(heading), self.name)

    def _context(self) -> str:
        titles = [" ".join(heading.text.split())[:120] for heading in self.headings[-_DEEPEST:]]
        return " > ".join([self.name, *titles])


def place_of(block: DocumentBlock) -> TextPlace:
    """Return the place of a block."""
    return TextPlace(block.start, block.end, block.line, block.last_line, block.page)


def _pieces(block: DocumentBlock, size: int) -> Iterator[DocumentBlock]:
    """Yield a block, in pieces of about `size` characters where it is longer than MOST."""
    if len(block.text) <= max(MOST, size):
        yield block
        return
    at = 0
    while at < len(block.text):
        end = _end_of_piece(block.text, at, size, block.kind)
        yield _piece(block, at, end)
        at = end


def _end_of_piece(text: str, at: int, size: int, kind: BlockKind) -> int:
    """Return where a piece from `at` on ends: after a line, else a sentence, else a word, of its second half."""
    if len(text) - at <= size:
        return len(text)
    half = at + size // 2
    ends = ("\n\n", "\n", " ") if kind == "code" else ("\n\n", "\n", ". ", "? ", "! ", "。", "; ", ", ", " ")
    for mark in ends:
        end = text.rfind(mark, half, at + size)
        if end >= 0:
            return end + len(mark)
    return at + size


def _piece(block: DocumentBlock, at: int, end: int) -> DocumentBlock:
    text = block.text[at:end]
    line = block.line + block.text.count("\n", 0, at)
    last = line + text.rstrip("\n").count("\n")
    place = (min(block.start + at, block.end), min(block.start + end, block.end))
    lines = (min(line, block.last_line), min(last, block.last_line))
    return DocumentBlock(block.kind, text, *place, *lines, block.page, block.level, block.header)
