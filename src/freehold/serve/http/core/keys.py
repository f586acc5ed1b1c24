"""API keys: their models, rates and budgets; the file that holds them, reloaded when it changes.

A key is kept as its sha256 alone. It is 192 random bits, so there is nothing to guess from the hash and nothing that
a slow hash or a salt would add; a password would need both. Knows no request and no count of what was used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from freehold.base import private
from freehold.base.errors import StoreError, UsageError
from freehold.base.regular import open_regular

MIN_KEY = 16  # characters of a key made elsewhere; 16 of base64 hold 96 bits
MAX_FILE = 4 << 20  # bytes; a key takes about 200
LOOK_S = 0.5  # between two checks of the file
_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]{0,63}")
_QUOTA = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kKMG]?)/(s|min|h|day)")
_SCALE = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86400}
_log = logging.getLogger("freehold.serve.http")


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount per period."""

    amount: float
    seconds: int


def quota(text: str) -> Quota:
    """Read `60/min`, `2.5/s` or `1M/day`; raises UsageError."""
    match = _QUOTA.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{text[:40]!r} is not a valid quota", "write 60/min, 10/s, 5000/h or 1M/day")
    return Quota(float(match[1]) * _SCALE[match[2]], _SECONDS[match[3]])


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key. Its name is its tenant: shares of the machine, cached prefixes and budgets go by it."""

    name: str
    sha256: str
    created: str = ""
    kind: Literal["client", "admin"] = "client"
    models: tuple[str, ...] = ()  # names, or patterns such as qwen*; none: every model
    rate: str = ""  # requests, such as 60/min
    tokens: str = ""  # prompts and answers together, such as 1M/day

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"{self.name[:80]!r} is not a valid name for a key"
            raise UsageError(message, "letters, digits and . _ @ + - only, 64")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            message = f"the key {self.name} has no sha256"
            raise UsageError(message, "freehold keys add makes a key and its hash")
        if self.rate:
            quota(self.rate)
        if self.tokens and quota(self.tokens).seconds != _SECONDS["day"]:
            message = f"{self.tokens!r} is not a valid token budget"
            raise UsageError(message, "it is counted by the day: 1M/day")

    def may_use(self, model: str) -> bool:
        """Return whether the key's scope holds a model of this name."""
        name = model.removesuffix(":latest")  # which Ollama's clients write after a name without a tag
        return not self.models or any(fnmatchcase(name, p.removesuffix(":latest")) for p in self.models)


def key_of(name: str, secret: str) -> Key:
    """Return the key of a secret made elsewhere. Raises UsageError for one that could be guessed."""
    if len(secret) < MIN_KEY or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UsageError(
            f"the key {name!r} has {len(secret)} characters; expected {MIN_KEY} or more, of ASCII and no space",
            "freehold keys add makes one",
        )
    return Key(name=name, sha256=hashed(secret.encode()))


def new_secret() -> str:
    """Return a new key: 192 random bits after a prefix by which scanners of leaked secrets know it."""
    return "fh-" + secrets.token_urlsafe(24)


def hashed(secret: bytes) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(secret).hexdigest()


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds."""

    keys: tuple[Key, ...]
    version: Literal[1] = 1


class KeyFile:
    """A file of keys, which `freehold keys` writes. No file is a file without keys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> tuple[int, ...]:
        """Return what changes when the file does; () where there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode

    def emptied(self) -> bool:
        """Return whether the file is there without a key: it had keys once."""
        return bool(self.mark()) and not self.read()

    def read(self) -> tuple[Key, ...]:
        """Return the keys. Raises UsageError for a file that others may write, or that holds something else."""
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return ()
        except OSError as e:
            raise UsageError(f"the key file {self.path} cannot be read: {e.strerror}") from e
        if status.st_mode & 0o022 or status.st_uid not in (os.geteuid(), 0):
            message = f"{self.path} is writable by others, who could add keys"
            raise UsageError(message, f"chmod 600 {self.path}")
        return self._decoded(data)

    def _decoded(self, data: bytes) -> tuple[Key, ...]:
        if len(data) > MAX_FILE:
            raise UsageError(f"{self.path} is longer than {MAX_FILE:,} bytes")
        try:
            keys = msgspec.json.decode(data, type=_Kept).keys
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            message = f"{self.path} is not a key file: {e}"
            raise UsageError(message, "freehold keys add NAME writes one") from e
        names = [key.name for key in keys]
        if twice := next((n for n in names if names.count(n) > 1), ""):
            raise UsageError(f"{self.path}: two keys are called {twice!r}")
        return keys

    def add(self, key: Key) -> None:
        """Write `key` beside the others; raises UsageError if one of its name is there."""
        with self._locked():
            keys = self.read()
            if any(key.name == each.name for each in keys):
                raise UsageError(f"there is a key {key.name!r}", f"freehold keys rm {key.name} revokes it")
            self._write((*keys, key))

    def remove(self, name: str) -> None:
        """Take a key out; raises UsageError if none is called that."""
        with self._locked():
            keys = self.read()
            if all(name != each.name for each in keys):
                raise UsageError(f"there is no key {name!r}", "freehold keys list shows them")
            self._write(tuple(each for each in keys if each.name != name))

    def _locked(self):  # type: ignore[no-untyped-def]
        from filelock import FileLock

        if not self.path.parent.is_dir():
            private.folder(self.path.parent)  # one that is there may be /etc
        return FileLock(private.file(self.path.with_name(self.path.name + ".lock")), timeout=10)

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Put the file there whole, readable by its owner alone, or not at all."""
        new = self.path.with_name(self.path.name + ".new")
        data = msgspec.json.format(msgspec.json.encode(_Kept(keys)), indent=1)
        try:
            with suppress(FileNotFoundError):
                new.unlink()
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as e:
            raise StoreError(f"{self.path} cannot be written: {e.strerror}") from e


def made(name: str, secret: str, *, admin: bool, models: Iterable[str], rate: str, tokens: str) -> Key:
    """Return the key of `secret` as it is kept; raises UsageError for a wrong name or quota."""
    return Key(
        name=name,
        sha256=hashed(secret.encode()),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        kind="admin" if admin else "client",
        models=tuple(models),
        rate=rate,
        tokens=tokens,
    )


class Ring:
    """The keys in force: those of a file, which is looked at again and again, and others that stay.

    `needed`: no request comes in without a key, even while there is none. Once there was a key, that is so for as long
    as the process lives: revoking the last one shuts the server, and does not open it. A file that cannot be read any
    more leaves its last keys in force, and the log says so; one that is gone has none.
    """

    def __init__(
        self,
        keys: Iterable[Key] = (),
        file: KeyFile | None = None,
        *,
        needed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own, self._file, self._clock = tuple(keys), file, clock
        self.needed = needed
        self._mark = file.mark() if file else ()
        self._looked = clock()
        self._take(file.read() if file else ())

    def __bool__(self) -> bool:
        self._look()
        return self.needed

    def __len__(self) -> int:
        self._look()
        return len(self._known)

    def find(self, token: bytes) -> Key | None:
        """Return the key of this secret. Timing reveals hashes at most, which lead to no key."""
        self._look()
        return self._known.get(hashed(token))

    def of_hash(self, sha256: str) -> Key | None:
        """Return the key of this hash, which a session keeps."""
        self._look()
        return self._known.get(sha256)

    def named(self, name: str) -> Key | None:
        """Return the key of this name."""
        self._look()
        return next((key for key in self._known.values() if key.name == name), None)

    def all(self) -> tuple[Key, ...]:
        """Return the keys in force."""
        self._look()
        return tuple(self._known.values())

    def add(self, key: Key) -> None:
        """Write a key to the file, in force at once. Raises UsageError for a name that is taken, or without a file."""
        if any(key.name == each.name for each in self._own):
            raise UsageError(f"there is a key {key.name!r}", "choose another name")
        self._kept().add(key)
        self._looked = -LOOK_S

    def remove(self, name: str) -> None:
        """Take a key out of the file, out of force at once. Raises UsageError for one that the file does not hold."""
        if any(name == each.name for each in self._own):
            message = f"the key {name!r} was given to this server when it started"
            raise UsageError(message, "start it without FREEHOLD_API_KEY")
        self._kept().remove(name)
        self._looked = -LOOK_S

    def _kept(self) -> KeyFile:
        if self._file is None:
            message = "this server keeps its keys in no file"
            raise UsageError(message, "freehold keys add, beside freehold serve")
        return self._file

    def _take(self, keys: Iterable[Key]) -> None:
        self._known = {key.sha256: key for key in (*self._own, *keys)}
        if self.needed and not self._known:
            _log.warning("no key is left, and requests need one: freehold keys add NAME makes one")
        self.needed = self.needed or bool(self._known)

    def _look(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            mark = self._file.mark()
            if mark != self._mark:
                self._mark = mark
                self._take(self._file.read())
        except (UsageError, OSError) as e:
            _log.error("the keys stay as they were: %s", e)
