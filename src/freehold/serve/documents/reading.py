"""A file's bytes to blocks: by its form here, or in a process that can be killed (child.py).

What a process answers is checked as the stranger's that it may have become. Knows forms, limits and how a process
ended; imports no PDFium.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import msgspec
from msgspec import Struct

from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.base.sandbox.children import LENGTH, ChildEnded, TimedTalk, spawn_on_socket, watched
from freehold.serve.documents.texts import TEXT_FORMS, check_text, decoded, form_of
from freehold.serve.documents.types import MAX_BLOCKS, MAX_FILE, MAX_TEXT, DocumentBlock, ParsedDocument

COMMAND = (sys.executable, "-P", "-m", "freehold.serve.documents.child")
HINT = "split it into several, or save it as plain text"
MEMORY = 1536 << 20  # bytes of addresses, besides the document's own
BASE_S, MIB_S, MOST_S = 20.0, 10.0, 300.0  # of processor: in any case, for each MiB, at most
WALL, START_S = 4.0, 60.0  # times the processor's seconds on the clock; and until the process has started
PORTION = 2_000  # blocks of an answer
OUT_OF_MEMORY, NO_PDFIUM = 3, 4  # exit statuses
KNOWN = "text, Markdown, HTML, source code, CSV, PDF, docx, xlsx, pptx, epub"
_MOST_ANSWER = 4 * MAX_TEXT  # bytes of one answer
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ReadRequest(Struct):
    """What a process gets before the document's bytes."""

    form: str
    bytes: int
    seconds: float
    memory: int


class ReadAnswer(Struct):
    """What it answers: portions of blocks, and last `whole` or an `error`."""

    blocks: tuple[DocumentBlock, ...] = ()
    notes: tuple[str, ...] = ()
    whole: bool = False
    error: str = ""
    hint: str = ""


def read_document(
    name: str, data: bytes, form: str = "", readers: ReaderProcesses | None = None
) -> ParsedDocument:
    """Return a document's blocks. `form`: its format, where the name does not say it; `readers`: by which it is ended.

    Raises UsageError for a format that is not known, and for a document that is damaged, encrypted, empty, or takes
    too much time or memory; CapacityExceeded where no process can be started.
    """
    if len(data) > MAX_FILE:
        raise UsageError(f"it has {len(data):,} bytes; the limit is {MAX_FILE:,}", HINT)
    form = _form(name, data, form)
    if form in TEXT_FORMS:
        text, notes = decoded(data)
        check_text(text)
        blocks = TEXT_FORMS[form](text)
        parsed = ParsedDocument(form, tuple(blocks), notes)
    else:
        parsed = _read_apart(form, data, readers)
    if not parsed.blocks:
        raise UsageError("it has no text", "")
    return parsed


def _form(name: str, data: bytes, form: str) -> str:
    form = form or form_of(name)
    if data.startswith(_OLD_OFFICE):
        raise UsageError(
            "it is an Office file that is encrypted, or of a format before 2007",
            "save it without a password as docx, xlsx or pptx",
        )
    if data.startswith(b"%PDF-"):
        return "pdf"
    if form:
        return form
    if data.startswith(b"PK\x03\x04"):
        raise UsageError("it is an archive", f"unpack it; supported formats are {KNOWN}")
    with suppress(UsageError):
        text, assumed = decoded(data)
        if not assumed:
            start = text[:200].lstrip().lower()
            return "html" if start.startswith(("<!doctype html", "<html")) else "text"
    raise UsageError("its format is not known", f"supported formats are {KNOWN}")


def seconds_for(size: int) -> float:
    """Return the seconds of processor that a document of `size` bytes may take."""
    return min(MOST_S, BASE_S + MIB_S * size / (1 << 20))


def _read_apart(form: str, data: bytes, readers: ReaderProcesses | None) -> ParsedDocument:
    if form == "pdf" and importlib.util.find_spec("pypdfium2") is None:
        raise _without_pdfium()
    seconds, memory = seconds_for(len(data)), MEMORY + 3 * len(data)
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            process = spawn_on_socket(
                COMMAND, ours, theirs, env=_ONE_THREAD, stderr=subprocess.DEVNULL, cwd="/"
            )
    except OSError as e:
        raise CapacityExceeded(f"no process could be started to read the document: {e.strerror}") from e
    with ours, watched(process, memory) as watch:
        if readers is not None:
            readers.add(process)
        try:
            return _answered(ReaderTalk(ours, START_S + WALL * seconds), form, data, seconds, memory)
        except ChildEnded as ended:
            raise _reason(form, process, ended.late, watch.exceeded, seconds, memory) from None
        finally:
            process.kill()
            process.wait()
            if readers is not None:
                readers.discard(process)


class ReaderProcesses:
    """The processes that read documents for one caller, which may end them all."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), False
        self._processes: set[subprocess.Popen[bytes]] = set()

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Know of one that was started; it is ended at once where all others were."""
        with self._lock:
            self._processes.add(process)
            if self._ended:
                process.kill()

    def discard(self, process: subprocess.Popen[bytes]) -> None:
        """Forget one that has ended."""
        with self._lock:
            self._processes.discard(process)

    def end(self) -> None:
        """End all of them, and those that are still to be started."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()


def _answered(talk: ReaderTalk, form: str, data: bytes, seconds: float, memory: int) -> ParsedDocument:
    talk.send(msgspec.msgpack.encode(ReadRequest(form, len(data), seconds, memory)))
    with suppress(ChildEnded):  # an answer may come before all was taken
        talk.send_bytes(data)
    blocks: list[DocumentBlock] = []
    chars = 0
    while True:
        answer = talk.receive(form)
        if answer.error:
            raise UsageError(_plain(answer.error), _plain(answer.hint))
        blocks += answer.blocks
        chars += sum(len(block.text) + len(block.header) for block in answer.blocks)
        if len(blocks) > MAX_BLOCKS or chars > 4 * MAX_TEXT:
            raise _garbled(form)
        if answer.whole:
            return ParsedDocument(form, tuple(blocks), tuple(map(_plain, answer.notes[:20])))


class ReaderTalk(TimedTalk):
    """What is said with the process. Every method raises ChildEnded."""

    def receive(self, form: str) -> ReadAnswer:
        """Return the next message. Raises UsageError for anything else than an answer."""
        size = int.from_bytes(self.read(LENGTH), "little")
        if size > _MOST_ANSWER:
            raise _garbled(form)
        try:
            return msgspec.msgpack.decode(bytes(self.read(size)), type=ReadAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _garbled(form) from None


def _garbled(form: str) -> UsageError:
    return UsageError(f"the {form} file's reader answered with something else: it may be an attack", HINT)


def _reason(
    form: str, process: subprocess.Popen[bytes], late: bool, exceeded: bool, seconds: float, memory: int
) -> FreeholdError:
    """Return what the end of a process says of its document."""
    if late:
        return UsageError(f"the {form} file takes longer than {WALL * seconds:g} s to read", HINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5.0)
    code = process.poll() or 0
    if code == NO_PDFIUM:
        return _without_pdfium()
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        return UsageError(f"the {form} file takes more than {seconds:g} s of processor to read", HINT)
    if code == OUT_OF_MEMORY or exceeded:
        return UsageError(f"the {form} file takes more than {memory >> 20:,} MiB of memory to read", HINT)
    if -code == signal.SIGKILL:
        return CapacityExceeded(
            "the process that read the document was killed", "the kernel kills processes when memory runs out"
        )
    how = f"status {code}" if code >= 0 else signal.Signals(-code).name
    return UsageError(f"the {form} file ended the process that read it ({how})", HINT)


def _without_pdfium() -> UsageError:
    return UsageError(
        "it is a PDF, which needs pypdfium2, and that is not installed", 'pip install "freehold[documents]"'
    )


def _plain(text: str) -> str:
    """Return a text of the reader's without what a terminal obeys, and not for ever."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])
