"""The owner's token, which opens the owner's routes to programs without access to the Unix socket.

It is in a file that only its user can read. The first server of a home makes it and the next ones keep it, so a client
gets it once. It opens what the socket opens: who can read it can reach the socket too. Knows a file and no route.
Path: cli/serve -> owner_token -> auth.Guard.owns
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from freehold import private
from freehold.errors import StoreError, UsageError

PREFIX = "fh-owner-"
_MAX = 256  # bytes of the file


def owner_token(path: Path) -> str:
    """Return the token in `path`, made where there is none; UsageError for a file that others can read."""
    try:
        private.folder(path.parent)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{PREFIX}{secrets.token_urlsafe(24)}\n")
    except FileExistsError:
        pass
    except OSError as e:
        raise StoreError(f"the owner's token {path} cannot be written: {e.strerror}") from e
    return _read(path)


def _read(path: Path) -> str:
    way_out = f"rm {path}, and the next server makes another one"
    try:
        with path.open("rb") as file:
            status, data = os.fstat(file.fileno()), file.read(_MAX + 1)
    except OSError as e:
        raise UsageError(f"the owner's token {path} cannot be read: {e.strerror}", way_out) from e
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise UsageError(f"others can read or replace the owner's token {path}", way_out)
    token = data.decode("ascii", "replace").strip()
    if not token.startswith(PREFIX) or len(token) < len(PREFIX) + 32 or len(data) > _MAX:
        raise UsageError(f"{path} does not hold an owner's token", way_out)
    return token
