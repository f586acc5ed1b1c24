"""What a document is cut into and what a search returns; and the limits of both.

Knows texts and places; knows no file format and no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

F32 = NDArray[np.float32]
BlockKind = Literal["heading", "text", "code", "row"]

MAX_FILE = 64 << 20  # bytes of a document
MAX_TEXT = 16 << 20  # characters that a document may hold: some 5,000 printed pages
MAX_PAGES = 10_000  # of a PDF, chapters of a book, slides, and sheets of a workbook
MAX_BLOCKS = 500_000  # paragraphs, code blocks, and rows of a document
MAX_DOCUMENTS = 100_000  # of a collection
MAX_CHUNKS = 1_000_000  # of a collection: 384 float32 of each are 1.5 GB while it is searched
MAX_QUERY = 8_192  # characters of a search
MAX_RESULTS = 50
MAX_LABELS = 16  # of a collection
DEFAULT_EMBEDDER = "all-minilm:22m"
CHARS_PER_TOKEN = 3  # a cautious estimate where no tokenizer counts: English prose has 4 to 5


class DocumentBlock(Struct, frozen=True):
    """A heading, paragraph, code block or table row, with its place. `level`: of a heading, 1 for a title.

    `start` and `end` are characters, `line` and `last_line` lines from 1: of the file where it is text, of the page's
    text for a PDF, of the text that was read for other formats. `page` counts from 1; 0: the format has no pages.
    """

    kind: BlockKind
    text: str
    start: int
    end: int
    line: int
    last_line: int
    page: int = 0
    level: int = 0
    header: str = ""  # of a row: the table's first row; of a definition: its term


class ParsedDocument(Struct, frozen=True):
    """A document as it was read. `form`: the format's name; `notes`: what was left out and why."""

    form: str
    blocks: tuple[DocumentBlock, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Where a text lies in its document; the fields are those of DocumentBlock."""

    start: int
    end: int
    line: int
    last_line: int
    page: int = 0

    def __str__(self) -> str:
        lines = f"line {self.line}" if self.line == self.last_line else f"lines {self.line}-{self.last_line}"
        return f"page {self.page}, {lines}" if self.page else lines

    def through(self, other: TextPlace) -> TextPlace:
        """Return the place from the start of this one to the end of a later one."""
        if other.page == self.page:
            return TextPlace(self.start, other.end, self.line, other.last_line, self.page)
        return self  # a passage that continues on the next page is opened where it begins


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A piece of a document, as it is indexed. `context`: the headings above it, and the header of its blocks."""

    text: str
    place: TextPlace
    context: str = ""

    @property
    def indexed(self) -> str:
        """The text that words and vectors are made of."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True, slots=True)
class DocumentPassage:
    """What a search returns: one chunk, or neighbouring ones joined.

    `source`: the path or id by which the document was added; `name`: what people call it. `score`: of the ranking,
    higher is better; comparable within one search alone.
    """

    source: str
    name: str
    place: TextPlace
    text: str
    score: float
    context: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """File, page and lines, for people."""
        return f"{self.name}, {self.place}"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Passages within a budget, best first. `left_out`: how many more matched and did not fit.

    `evidence`: log-odds that the collection has an answer (`answer_evidence` says from what); None: nothing says so.
    """

    passages: tuple[DocumentPassage, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()
    evidence: float | None = None


class Embeds(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """The model's name, which a collection keeps: vectors of two models cannot be compared."""
        ...

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors, float32 [len(texts), width]; texts beyond the model's context are cut."""
        ...


class Reranks(Protocol):
    """Scores passages by how well each one answers a question."""

    def rank(self, question: str, texts: Sequence[str]) -> Sequence[float]:
        """Return a score for each text; higher is better."""
        ...


def tokens_of(text: str) -> int:
    """Estimate a text's tokens, cautiously: bytes count, so that other scripts than Latin are not underestimated."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // CHARS_PER_TOKEN)
