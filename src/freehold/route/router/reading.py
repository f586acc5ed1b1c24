"""Reads gateway.toml into a Gateway, or refuses it with every mistake at once: line, value, way out.

Pure but for what Outside looks up: opens no connection. A mistake in one table does not hide those of another.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from freehold.route.router.gateway import Gateway
from freehold.route.router.toml.models import read_models, read_providers
from freehold.route.router.toml.routes import (
    Named,
    graduating,
    read_keys,
    read_labels,
    read_ledger,
    read_routes,
    read_tasks,
)
from freehold.route.router.toml.table import BadGateway, Mistake, Mistakes, Outside, TomlTable, line_numbers

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
    models = read_models(top, providers, _with_coming(outside, values))
    labels = read_labels(top, providers, models)
    tasks = read_tasks(top, outside)
    routes = values.get("routes")
    written = routes if isinstance(routes, dict) else {}
    named = Named(providers, models, labels, tasks=tasks, written=written)
    gateway = Gateway(
        providers=providers,
        models=models,
        labels=labels,
        routes=read_routes(top, named, outside),
        tasks=tasks,
        keys=read_keys(top, labels),
        ledger=read_ledger(top, outside),
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    )
    top.end()
    mistakes.check(name)
    return gateway


def _with_coming(outside: Outside, values: dict[str, Any]) -> Outside:
    """Return what is outside with the models that routes will teach: they need not be in the store yet."""
    coming = graduating(values.get("models"), values.get("routes"))
    stored = outside.has_model
    if stored is None or not coming:
        return outside
    return replace(outside, has_model=lambda name: name in coming or stored(name))


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
