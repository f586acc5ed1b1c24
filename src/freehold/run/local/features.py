"""Features of pictures that were computed before: in memory up to a limit of bytes, and in files.

Knows keys, arrays and a folder; knows no picture and no tower. A key is a tenant's name and a digest of all that the
features depend on (eyes.py makes it), never a text that a caller chose. Safe from many threads.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from freehold.run.engine.cache.files import CheckedFolder

F32 = NDArray[np.float32]
FeatureKey = tuple[str, bytes]  # the tenant for whom it was computed, "" where tenants share; the digest

MAGIC, SUFFIX = b"FREEHFT1", ".features"
DISK_BYTES = 1 << 30  # that the files may take: some 60 screenshots of a model of 2,048 columns


class FeatureCache:
    """Features by key, the longest unused ones forgotten first."""

    def __init__(self, most: int, folder: Path | None = None, budget: int | None = None) -> None:
        """Keep `most` bytes in memory, one picture at least, and in `folder` `budget` bytes, by default DISK_BYTES."""
        self._most = most
        self._kept: OrderedDict[FeatureKey, F32] = OrderedDict()
        self._files = None if folder is None else CheckedFolder(folder, (SUFFIX,), DISK_BYTES, budget)
        self._lock = Lock()
        self.nbytes = 0
        self.hits = 0  # found in memory,
        self.disk_hits = 0  # and in files
        self.computed = 0  # and in neither

    @property
    def on_disk(self) -> bool:
        """Whether features outlive the process."""
        return self._files is not None

    def get(self, key: FeatureKey) -> F32 | None:
        """Return features that are in memory."""
        with self._lock:
            features = self._kept.get(key)
            if features is not None:
                self._kept.move_to_end(key)
                self.hits += 1
            return features

    def add(self, key: FeatureKey, features: F32) -> None:
        """Keep features that were computed: in memory, see `write`."""
        with self._lock:
            self.computed += 1
        self._keep(key, features)

    def read(self, key: FeatureKey, rows: int, columns: int) -> F32 | None:
        """Return features that a file has, and keep them in memory."""
        if self._files is None:
            return None
        name, head = _named(key, rows, columns)
        content = np.empty(4 * rows * columns, np.uint8)
        if not self._files.fill(content, name, head, time.time_ns()):
            return None
        features = content.view("<f4").reshape(rows, columns)
        if not np.isfinite(features).all():
            return None
        with self._lock:
            self.disk_hits += 1
        self._keep(key, features)
        return features

    def write(self, key: FeatureKey, features: F32) -> None:
        """Write a file unless it is there; a disk that is full or fails costs hits and no answer."""
        name, head = _named(key, *features.shape)
        if self._files is not None and not self._files.has(name):
            content = np.ascontiguousarray(features, "<f4").view(np.uint8).reshape(-1)
            with suppress(OSError):
                self._files.write(name, head, content, time.time_ns())

    def _keep(self, key: FeatureKey, features: F32) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = features
                self.nbytes += features.nbytes
            while self.nbytes > self._most and len(self._kept) > 1:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def _named(key: FeatureKey, rows: int, columns: int) -> tuple[str, bytes]:
    """Return the name of a file, and what it begins with: tenant, digest, rows and columns, all of a fixed length."""
    tenant, digest = key
    whose = hashlib.sha256(b"freehold tenant " + tenant.encode()).digest()
    head = MAGIC + whose + hashlib.sha256(digest).digest() + struct.pack(">II", rows, columns)
    return hashlib.sha256(head).hexdigest() + SUFFIX, head
