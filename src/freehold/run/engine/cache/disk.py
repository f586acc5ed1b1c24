"""Cached blocks on disk: what this engine, or one before it, has computed of prompts that may come again.

Knows tokens, bytes and files; knows no sequence and no tree. A file holds the pages of one full block, or the state
of recurrent layers after one. Its name is a hash over the key (model, kernels, KV type: all that the bytes depend
on), the salt (adapter and tenant) and all tokens up to the block's end, so a lookup goes from block to block without
an index, and engines that share a folder write the same bytes under the same name. Nothing read is trusted: a file is
as long as expected and begins with exactly the bytes that would be written today, tokens included, or it is a miss
and removed. Writing happens in a thread that lives while there is something to write; what it cannot keep up with is
dropped.

Layout: `FREEHKV2` or `FREEHST2`, SHA-256 of the key, SHA-256 of the salt, bytes of the tokens (u32), bytes of content
(u32), the tokens (u32 each, all of them big-endian; pictures as tier.py spells them), CRC-32 of the content (u32),
content (the layers' pages or states in a row).
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.run import models
from freehold.run.engine.cache.files import CheckedFolder
from freehold.run.engine.cache.pool import Node
from freehold.run.models.load import LoadedModel

U8 = NDArray[np.uint8]

PAGES, STATE = 0, 1  # what files hold, each with a magic number and a suffix
MAGIC, SUFFIX = (b"FREEHKV2", b"FREEHST2"), (".kv", ".state")
BUDGET = 4 << 30  # bytes that the folder may take
QUEUE = 64  # prompts that wait to be written; they are lists of blocks, whose bytes are read when their turn comes
CLOSE_S = 2.0  # seconds that closing waits for what is being written
# A block's file is dated this much older than the one before it, however long either took, so that a prompt's end is
# removed first.
STEP_NS = 1_000_000


def dependencies(model: LoadedModel, kv_type: str, windowed: bool = False) -> dict[str, object]:
    """List what a block's bytes depend on besides its tokens, and an adapter, which is part of the salt.

    Forward passes are Python and arithmetic is native: both are part of the key by their sources, so no change can be
    forgotten.
    """
    return {
        "model": model.digest,
        "layout": native.LAYOUT,
        "table": native.isa(),
        "native": native.REVISION,
        "forward": sources_digest(models),
        "kv": kv_type,
        "layers": [astuple(spec) for spec in model.layers],
        "rope": model.rope_side,
        "windowed": windowed,  # sliding-window layers have blocks of their own, whose pages come last
        "tokens": native.BLOCK_TOKENS,
    }


def sources_digest(room: ModuleType) -> str:
    """Return a digest of the Python sources of a package."""
    assert room.__file__ is not None
    digest = hashlib.sha256()
    for path in sorted(Path(room.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


Read = Callable[[Node, int], U8 | None]  # a node's PAGES or STATE, if that is still there


@dataclass(frozen=True, slots=True)
class _Chain:
    """Blocks of one prompt from its start; they are written in order: a block is found only after its predecessors."""

    salt: str
    keys: Ordered[bytes]  # of its blocks, the same in every process
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
        self._folder = CheckedFolder(folder, SUFFIX, BUDGET, budget)
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
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
            if not self._folder.fill(content, name, head, now - i * STEP_NS):
                return
            yield content

    def last_state(self, salt: str, keys: Iterable[bytes], first: int) -> int:
        """Return the number of blocks, above `first`, after the last of which a state is stored; else `first`."""
        there = first
        for i, name, _ in self._names(salt, keys, first, STATE):
            if self._folder.has(name):
                there = i + 1
        return there

    def read_state(self, salt: str, keys: Ordered[bytes]) -> U8 | None:
        """Return the state after the last of `keys`."""
        content, last = np.empty(self._bytes[STATE], np.uint8), len(keys) - 1
        _, name, head = next(self._names(salt, keys, last, STATE))
        used = time.time_ns() - last * STEP_NS
        return content if self._folder.fill(content, name, head, used) else None

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
                counts = struct.pack(">II", len(tokens), self._bytes[part])
                yield i, name.hexdigest() + SUFFIX[part], MAGIC[part] + salted + counts + tokens

    # --- writing -----------------------------------------------------------------------------------

    def keep(self, salt: str, keys: Ordered[bytes], nodes: list[Node], first: int, read: Read) -> None:
        """Write what is not kept yet of a prompt's full blocks from `first` on, soon; `keys`: of all its blocks."""
        with self._lock:
            if self._closed or len(self._chains) >= QUEUE:
                self.dropped += len(nodes) - first
                return
            self._chains.append(_Chain(salt, keys, nodes, first, read))
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
        now = time.time_ns()
        parts = [
            self._names(chain.salt, chain.keys, chain.first, part)
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
        if not self._folder.has(name):
            content = read(node, part)
            if content is None:
                return False
            self._folder.write(name, head, content, used)
        return True
