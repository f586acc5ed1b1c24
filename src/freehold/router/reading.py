"""Reads gateway.toml into a Gateway, and again when it changes, or refuses it with every mistake: line, value, way out.

Pure but for what Outside looks up: opens no connection. A mistake in one table does not hide those of another.
Path: cli/serve.py -> read -> Gateway or BadGateway
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError
from freehold.router.gateway import Gateway
from freehold.router.toml.models import read_models, read_providers
from freehold.router.toml.outside import Outside
from freehold.router.toml.routes import Named, read_keys, read_labels, read_ledger, read_routes, read_tasks
from freehold.router.toml.table import BadGateway, Mistake, Mistakes, TomlTable, line_numbers

MOST_BYTES = 1 << 20
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_WAYS_OUT = {  # what tomllib says -> what helps
    "Cannot overwrite a value": "a key is twice in this table: keep one of them",
    "Cannot declare": "a table is declared twice: put their keys together",
    "Duplicate inline table key": "a key is twice between the braces: keep one of them",
    "Invalid value": "strings need quotes, and tables between braces name = value",
    "Expected '=' after a key": "write key = value; a name with a space or a colon needs quotes",
    "Unescaped '\\' in a string": "put it between '...': there a \\ is a \\",
    "Illegal character": "a string ends on its line; three quotes begin one of several lines",
    "Expected newline or end of document": "one key = value a line; commas only between braces",
    "Unclosed array": "the array needs its ]",
}


def read(path: Path, outside: Outside | None = None) -> Gateway:
    """Read a file. Raises BadGateway; relative paths in it begin at its folder."""
    outside = outside or Outside()
    return read_text(_bytes(path), replace(outside, folder=path.absolute().parent), name=str(path))


def read_text(source: str | bytes, outside: Outside | None = None, *, name: str = "gateway.toml") -> Gateway:
    """Read a text of TOML. Raises BadGateway."""
    outside = outside or Outside()
    text = source if isinstance(source, str) else _decoded(source, name)
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").replace("\r\n", "\n")
    values = _parsed(text, name)
    mistakes = Mistakes(line_numbers(text))
    top = TomlTable(mistakes, (), values)
    providers = read_providers(top, outside)
    models = read_models(top, providers, outside)
    labels = read_labels(top, providers, models)
    tasks = read_tasks(top, outside)
    routes = values.get("routes")
    written = routes if isinstance(routes, dict) else {}
    gateway = Gateway(
        providers=providers,
        models=models,
        labels=labels,
        routes=read_routes(top, Named(providers, models, labels, tasks, written), outside),
        tasks=tasks,
        keys=read_keys(top, labels),
        ledger=read_ledger(top, outside),
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    )
    top.end()
    mistakes.check(name)
    return gateway


def _bytes(path: Path) -> bytes:
    """Return what a file holds. Raises BadGateway for one that is missing, too large, or open to other users."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise _whole(str(path), "there is no such file", "docs/guides/gateway.md begins with one") from None
    except (OSError, ValueError) as e:
        why = (e.strerror or "").lower() if isinstance(e, OSError) else "its name is none"
        raise _whole(str(path), f"it cannot be read: {why}", "name a file that this user may read") from None
    if status.st_mode & 0o022 or status.st_uid not in (os.geteuid(), 0):
        raise _whole(str(path), "others may write it, and so decide where prompts go", f"chmod go-w {path}")
    return data


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MOST_BYTES:
        raise _whole(
            name, f"it is longer than {MOST_BYTES:,} bytes", "a gateway of a thousand models has 200,000"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        wrong = Mistake(line, "", f"byte {data[e.start]:#04x} is not UTF-8", "save the file as UTF-8")
        raise BadGateway(name, (wrong,)) from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=Decimal)  # as written: 0.1 + 0.2 is 0.3
    except RecursionError:
        raise _whole(
            name, "arrays or tables are nested too deeply", "nothing here needs three levels"
        ) from None
    except (ValueError, InvalidOperation) as e:
        error = str(e)
    place = _PLACE.search(error)
    line = text.count("\n") + 1 if place else 0
    line = int(place[1]) if place and place[1] else line
    message = error[: place.start()] if place else error
    hint = next((way for begins, way in _WAYS_OUT.items() if message.startswith(begins)), "")
    wrong = Mistake(
        line, "", f"not TOML: {message[:1].lower()}{message[1:]}", hint or "https://toml.io shows how"
    )
    raise BadGateway(name, (wrong,)) from None


def _whole(name: str, message: str, hint: str) -> BadGateway:
    return BadGateway(name, (Mistake(0, "", message, hint),))


# --- gateway.toml of a running server ---------------------------------------------------------------
# Read again when it changes; a file with mistakes is not put in force. A request keeps the Gateway it began with, as
# Gateways are never changed but replaced. The file is looked at as server/core/keys.py looks at the keys, and read once
# two looks found it unchanged, so that a file in the middle of being written is not taken for a bad one.

LOOK_S = 0.5  # between two looks at the file
_log = logging.getLogger("freehold.router")

Mark = tuple[int, ...]
Changed = Callable[[Gateway], None]


class LiveGateway:
    """The Gateway in force. Raises BadGateway if the file is not sound at the start."""

    def __init__(self, path: Path, outside: Outside | None = None) -> None:
        self.path, self._outside = path, outside or Outside()
        self._mark = self._seen = self._marked()
        self.current: Gateway = self._read()
        self.trouble = ""  # why the file's latest state is not in force; "" while it is
        self._changed: list[Changed] = []

    def on_change(self, changed: Changed) -> None:
        """Call `changed` with each Gateway that takes the place of another; in the loop of `watch`."""
        self._changed.append(changed)

    async def watch(self) -> None:
        """Look at the file again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Read the file if it changed, but not since the last look; return whether another Gateway is in force."""
        mark = self._marked()
        stands, self._seen = mark == self._seen, mark
        if mark == self._mark or not stands:
            return False
        self._mark = mark
        try:
            gateway = await asyncio.to_thread(self._reread)
        except BadGateway as e:
            count = len(e.mistakes)
            return self._stays("has a mistake" if count == 1 else f"has {count} mistakes", e.message)
        except FreeholdError as e:
            return self._stays("could not be read", e.message)
        except Exception as e:  # whatever a keyring raises: the next change is read all the same
            return self._stays("could not be read", type(e).__name__)
        return self._take(gateway)

    def _stays(self, what: str, why: str) -> bool:
        self.trouble = f"the gateway's file {what} and is in force as it was; the log says more"
        _log.error("%s stays as it was: %s", self.path, why)
        return False

    def _take(self, gateway: Gateway) -> bool:
        self.trouble = ""
        if gateway == self.current:  # keys are compared too: touching the file takes a new one
            return False
        self.current = gateway
        _log.info("%s was read again: %s", self.path, gateway.digest[:12])
        for changed in self._changed:
            changed(gateway)
        return True

    def _reread(self) -> Gateway:
        from freehold.router.labels import prepare  # of a server alone: `freehold gateway check` needs none

        gateway = self._read()
        if gateway.ledger == self.current.ledger:
            prepare(gateway)  # in this thread
            return gateway
        moved = Mistake(0, "ledger", "the ledger cannot move while the server runs", "start the server again")
        raise BadGateway(str(self.path), (moved,))

    def _read(self) -> Gateway:
        # A pipe without a writer would wait for one for ever.
        if self.path.exists() and not self.path.is_file():
            what = "it is a folder" if self.path.is_dir() else "it is a pipe or a device"
            wrong = Mistake(0, "", f"{what}, and is read again when it changes", "name an ordinary file")
            raise BadGateway(str(self.path), (wrong,))
        return read(self.path, self._outside)

    def _marked(self) -> Mark:
        """Return what changes when the file does; () where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid
