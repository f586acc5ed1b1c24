"""Cached blocks on disk: what this engine, or one before it, has computed of prompts that may come again.

Knows tokens, bytes and files; knows no sequence and no tree. A file holds the pages of one full block, or the state
of recurrent layers after one. Its name is a hash over the key (model, kernels, KV type: all that the bytes depend
on), the salt (adapter and tenant) and all tokens up to the block's end, so a lookup goes from block to block without
an index, and engines that share a folder write the same bytes under the same name. Nothing read is trusted: a file is
as long as expected and begins with exactly the bytes that would be written today, tokens included, or it is a miss
and removed. Writing happens in a thread that lives while there is something to write; what it cannot keep up with is
dropped.

Layout: `FREEHKV1` or `FREEHST1`, SHA-256 of the key, SHA-256 of the salt, tokens (u32), bytes of content (u32), the
tokens (u32 each, all of them big-endian), CRC-32 of the content (u32), content (the layers' pages or states in a row).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold import models
from freehold.engine.cache.pool import TOKEN_BYTES, Node
from freehold.models.load import LoadedModel

U8 = NDArray[np.uint8]

PAGES, STATE = 0, 1  # what files hold, each with a magic number and a suffix
MAGIC, SUFFIX = (b"FREEHKV1", b"FREEHST1"), (".kv", ".state")
PART = ".part"
# Bytes that the folder may take, and at most one in this many of the free bytes.
BUDGET, FREE_SHARE = 4 << 30, 10
QUEUE = 64  # prompts that wait to be written; they are lists of blocks, whose bytes are read when their turn comes
CLOSE_S = 2.0  # seconds that closing waits for what is being written
SLACK = 16  # the part of the budget that is written between two scans of the folder, and kept free for that
STALE_S = 3600.0  # age at which an unfinished file is removed
# A block's file is dated this much older than the one before it, however long either took, so that a prompt's end is
# removed first.
STEP_NS = 1_000_000


def dependencies(model: LoadedModel, kv_type: str, windowed: bool = False) -> dict[str, object]:
    """List what a block's bytes depend on besides its tokens, and an adapter, which is part of the salt.

    Forward passes are Python and arithmetic is native: both are part of the key by their sources, so no change can be
    forgotten.
    """
    forward = hashlib.sha256()
    for path in sorted(Path(models.__file__).parent.rglob("*.py")):
        forward.update(path.read_bytes())
    return {
        "model": model.digest,
        "layout": native.LAYOUT,
        "table": native.isa(),
        "native": native.REVISION,
        "forward": forward.hexdigest(),
        "kv": kv_type,
        "layers": [astuple(spec) for spec in model.layers],
        "rope": model.rope_side,
        "windowed": windowed,  # sliding-window layers have blocks of their own, whose pages come last
        "tokens": native.BLOCK_TOKENS,
    }


Read = Callable[[Node, int], U8 | None]  # a node's PAGES or STATE, if that is still there


@dataclass(frozen=True, slots=True)
class _Chain:
    """Blocks of one prompt from its start; they are written in order: a block is found only after its predecessors."""

    salt: str
    nodes: list[Node]
    first: int  # blocks before it are on disk already
    read: Read


class DiskCache:
    """A folder of blocks with `pages` bytes each, and states of `state` bytes, which depend on `key`."""

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, object],
        pages: int,
        state: int = 0,
        budget: int | None = None,
    ) -> None:
        """Use at most `budget` bytes (None: 4 GB or a tenth of what is free)."""
        self.dropped = 0  # blocks not written: too many waited, the pool took them back, the disk failed
        self._bytes = (pages, state)
        self._folder = folder
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
        self._budget = budget
        self._unseen = 1 << 62  # bytes written since the folder was last scanned
        self._lock = threading.Lock()
        self._chains: deque[_Chain] = deque()
        self._writer: threading.Thread | None = None
        self._closed = False

    # --- reading -----------------------------------------------------------------------------------

    def read(self, salt: str, keys: Iterable[bytes], first: int) -> Iterator[U8]:
        """Yield the content of the blocks from `first` on, as long as they are there; `keys`: each block's tokens.

        All share one buffer: a block's content is valid until the next one is requested.
        """
        content, now = np.empty(self._bytes[PAGES], np.uint8), time.time_ns()
        for i, name, head in self._names(salt, keys, first, PAGES):
            if not self._fill(content, self._folder / name, head, now - i * STEP_NS):
                return
            yield content

    def last_state(self, salt: str, keys: Iterable[bytes], first: int) -> int:
        """Return the number of blocks, above `first`, after the last of which a state is stored; else `first`."""
        there = first
        for i, name, _ in self._names(salt, keys, first, STATE):
            if os.path.exists(self._folder / name):
                there = i + 1
        return there

    def read_state(self, salt: str, keys: Ordered[bytes]) -> U8 | None:
        """Return the state after the last of `keys`."""
        content, last = np.empty(self._bytes[STATE], np.uint8), len(keys) - 1
        _, name, head = next(self._names(salt, keys, last, STATE))
        used = time.time_ns() - last * STEP_NS
        return content if self._fill(content, self._folder / name, head, used) else None

    def _fill(self, content: U8, path: Path, head: bytes, used: int) -> bool:
        """Read a file that begins with `head`; False, and the file removed, if anything is not as expected."""
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _sound(fd, head, content):
                    os.utime(fd, ns=(used, used))
                    return True
                path.unlink(missing_ok=True)
            finally:
                os.close(fd)
        return False

    def _names(
        self, salt: str, keys: Iterable[bytes], first: int, part: int
    ) -> Iterator[tuple[int, str, bytes]]:
        """Yield each block from `first` on, its file's name and what the file begins with."""
        salted = self._key + hashlib.sha256(b"freehold tenant " + salt.encode()).digest()
        name, tokens = hashlib.sha256(salted), bytearray()
        for i, key in enumerate(keys):
            name.update(key)
            tokens += key
            if i >= first:
                counts = struct.pack(">II", len(tokens) // TOKEN_BYTES, self._bytes[part])
                yield i, name.hexdigest() + SUFFIX[part], MAGIC[part] + salted + counts + tokens

    # --- writing -----------------------------------------------------------------------------------

    def keep(self, salt: str, nodes: list[Node], first: int, read: Read) -> None:
        """Write what is not kept yet of a prompt's full blocks from `first` on, soon."""
        with self._lock:
            if self._closed or len(self._chains) >= QUEUE:
                self.dropped += len(nodes) - first
                return
            self._chains.append(_Chain(salt, nodes, first, read))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="freehold-disk", daemon=True)
                self._writer.start()

    def flush(self, seconds: float = CLOSE_S) -> None:
        """Wait until everything is written."""
        writer = self._writer
        if writer is not None:
            writer.join(seconds)

    def close(self) -> None:
        """Accept nothing more, and write what waits if that is quick."""
        self._closed = True
        self.flush()
        with self._lock:
            self._chains.clear()

    def _write_all(self) -> None:
        while True:
            with self._lock:
                if not self._chains:
                    self._writer = None
                    return
                chain = self._chains.popleft()
            with suppress(OSError):  # a full or failing disk costs hits, no answer
                self._write_chain(chain)
            self.dropped += sum(not node.kept >> PAGES & 1 for node in chain.nodes)

    def _write_chain(self, chain: _Chain) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys, now = [node.key for node in chain.nodes], time.time_ns()
        parts = [
            self._names(chain.salt, keys, chain.first, part)
            for part in (PAGES, STATE)
            if part == PAGES or self._bytes[part]  # pages of no bytes too: a lookup of blocks goes by them
        ]
        for names in zip(*parts, strict=True):
            for part, (i, name, head) in enumerate(names):
                node = chain.nodes[i]
                if not node.kept >> part & 1 and self._write_part(
                    chain.read, node, part, name, head, now - i * STEP_NS
                ):
                    node.kept |= 1 << part
            if not chain.nodes[names[0][0]].kept >> PAGES & 1:  # blocks after it would not be found
                return

    def _write_part(self, read: Read, node: Node, part: int, name: str, head: bytes, used: int) -> bool:
        """Write a file unless it is there; False if its content is not there any more, or never was."""
        path = self._folder / name
        if not path.exists():
            content = read(node, part)
            if content is None:
                return False
            self._make_room(len(head) + 4 + len(content))
            self._write(path, head, content, used)
        return True

    def _write(self, path: Path, head: bytes, content: U8, used: int) -> None:
        part = path.with_suffix(f".{os.getpid()}{PART}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(head + zlib.crc32(content.data).to_bytes(4))
                file.write(content.data)
                file.flush()
                os.utime(fd, ns=(used, used))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove what was unused for longest once the budget is used up; the folder is scanned now and then only."""
        self._unseen += size
        if self._budget is not None and self._unseen < self._budget // SLACK:  # others may write too
            return
        files = [(e.stat().st_mtime_ns, e.stat().st_size, e.path) for e in self._entries()]
        held = sum(size for _, size, _ in files)
        if self._budget is None:
            self._budget = min(BUDGET, (shutil.disk_usage(self._folder).free + held) // FREE_SHARE)
        for _, bytes_, path in sorted(files):
            if held <= self._budget - self._budget // SLACK:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            held -= bytes_
        self._unseen = size

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """Yield the folder's blocks; remove what a process left that died while writing."""
        now = time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name.endswith(SUFFIX):
                        yield entry
                    elif entry.name.endswith(PART) and entry.stat().st_mtime < now - STALE_S:
                        os.unlink(entry.path)


def _sound(fd: int, head: bytes, content: U8) -> bool:
    """Read a file into `content`; tell whether it is what was once written."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != len(head) + 4 + len(content):
        return False
    begin = bytearray(len(head) + 4)
    if os.readv(fd, [begin, content.data]) != facts.st_size or begin[: len(head)] != head:
        return False
    return zlib.crc32(content.data) == int.from_bytes(begin[len(head) :])
