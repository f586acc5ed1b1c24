"""The process that reads one document of a format with code of others, or with compression.

Started as `python -m freehold.serve.documents.child FD PARENT` by reading.py. It is closed in (closing_in.py) before
it takes a byte of the document, and ends with it. Where no process can be confined, it has limits of time and memory
alone. Knows formats and messages; knows no collection.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from freehold.base import platforms
from freehold.base.errors import UsageError
from freehold.base.sandbox.children import LENGTH, follow_parent, may_be_limited, write_all
from freehold.base.sandbox.closing_in import close_in, runtime_files
from freehold.serve.documents import office, pdf
from freehold.serve.documents.reading import (
    NO_PDFIUM,
    OUT_OF_MEMORY,
    PORTION,
    ReadAnswer,
    ReadRequest,
)
from freehold.serve.documents.texts import check_text, decoded, html_blocks
from freehold.serve.documents.types import DocumentBlock

OOM_SCORE = 900  # when memory runs out the kernel ends this process before an engine
_GRACE_S = 2  # of processor, beyond the timer that ends this process


def main() -> int:
    """Read the document that comes through the socket whose number is the first argument; return the status."""
    follow_parent(int(sys.argv[2]))
    may_be_limited()
    platforms.prefer_killed(OOM_SCORE)
    fd = int(sys.argv[1])
    try:
        with open(fd, "rb", closefd=False) as sent:
            size = int.from_bytes(sent.read(LENGTH), "little")
            request = msgspec.msgpack.decode(sent.read(size), type=ReadRequest)
            if not _imported(request.form):
                return NO_PDFIUM
            signal.setitimer(signal.ITIMER_PROF, request.seconds)
            if platforms.can_confine():
                seconds = int(request.seconds) + _GRACE_S
                if not close_in((fd,), seconds=seconds, memory=request.memory, readable=runtime_files()):
                    raise UsageError("this kernel lets no process confine itself, so no document is opened")
            else:
                platforms.limit("RLIMIT_AS", request.memory)
            blocks, notes = _blocks(sent.read(request.bytes), request.form)
        for at in range(0, len(blocks), PORTION):
            _say(fd, ReadAnswer(blocks=tuple(blocks[at : at + PORTION])))
        _say(fd, ReadAnswer(notes=tuple(notes), whole=True))
    except MemoryError:
        return OUT_OF_MEMORY
    except RecursionError:
        _say(fd, ReadAnswer(error="the file nests too deeply", hint="simplify it"))
    except UsageError as e:
        _say(fd, ReadAnswer(error=e.message, hint=e.hint))
    return 0


def _imported(form: str) -> bool:
    """Import PDFium while files can still be opened, if the form needs it; False where there is none."""
    if form == "pdf":
        try:
            import pypdfium2.raw
        except ImportError:
            return False
        assert pypdfium2.raw
    return True


def _blocks(data: bytes, form: str) -> tuple[list[DocumentBlock], Sequence[str]]:
    if form == "html":
        text, notes = decoded(data)
        check_text(text)
        return html_blocks(text), notes
    if form == "pdf":
        return pdf.pdf_blocks(data)
    read = {
        "docx": office.docx_blocks,
        "xlsx": office.xlsx_blocks,
        "pptx": office.pptx_blocks,
        "epub": office.epub_blocks,
    }[form]
    return read(data), ()


def _say(fd: int, answer: ReadAnswer) -> None:
    data = msgspec.msgpack.encode(answer)
    write_all(fd, len(data).to_bytes(LENGTH, "little") + data)


if __name__ == "__main__":
    status = 1
    with suppress(KeyboardInterrupt, OSError):
        status = main()
    os._exit(status)
