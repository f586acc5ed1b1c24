"""Capabilities of chat templates, found by rendering each template once and stored below the home.

    <home>/templates/<digest>.json     of the template's text and this version of Freehold

A listing asks for every model there is, and rendering is work on a stranger's file. One that never ends is found out
once, by the process that renders, and is recorded as making nothing possible. Knows templates and a folder; knows no
model. Path: Cards.of -> of_template -> ChatTemplate.traits
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import suppress
from pathlib import Path

from freehold import private
from freehold.store.manifest import write_json
from freehold.tokenizer.template import ChatTemplate
from freehold.version import __version__

MAX_KEPT = 2048  # records of 40 bytes; as many as other programs' folders may hold models
NAMES = ("tools", "thinking")


def of_template(source: str, home: Path, until: float = math.inf) -> dict[str, bool] | None:
    """Tell for each of NAMES whether a template makes it possible; nothing without a template.

    None where no record tells and time.monotonic() is past `until`: rendering may take seconds.
    """
    if not source:
        return {}
    digest = hashlib.sha256(f"{__version__}\n{source}".encode("utf-8", "surrogatepass")).hexdigest()
    path = home / "templates" / f"{digest}.json"
    kept = _kept(path)
    if kept is None and time.monotonic() > until:
        return None
    return kept or _keep(path, _read_abilities(source))


def _read_abilities(source: str) -> dict[str, bool]:
    template = ChatTemplate(source)
    return {
        "tools": template.can_call,
        "thinking": template.thinking != "none" or bool(template.efforts),
    }


def _kept(path: Path) -> dict[str, bool] | None:
    with suppress(OSError, ValueError):
        kept = json.loads(path.read_bytes())
        if isinstance(kept, dict) and all(isinstance(kept.get(name), bool) for name in NAMES):
            return {name: kept[name] for name in NAMES}
    return None


def _keep(path: Path, abilities: dict[str, bool]) -> dict[str, bool]:
    """Write a record, and drop the oldest where there are too many; a home that cannot be written is ignored."""
    with suppress(OSError):
        private.folder(path.parent)
        write_json(path, abilities, durable=False)
        records = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in records[:-MAX_KEPT]:
            old.unlink()
    return abilities
