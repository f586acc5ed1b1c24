"""The disk tier of the cache: what this engine, or one before it, has computed of prompts that may come again.

The tier chooses which blocks of a prompt to write, and loads blocks back into the pool; it knows sequences, nodes,
places and their bytes. A block's content is the data of all paged kinds; a recurrent state is stored apart. Below it
are files, which know tokens and bytes, no sequence and no tree.

A file holds the pages of one full block, or the state of recurrent layers after one. Its name is a hash over the key
(model, kernels, KV type: all that the bytes depend on), the salt (adapter and tenant) and all tokens up to the block's
end, so a lookup goes from block to block without an index, and engines that share a folder write the same bytes under
the same name. Nothing read is trusted: a file is as long as expected and begins with exactly the bytes that would be
written today, tokens included, or it is a miss and removed. Writing happens in a thread that lives while there is
something to write; what it cannot keep up with is dropped.

Layout: `FREEHKV2` or `FREEHST2`, SHA-256 of the key, SHA-256 of the salt, bytes of the tokens (u32), bytes of content
(u32), the tokens (u32 each, all of them big-endian; pictures as the tier spells them), CRC-32 of the content (u32),
content (the layers' pages or states in a row).

The folder of cache files survives a restart, and pictures' features use it too: it is bounded, and files are written
whole or not at all. A file begins with a head that its reader could write itself, then has a CRC-32 of its content and
the content.
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
from time import monotonic
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold._native import BLOCK_TOKENS
from freehold.base import private
from freehold.run import models
from freehold.run.engine.cache import CacheKind, Copies
from freehold.run.engine.cache.pool import BlockPool, Node, key_of
from freehold.run.engine.sequence import Sequence
from freehold.run.models.load import LoadedModel

U8 = NDArray[np.uint8]

# --- a folder of cache files -----------------------------------------------------------------------

PART = ".part"
FREE_SHARE = 10  # a folder takes one in this many of the free bytes at most
SLACK = 16  # the part of the budget that is written between two scans of the folder, and kept free for that
STALE_S = 3600.0  # age at which an unfinished file is removed


class CheckedFolder:
    """Files with one of `suffixes` in a folder, `budget` bytes of them at most, or less where little is free."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...], most: int, budget: int | None = None) -> None:
        """`budget` None: `most`, or one in FREE_SHARE of the free bytes, whatever is less."""
        self.path = folder
        self._suffixes, self._most, self._budget = suffixes, most, budget
        self._unseen = 1 << 62  # bytes written since the folder was last scanned

    def fill(self, content: U8, name: str, head: bytes, used: int) -> bool:
        """Read a file that begins with `head`; False, and the file removed, if anything is not as expected.

        `used`: when it was used, in nanoseconds: what was unused for longest goes first.
        """
        path = self.path / name
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

    def has(self, name: str) -> bool:
        """Return whether a file is there, whatever it holds."""
        return os.path.exists(self.path / name)

    def write(self, name: str, head: bytes, content: U8, used: int) -> None:
        """Write a file beside its place and put it there whole; older ones make room. Raises OSError."""
        private.folder(self.path)
        self._make_room(len(head) + 4 + content.nbytes)
        path = self.path / name
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
            self._budget = min(self._most, (shutil.disk_usage(self.path).free + held) // FREE_SHARE)
        for _, bytes_, path in sorted(files):
            if held <= self._budget - self._budget // SLACK:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            held -= bytes_
        self._unseen = size

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """Yield the folder's files; remove what a process left that died while writing."""
        now = time.time()
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name.endswith(self._suffixes):
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


# --- blocks in files -------------------------------------------------------------------------------

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


# --- the tier --------------------------------------------------------------------------------------

LOAD_S = 0.02  # seconds that one sequence may read from disk in a step while others wait
KEPT_BLOCKS = 8  # full blocks from which a prompt is kept on disk: shorter ones are computed faster


class Memory(Protocol):
    """Memory that places index. A content is the bytes at one place of each kind, in order."""

    @property
    def nbytes(self) -> int: ...
    def read(self, places: Ordered[int]) -> U8: ...
    def write(self, places: Ordered[int], content: U8) -> None: ...
    def copy(self, copies: Mapping[str, Copies]) -> None: ...


class KvPages(Memory):
    """The pages of full attention, and of sliding windows where those have blocks of their own."""

    def __init__(self, cache: native.KvCache) -> None:
        self._cache = cache

    @property
    def nbytes(self) -> int:
        """Bytes of a block's content."""
        return self._cache.bytes_per_block + self._cache.bytes_per_window_block

    def read(self, places: Ordered[int]) -> U8:
        """Return the content of a block."""
        return self._cache.read_block(*places)

    def write(self, places: Ordered[int], content: U8) -> None:
        """Fill a block."""
        self._cache.write_block(places[0], content, *places[1:])

    def copy(self, copies: Mapping[str, Copies]) -> None:
        """Make copies on write."""
        self._cache.copy(copies["full"], copies.get("window", ()))


class StateSlots(Memory):
    """The states of recurrent layers."""

    def __init__(self, cache: native.KvCache) -> None:
        self._cache = cache

    @property
    def nbytes(self) -> int:
        """Bytes of a slot's states."""
        return self._cache.bytes_per_slot

    def read(self, places: Ordered[int]) -> U8:
        """Return the states in a slot."""
        return self._cache.read_state(places[0])

    def write(self, places: Ordered[int], content: U8) -> None:
        """Fill a slot."""
        self._cache.write_state(places[0], content)

    def copy(self, copies: Mapping[str, Copies]) -> None:
        """Do nothing: a state that something else reads is not written over."""


class DiskTier:
    """Prompts of `pool` that are kept in `disk` too; `memories`: of the paged kinds, and of states if there are any."""

    def __init__(
        self, pool: BlockPool, kinds: Ordered[CacheKind], disk: DiskCache, memories: Ordered[Memory]
    ) -> None:
        self.tokens = 0  # read from disk so far
        self._pool = pool
        self._kinds = kinds
        self._paged = [kind for kind in kinds if kind.paged]
        self._stateful = [kind for kind in kinds if not kind.paged]
        self._disk = disk
        self._memories: list[Memory] = [*memories]  # none: closed
        assert len(memories) == 1 + len(self._stateful)

    def close(self) -> None:
        """Let the disk finish what is quick, and let go of the memory."""
        self._disk.close()
        self._memories = []

    # --- reading -----------------------------------------------------------------------------------

    def load(self, seq: Sequence, path: list[Node], whole: int, seconds: float) -> bool:
        """Let `seq` hold the blocks of `path` whose pages are there, and read what follows, up to `whole` blocks.

        `path` ends then where that ends. False if there may be more and time is up.
        """
        if not self._memories:
            return True
        salt, blocks = seq.request.salt, [node.block for node in path]
        known = _usable(self._kinds, blocks)
        if self._stateful:  # pages are worth reading up to the last state
            whole = self._disk.last_state(salt, _keys(seq, whole), known)
            if whole == known:
                return True
        del path[_usable(self._paged, blocks) :]
        for block in blocks[len(seq.block_table) : len(path)]:
            self._pool.hold(block)
            seq.block_table.append(block)
        self._follow(seq, len(path))
        complete = len(path) >= whole or self._read_pages(seq, path, whole, monotonic() + seconds)
        if complete and self._stateful:
            self._read_state(salt, path, [*_keys(seq, min(whole, len(path)))], known)
        return complete

    def _read_pages(self, seq: Sequence, path: list[Node], whole: int, until: float) -> bool:
        memory = self._memories[PAGES]
        for content in self._disk.read(seq.request.salt, _keys(seq, whole), len(path)):
            memory.copy({kind.name: kind.take_copies() for kind in self._paged})  # before one is written over
            node = self._node_after(seq, path)
            if node is None:
                return True
            self._follow(seq, len(path))
            memory.write([kind.provide(node.block) for kind in self._paged], content)
            node.kept |= 1 << PAGES
            path.append(node)
            self.tokens += BLOCK_TOKENS
            self._follow(seq, len(path))
            if monotonic() > until:
                return len(path) == whole
        return True

    def _node_after(self, seq: Sequence, path: list[Node]) -> Node | None:
        """Give `seq` the block after `path`, which may be known without all its pages; None without a free one."""
        above = path[-1] if path else self._pool.tree.root(seq.request.salt)
        key = _key(seq, len(path))
        node = above.children.get(key)
        if node is not None:
            self._pool.hold(node.block)
        elif self._pool.available:
            node = self._pool.insert(above, key, self._pool.take())
        else:
            return None
        seq.block_table.append(node.block)
        return node

    def _read_state(self, salt: str, path: list[Node], keys: list[bytes], known: int) -> None:
        """Read the last intact state after one of `keys`, if it lies beyond the `known` blocks."""
        while (at := self._disk.last_state(salt, keys, known)) > known:
            content, node = self._disk.read_state(salt, keys[:at]), path[at - 1]
            if content is not None:
                self._memories[STATE].write([kind.provide(node.block) for kind in self._stateful], content)
                node.kept |= 1 << STATE
                return
            del keys[at - 1 :]

    def _follow(self, seq: Sequence, blocks: int) -> None:
        seq.num_computed_tokens = blocks * BLOCK_TOKENS
        for kind in self._kinds:
            if kind.follows:
                kind.follow(seq)

    # --- writing -----------------------------------------------------------------------------------

    def keep(self, seq: Sequence, full: int) -> None:
        """Have the first `full` blocks of `seq` written unless they are on disk, or too few to matter."""
        if not self._memories or full < KEPT_BLOCKS:
            return
        nodes = [node for block in seq.block_table[:full] if (node := self._pool.nodes[block]) is not None]
        first = len(nodes)
        while first and not nodes[first - 1].kept >> PAGES & 1:
            first -= 1
        if self._stateful:
            first = next((i for i, node in enumerate(nodes[:first]) if self._has_new_state(node)), first)
        if first < len(nodes):
            self._disk.keep(seq.request.salt, [*_keys(seq, len(nodes))], nodes, first, self._content)

    def _has_new_state(self, node: Node) -> bool:
        return not node.kept >> STATE & 1 and all(kind.place(node.block) >= 0 for kind in self._stateful)

    def _content(self, node: Node, part: int) -> U8 | None:
        """Return a node's pages or state, from another thread; None if a kind lost it, perhaps meanwhile."""
        kinds = self._stateful if part == STATE else self._paged
        places = [kind.place(node.block) for kind in kinds]
        if not self._memories or min(places) < 0:
            return None
        content = self._memories[part].read(places)
        same = places == [kind.place(node.block) for kind in kinds]
        return content if same and self._pool.nodes[node.block] is node else None


def _usable(kinds: Iterable[CacheKind], blocks: list[int]) -> int:
    """Return how many full blocks all `kinds` can reuse."""
    tokens, least = -1, len(blocks) * BLOCK_TOKENS
    while tokens != least:
        tokens = least
        least = min(kind.usable(blocks, tokens) for kind in kinds)
    return tokens // BLOCK_TOKENS


def _key(seq: Sequence, block: int) -> bytes:
    return key_of(seq.tokens[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS])


def _keys(seq: Sequence, count: int) -> Iterator[bytes]:
    """Yield the keys of a sequence's first blocks as the disk has them: no more are made than it has blocks.

    They are the same in every process: pictures are spelled by what they are, not by their ids.
    """
    pictures = seq.request.pictures
    if pictures is None:
        return (_key(seq, block) for block in range(count))
    return (pictures.key(seq.tokens, block * BLOCK_TOKENS, BLOCK_TOKENS) for block in range(count))
