"""Splits a stream of bytes into server-sent events, wherever the network cut it.

Follows the WHATWG's event streams: LF, CRLF or CR, comments, `data` of several lines, one leading byte order mark. An
event that the stream's end cuts off is left out. Knows no JSON and no wire.
Path: hop.py -> EventSplitter.feed -> EventReader.push
"""

from __future__ import annotations

from freehold.providers.contract import UpstreamFault

MAX_EVENT = 16 << 20  # bytes: the largest event of a wire is a whole answer's item, or a picture
_BOM = b"\xef\xbb\xbf"
Event = tuple[str, bytes]  # its name, "" for none; its data


class EventSplitter:
    """Splits one stream."""

    def __init__(self) -> None:
        self._rest = bytearray()  # an event that is not whole
        self._seen = 0  # bytes of the rest that hold no end of an event
        self._first = True
        self.fault: UpstreamFault | None = None  # what comes after the events that were returned last

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes, up to the first that is not UTF-8: `fault` is then set.

        Raises UpstreamFault for an event beyond MAX_EVENT.
        """
        rest = self._rest
        if not rest and data.endswith(b"\r\n\r\n"):  # Google's lines; what is before them is whole too
            data = data.replace(b"\r\n", b"\n")
        if rest or self._first or len(data) > MAX_EVENT or b"\r" in data or not data.endswith(b"\n\n"):
            blocks = self._blocks(data)
        else:
            blocks = data.split(b"\n\n")  # nothing is cut: what nearly every read gives
        events: list[Event] = []
        for block in blocks:
            if not block.isascii() and (fault := _no_text(block)) is not None:
                self.fault = fault
                break
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(("", block[6:]))
            elif block and (event := _event(block)) is not None:
                events.append(event)
        return events

    def rest(self) -> list[Event]:
        """Return the event that the body's end left without its blank line, where it has data; it may be torn."""
        return self.feed(b"\n\n") if self._rest else []

    def _blocks(self, data: bytes) -> list[bytes]:
        rest = self._rest
        rest += data
        if self._first:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                return []
            self._first = False
            if rest.startswith(_BOM):
                del rest[: len(_BOM)]
        if b"\r" in rest:
            held = rest.endswith(b"\r")  # the LF of a CRLF may come next
            plain = bytes(rest[:-1] if held else rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            rest[:] = plain + b"\r" if held else plain
            self._seen = 0
        end = rest.rfind(b"\n\n", max(self._seen - 1, 0))
        if end < 0:
            self._seen = len(rest)
            _check(len(rest))
            return []
        whole = bytes(rest[:end])
        del rest[: end + 2]
        self._seen = 0
        blocks = whole.split(b"\n\n")
        _check(max(map(len, blocks)))
        return blocks


def _check(size: int) -> None:
    if size > MAX_EVENT:
        raise UpstreamFault("invalid", f"an event has more than {MAX_EVENT:,} bytes")


def _no_text(block: bytes) -> UpstreamFault | None:
    """Return the fault of bytes that are no UTF-8.

    A decoder that skips members it does not know skips a damaged name with them, and an event with a damaged field
    counts as none: text would be missing from an answer that looks whole.
    """
    try:
        block.decode()
    except UnicodeDecodeError:
        return UpstreamFault("invalid", "the stream has bytes that are no UTF-8", status=200)
    return None


def _event(block: bytes) -> Event | None:
    """Read the lines of one event; None where it has no data."""
    name = ""
    lines: list[bytes] = []
    for line in block.split(b"\n"):
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            lines.append(value)
        elif key == b"event":
            name = value.decode("utf-8", "replace")
    return (name, b"\n".join(lines)) if lines else None
