"""The process that reads long texts of requests: one request after another, until the parent closes the socket.

Knows the sieve and its own limits: what takes too much processor or memory ends the process, and the parent takes the
text as one that could not be read. Answers hold names of findings, never what was found.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from freehold.base.platforms import peak_bytes
from freehold.base.sandbox.children import limited, receive, send
from freehold.base.sandbox.loop_child import parent_socket
from freehold.route.providers.texts import Packed, Part, unpacked
from freehold.route.router.detect import Sieve
from freehold.route.router.detect.detectors import TooManyHits

SECONDS = 4.0  # of processor for one request; 16 MB of prose take 0.1 s
# Bytes of addresses, and for each byte of a request: several forms of 1 to 4 bytes.
MEMORY, PER_BYTE = 512 << 20, 48
WORN = 256 << 20  # bytes; a process that had more does no other request
NICE = 5  # a third of the share of the server and the engines, where the processors do not suffice
IDLE_S = 300.0  # without a request the process ends; the next one starts another
TAGS = {"json": b"j", "url": b"u", "base64": b"b"}  # of a Packed part; a capital: more of the part follows
TEXT = b"t"
_KINDS = {tag: kind for kind, tag in TAGS.items()}


def main() -> None:
    """Read what comes through the socket, one request after the other."""
    os.nice(NICE)
    sock = parent_socket()
    while select.select([sock], [], [], IDLE_S)[0]:
        head = receive(sock)
        if not head:
            return
        frames: list[bytes] = []
        while frame := receive(sock):
            frames.append(frame)
        answer = _read(json.loads(head), frames)
        answer["last"] = peak_bytes() > WORN
        send(sock, json.dumps(answer).encode())
        if answer["last"]:
            return


def _read(wanted: dict[str, list[str]], frames: list[bytes]) -> dict[str, object]:
    """Return the findings of a request, or why it was not read to its end."""
    sieve = _sieve(tuple(wanted["patterns"]), tuple(wanted["kinds"]))
    with limited(SECONDS, MEMORY + PER_BYTE * sum(map(len, frames))):
        try:
            texts = [text for part in _parts(frames) for text in unpacked(part) if text]
            return {"found": sorted(sieve.find(texts))}
        except TooManyHits:
            return {"unread": "more candidates than are checked"}


@lru_cache(maxsize=4)
def _sieve(patterns: tuple[str, ...], kinds: tuple[str, ...]) -> Sieve:
    return Sieve(patterns, kinds)


def _parts(frames: list[bytes]) -> Iterator[Part]:
    """Join the slices of every part."""
    slices: list[bytes] = []
    for frame in frames:
        tag = frame[:1]
        slices.append(frame[1:])
        if tag.isupper():
            continue
        text = b"".join(slices).decode("utf-8", "surrogatepass")
        slices.clear()
        yield text if tag == TEXT else Packed(_KINDS[tag], text)  # type: ignore[arg-type]  # TAGS' own keys


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, OSError):
        main()
    os._exit(0)
