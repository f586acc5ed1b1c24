"""One folder that a user named, through which no path leads out: list, read, search, edit, write, remove.

Every path is walked name by name from the folder's own descriptor, and no link is followed, so that what is opened is
what was checked. Plain files with one name alone are opened: a second name (a hard link) may lie outside, a pipe may
wait for ever, a device is not a file. Each change is planned first, as a difference of texts that can be shown, and
then carried out if the file is still what it was. Knows files; knows no model and no permission.
"""

from __future__ import annotations

import difflib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from freehold.base.errors import FreeholdError, StoreError, UsageError

MAX_FILE = 8 << 20  # bytes that are read or written
MAX_LINES, MAX_CHARS = 400, 16_000  # of one reading
MAX_ENTRIES = 400  # of a list
MAX_MATCHES = 100
MAX_SEARCHED = 20_000  # files of one search
MAX_DEPTH = 32  # folders below each other
MAX_PATH = 1024  # characters
_LINE = 300  # characters of a line that a search shows
_DIFF = 12_000  # characters of a difference that is shown
# Listed by name and not entered: what they have is not written by hand.
CLOSED = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", ".tox", ".mypy_cache"})
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class FolderChange:
    """A planned change of one file. `before` None: it is made; `after` None: it is removed."""

    path: str  # from the folder on, with /
    before: bytes | None
    after: bytes | None

    @property
    def added(self) -> str:
        """The lines that the change adds."""
        if self.after is None:
            return ""
        old = set(_text(self.before or b"").splitlines())
        return "\n".join(line for line in _text(self.after).splitlines() if line not in old)

    def diff(self) -> str:
        """Return the change as a unified difference, cut after some hundred lines."""
        old, new = (_text(each or b"").splitlines() for each in (self.before, self.after))
        names = (
            "/dev/null" if self.before is None else self.path,
            "/dev/null" if self.after is None else self.path,
        )
        text = "\n".join(difflib.unified_diff(old, new, *names, lineterm=""))
        text = text or f"--- {names[0]}\n+++ {names[1]}\n(no line differs)"
        return text if len(text) <= _DIFF else text[:_DIFF] + "\n[the difference is longer]"

    def counts(self) -> str:
        """Return how many lines it adds and removes, as `+3 -1`."""
        old, new = (_text(each or b"").splitlines() for each in (self.before, self.after))
        rows = [
            line[0]
            for line in difflib.unified_diff(old, new, n=0, lineterm="")
            if line[:3] not in ("+++", "---")
        ]
        return f"+{rows.count('+')} -{rows.count('-')}"


class ToolFolder:
    """A folder, open by descriptor. Raises UsageError where `path` is none, or the whole file system."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path == Path("/"):
            raise UsageError("the folder is /, the whole file system", "name the folder that the work is in")
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            why = "there is no such folder" if e.errno in (errno.ENOENT, errno.ENOTDIR) else e.strerror
            raise UsageError(f"{path}: {why}", "name a folder that exists") from e

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- what it has --------------------------------------------------------------------------------

    def listing(self, path: str = ".") -> str:
        """Return the files below a path, one a line; folders end with /. Raises UsageError, StoreError."""
        rows = []
        with self._folder(self._parts(path)) as fd:
            for name, entry in self._walk(fd, ""):
                if len(rows) == MAX_ENTRIES:
                    rows.append(f"[more than {MAX_ENTRIES} entries: list a folder below]")
                    break
                rows.append(name + _mark(entry))
        return "\n".join(rows) or "[the folder is empty]"

    def read(self, path: str, first: int = 1, last: int | None = None) -> str:
        """Return lines of a text, and a line that says what is left out. Raises UsageError, StoreError."""
        text = _decoded(self.bytes_of(path), path)
        lines = text.splitlines(keepends=True)
        if first < 1 or (last is not None and last < first):
            raise UsageError(f"lines {first} to {last} are not a range", "the first line is 1")
        if first > 1 and first > len(lines):
            raise UsageError(f"{path} has {len(lines)} lines; line {first} is beyond its end")
        wanted = lines[first - 1 : min(last or len(lines), first - 1 + MAX_LINES)]
        size = 0
        for count, line in enumerate(wanted):
            size += len(line)
            if size > MAX_CHARS:
                wanted = [*wanted[:count], *([line[:MAX_CHARS]] if not count else [])]
                break
        end = first - 1 + len(wanted)
        shown = "".join(wanted)
        if len(wanted) == len(lines):
            return shown or "[the file is empty]"
        return f"{shown.rstrip(chr(10))}\n[lines {first} to {end} of {len(lines)}]"

    def search(self, text: str, path: str = ".") -> str:
        """Return the lines below a path that contain a text, as `path:line: text`. Raises UsageError, StoreError."""
        if not text or len(text) > 1000 or "\n" in text:
            raise UsageError("the text to search for has 1 to 1,000 characters, on one line")
        rows: list[str] = []
        for count, name in enumerate(self._files(self._parts(path)), 1):
            if count > MAX_SEARCHED:
                rows.append(f"[more than {MAX_SEARCHED:,} files: search in a folder below]")
                break
            with suppress(FreeholdError):
                for number, line in enumerate(_decoded(self.bytes_of(name), name).splitlines(), 1):
                    if text in line:
                        rows.append(f"{name}:{number}: {line.strip()[:_LINE]}")
            if len(rows) >= MAX_MATCHES:
                rows = [*rows[:MAX_MATCHES], f"[more than {MAX_MATCHES} matches]"]
                break
        return "\n".join(rows) or f"[no line contains {text!r}]"

    def bytes_of(self, path: str) -> bytes:
        """Return what a plain file holds. Raises UsageError, StoreError."""
        parts = self._parts(path)
        if not parts:
            raise UsageError("the path names the folder itself", "name a file in it")
        with self._folder(parts[:-1]) as fd:
            return self._read(fd, parts[-1], path)

    # --- changes ------------------------------------------------------------------------------------

    def edited(self, path: str, old: str, new: str, *, every: bool = False) -> FolderChange:
        """Plan the replacement of an exact text, which occurs once unless `every` is set. Raises UsageError."""
        before = self.bytes_of(path)
        text = _decoded(before, path)
        if not old:
            raise UsageError("the text to replace is empty", "use write_file for a new file")
        if old not in text and "\r\n" in text:
            old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        count = text.count(old)
        if count == 0:
            raise UsageError(f"{path} does not contain the text to replace", _nearest(text, old))
        if count > 1 and not every:
            raise UsageError(
                f"{path} contains the text {count} times", "give more lines around it, or set every to true"
            )
        return self._planned(path, before, _encoded(text.replace(old, new)))

    def written(self, path: str, text: str) -> FolderChange:
        """Plan a whole file, new or in the place of another. Raises UsageError."""
        return self._planned(path, self._before(path), _encoded(text))

    def removed(self, path: str) -> FolderChange:
        """Plan the end of a file. Raises UsageError."""
        return self._planned(path, self.bytes_of(path), None)

    def carry_out(self, change: FolderChange) -> None:
        """Make a planned change. Raises UsageError where the file is another than it was when this was planned."""
        if self._before(change.path) != change.before:
            raise UsageError(f"{change.path} was changed meanwhile", "read it again")
        parts = self._parts(change.path)
        try:
            with self._folder(parts[:-1], make=change.after is not None) as fd:
                if change.after is None:
                    os.unlink(parts[-1], dir_fd=fd)
                else:
                    self._replace(fd, parts[-1], change.after)
        except OSError as e:
            raise StoreError(f"{change.path} cannot be written: {e.strerror}") from e

    def _planned(self, path: str, before: bytes | None, after: bytes | None) -> FolderChange:
        if after is not None and len(after) > MAX_FILE:
            raise UsageError(f"{path} would have {len(after):,} bytes; the limit is {MAX_FILE:,}")
        return FolderChange("/".join(self._parts(path)), before, after)

    def _before(self, path: str) -> bytes | None:
        parts = self._parts(path)
        if not parts:
            raise UsageError("the path names the folder itself", "name a file in it")
        try:
            with self._folder(parts[:-1]) as fd:
                os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except UsageError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return None
            raise
        return self.bytes_of(path)

    def _replace(self, fd: int, name: str, data: bytes) -> None:
        """Write beside the file and put it in its place: a reader sees the old or the new, whole."""
        mode = None
        with suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & 0o777
            if not mode & stat.S_IWUSR:
                raise UsageError(f"{name} is read-only", "its mode must allow writing")
        beside = f".{secrets.token_hex(8)}.new"
        new = os.open(
            beside,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            mode or 0o666,
            dir_fd=fd,
        )
        try:
            with os.fdopen(new, "wb") as file:
                file.write(data)
                file.flush()
                if mode is not None:
                    os.fchmod(new, mode)
                os.fsync(new)
            os.rename(beside, name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=fd)
            raise

    # --- paths --------------------------------------------------------------------------------------

    def _parts(self, path: str) -> list[str]:
        """Return the names of a path from the folder on. Raises UsageError for one that leads out of it."""
        if not isinstance(path, str) or len(path) > MAX_PATH or "\0" in path:
            raise UsageError(f"a path has at most {MAX_PATH:,} characters, none of them NUL")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UsageError("the path is not UTF-8 text") from None
        shown = path[:200]
        if path.startswith("/"):
            own = f"{self.path}/"
            if path != str(self.path) and not path.startswith(own):
                raise UsageError(f"{shown} lies outside of the folder", "give a path from the folder on")
            path = path[len(own) :]
        parts = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in parts:
            raise UsageError(f"{shown} contains ..", "give a path from the folder on")
        if len(parts) > MAX_DEPTH or any(len(name.encode()) > 255 for name in parts):
            raise UsageError(f"{shown} has more than {MAX_DEPTH} folders, or a name of more than 255 bytes")
        return parts

    @contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Open a folder below, name by name; `make`: those that are missing too."""
        fd = os.dup(self._fd)
        try:
            for name in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o777, dir_fd=fd)
                below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        except OSError as e:
            if isinstance(e, FileNotFoundError) or e.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _path_error("/".join(parts), e) from e
            raise StoreError(f"{'/'.join(parts) or '.'}: {e.strerror}") from e
        finally:
            os.close(fd)

    def _read(self, folder: int, name: str, path: str) -> bytes:
        try:
            fd = os.open(name, _READ, dir_fd=folder)
        except OSError as e:
            raise _path_error(path, e) from e
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a plain file"
                raise UsageError(f"{path} is {kind}", "list_files shows the files")
            if status.st_nlink > 1:
                raise UsageError(
                    f"{path} has another name (a hard link), which may lie outside of the folder",
                    "copy the file first",
                )
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        finally:
            os.close(fd)
        if len(data) > MAX_FILE:
            raise UsageError(f"{path} has {status.st_size:,} bytes; the limit is {MAX_FILE:,}")
        return data

    def _walk(self, fd: int, above: str, depth: int = 0) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the names below an open folder, in order; links and closed folders are named, and not entered."""
        for name in sorted(os.listdir(fd)):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError:
                continue  # removed meanwhile
            yield above + name, status
            if stat.S_ISDIR(status.st_mode) and name not in CLOSED and depth < MAX_DEPTH:
                try:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                except OSError:
                    continue
                try:
                    yield from self._walk(below, f"{above}{name}/", depth + 1)
                finally:
                    os.close(below)

    def _files(self, parts: Sequence[str]) -> Iterator[str]:
        """Yield the plain files below a path, or the one that it names."""
        above = "/".join(parts)
        if parts:
            with self._folder(parts[:-1]) as fd, suppress(FileNotFoundError):
                if stat.S_ISREG(os.stat(parts[-1], dir_fd=fd, follow_symlinks=False).st_mode):
                    yield above
                    return
        with self._folder(parts) as fd:
            names = [name for name, status in self._walk(fd, "") if stat.S_ISREG(status.st_mode)]
        for name in names:
            yield f"{above}/{name}" if above else name


def _path_error(path: str, e: OSError) -> UsageError:
    shown = path[:200]
    if isinstance(e, FileNotFoundError):
        return UsageError(f"there is no {shown}", "list_files shows the files")
    if e.errno in (errno.ELOOP, errno.ENOTDIR):
        return UsageError(
            f"{shown} is or passes through a link or a file; links are not followed", "name a file"
        )
    return UsageError(f"{shown} cannot be opened: {e.strerror}")


def _mark(status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "/"
    if stat.S_ISLNK(status.st_mode):
        return " (a link, not followed)"
    if not stat.S_ISREG(status.st_mode):
        return " (not a plain file)"
    return f" ({status.st_size:,} bytes)"


def _decoded(data: bytes, path: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(
            f"{path} is not UTF-8 text: byte 0x{data[e.start]:02x} at offset {e.start}"
        ) from None
    if "\0" in text:
        raise UsageError(f"{path} is binary")
    return text


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _nearest(text: str, old: str) -> str:
    """Return a hint with the line that is most like the first one of the text to replace."""
    first = next((line for line in old.splitlines() if line.strip()), "")[:_LINE]
    lines = [line for line in text.splitlines()[:5000] if line.strip()]
    near = difflib.get_close_matches(first, lines, 1, 0.6)
    return (
        f"the nearest line is {near[0][:_LINE]!r}"
        if near
        else "read the file first, and copy the text exactly"
    )
