"""Asks the hub what it says of models today, and adds what differs to the user's own catalogue file.

One request for a repository's card and one for its config.json, pinned to the commit that the first one
names. Knows no terminal; overwrites no fact: a change is a new table with today's date and its source.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from freehold.base import private
from freehold.base.catalog import Model
from freehold.base.catalog.counting import count
from freehold.base.catalog.schema import MAX_BYTES, parse
from freehold.base.config import Settings
from freehold.base.errors import (
    AccessDenied,
    DownloadFailed,
    ModelNotFound,
    Offline,
    StoreError,
    UnsupportedModel,
)
from freehold.run.store.http import Http
from freehold.run.store.hub import card_facts, config_facts, known_licence

_BUFFERS = 1e-5  # of a checkpoint's tensors: tables of frequencies and the like, which are no weights
TRIES = 3  # in a row, of a hub that does not answer


@dataclass(frozen=True, slots=True)
class Change:
    """A fact of which the hub says something else than the catalogue."""

    id: str
    key: str
    known: Any
    found: Any
    source: str  # the repository and commit that said so

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Refresher:
    """Asks one hub."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def ask(self, models: Sequence[Model]) -> tuple[list[Change], list[tuple[str, str]]]:
        """Return what differs, and (id, why) of the models that could not be asked about.

        Raises Offline in offline mode, and DownloadFailed when the hub cannot be reached at all.
        """
        if self._settings.offline:
            raise Offline("offline mode forbids asking the hub", "without --offline: freehold models refresh")
        changes: list[Change] = []
        failed: list[tuple[str, str]] = []
        http = Http(token=self._settings.hub_token, token_origin=self._settings.hub_endpoint)
        with closing(http):
            for model in models:
                try:
                    changes += self._differences(http, model)
                except (AccessDenied, ModelNotFound) as e:
                    failed.append((model.id, e.message))
        return changes, failed

    def append(self, changes: Sequence[Change], path: Path) -> int:
        """Add the changes to the user's file, one dated table a model; return their number.

        The file is written beside and renamed. Raises StoreError if it is damaged already.
        """
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        parse(str(path), before)
        tables = [_table([c for c in changes if c.id == id]) for id in dict.fromkeys(c.id for c in changes)]
        text = "\n".join([*([before.rstrip() + "\n"] if before.strip() else []), *tables])
        if len(text.encode()) > MAX_BYTES:
            raise StoreError(
                f"{path} would hold more than {MAX_BYTES:,} bytes", "drop what is older than what you need"
            )
        parse(str(path), text)
        private.folder(path.parent)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with open(aside, "w", encoding="utf-8", opener=private.opener) as file:
                file.write(text)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return len(changes)

    def _differences(self, http: Http, model: Model) -> list[Change]:
        endpoint = self._settings.hub_endpoint
        info = http.get_json(f"{endpoint}/api/models/{model.id}/revision/main", TRIES)
        commit = info.get("sha", "") if isinstance(info, dict) else ""
        if not re.fullmatch(r"[0-9a-f]{6,64}", str(commit)):
            raise DownloadFailed(f"the hub's answer about {model.id} names no commit")
        facts = card_facts(info, model.id)
        if "parameters" in facts and not model.params_b:
            facts["params_b"] = round(facts["parameters"] / 1e9, 3)
        # a gated repository, or one with files of another kind: its card has to do
        with suppress(AccessDenied, ModelNotFound):
            config = f"{endpoint}/{model.id}/resolve/{commit}/config.json"
            read = http.get_json(config, TRIES)
            facts |= config_facts(read) | text_half(read, facts.get("parameters", 0))
        source = f"hub: {model.id}@{commit[:12]}"
        return [
            Change(model.id, key, known, value, source)
            for key, value in facts.items()
            if _differs(key, known := _plain(getattr(model, key)), value)
        ]


def text_half(config: Any, whole: int) -> dict[str, int]:
    """Return the count of a model's text half, where its configuration can be counted and files hold more."""
    if not isinstance(config, dict):
        return {}
    try:
        count_found = count(config).total
    except UnsupportedModel:
        return {}
    return {"text_parameters": count_found} if 0 < count_found < whole * (1 - _BUFFERS) else {}


def _differs(key: str, known: Any, current: Any) -> bool:
    if key == "licence" and known and not known_licence(current):
        return False  # a name of the card's own contradicts nothing that was read in the text
    if key == "context" and known:
        return current > known  # a longer context reached by scaling is in the card, not in config.json
    return known != current


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _table(changes: Sequence[Change]) -> str:
    """Write one model's changes as TOML."""
    lines = ["[[model]]", f"id = {json.dumps(changes[0].id)}"]
    for change in changes:
        value = _as_licence(change.found) if change.key == "licence" else change.found
        lines.append(f"{change.key} = {json.dumps(value, ensure_ascii=False)}")
    sources = json.dumps(list(dict.fromkeys(c.source for c in changes)))
    return "\n".join([*lines, f"sources = {sources}", f"checked = {date.today().isoformat()}", ""])


def _as_licence(word: str) -> str:
    """Make an identifier of a card's own word; its terms are unknown, and so it blocks."""
    if known_licence(word):
        return word
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", word).strip("-")[:80]
